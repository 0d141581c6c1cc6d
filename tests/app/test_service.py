"""The page Service: absent without a service; traffic, early warning and models from its API; errors."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
import uvicorn
from streamlit.testing.v1 import AppTest

from balancer.app import service, service_charts
from balancer.errors import InputError
from balancer.serving.config import ServeConfig
from balancer.serving.http.app import create_app
from balancer.serving.models.loaded_model import LoadedModel
from balancer.serving.storage import keys
from tests.app.service_stub import BEFORE, COMPARISON, DAY, METRICS, answering, measured
from tests.app.test_pages import opened
from tests.app.test_pages import runs as runs
from tests.app.test_pages import typed as typed
from tests.serving.tools import opened as opened_database
from tests.serving.tools import replay


@pytest.fixture
def address() -> Iterator[str]:
    """A service that answers to the key "right"."""
    with answering() as found:
        yield found


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No service is configured but by the test, and nothing is remembered from another one."""
    import streamlit as st

    for name in (service.ADDRESS, service.KEY, "BALANCER_DATABASE"):
        monkeypatch.delenv(name, raising=False)
    st.cache_data.clear()


def shown(app: AppTest) -> str:
    places = (app.markdown, app.caption, app.info, app.warning, app.error, app.success, app.text_input)
    return " ".join(str(each.value) for place in places for each in place)


@pytest.mark.usefixtures("runs")
def test_without_a_service_there_is_no_such_page() -> None:
    app = opened()
    assert not app.exception
    with pytest.raises(Exception, match="service"):
        app.switch_page("views/service.py").run()
    assert not service.target().configured


@pytest.mark.usefixtures("runs")
def test_traffic_warnings_and_models_of_a_service(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["streamlit_app.py", "--service", f"{address}/"])
    monkeypatch.setenv(service.KEY, "right")
    app = opened("service")
    assert not app.exception and not app.error
    tiles = {metric.label: metric.value for metric in app.metric}
    assert tiles == {
        "Transactions": "1,000",
        "Transactions a second": "–",
        "Alarms": "2.00 %",
        "Typical latency": "2.0 ms",
        "Slow latency": "9.2 ms",
        "Failed requests": "10.00 %",
    }
    warnings = " ".join(each.value for each in app.warning)
    assert "amount (index 0.30)" in warnings.replace("\\", "")
    assert "2.00 %" in warnings and "1.00 %" in warnings
    assert "The challenger second is better than the champion mine" in app.info[0].value
    assert "decides for 5 % of the entities" in shown(app)
    assert app.dataframe[-1].value["alert rate"].to_list() == [0.01, 0.02]
    assert "right" not in shown(app).split(), "the key is not shown"


@pytest.mark.usefixtures("runs")
def test_what_goes_wrong_is_one_sentence(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for where, said in (
        (address, "lacks the scope operator"),
        ("http://127.0.0.1:1", "is running"),
        ("http://u:secret@h", "is no address"),
    ):
        monkeypatch.setenv(service.ADDRESS, where)
        monkeypatch.setenv(service.KEY, "wrong")
        app = opened("service")
        assert not app.exception
        assert all(said in error.value and "\n" not in error.value for error in app.error)
        assert len(app.error) == 1
        assert "secret" not in shown(app) and "wrong" not in shown(app)


def test_days_of_a_database(runs: Path, tiny_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'service.db'}"
    database = opened_database(url)
    monkeypatch.setenv("BALANCER_DATABASE", url)
    assert "decided about no transaction" in opened("service").info[-1].value
    model = LoadedModel.load(runs / "first", "first")
    replay(database, model, pl.read_parquet(tiny_table).sort("time").tail(120), size=20)
    database.close()
    import streamlit as st

    st.cache_data.clear()
    app = opened("service")
    assert not app.exception and not app.error
    assert url not in shown(app), "a URL may have a password"
    assert app.dataframe[-1].value["transactions"].to_list() == [120]
    monkeypatch.setenv("BALANCER_DATABASE", f"sqlite:///{tmp_path / 'missing.db'}")
    st.cache_data.clear()
    assert "does not exist" in opened("service").error[0].value


@pytest.mark.slow
def test_a_real_service(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = opened_database(f"sqlite:///{tmp_path / 'service.db'}")
    token = keys.create(database, "bank", ("operator",))[1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = create_app(ServeConfig(run=runs / "first", database=database.shown))
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.05)
        monkeypatch.setenv(service.ADDRESS, f"http://127.0.0.1:{port}")
        monkeypatch.setenv(service.KEY, token)
        page = opened("service")
        assert not page.exception and not page.error
        assert "**first** decides" in shown(page)
        assert "no transaction on these days" in page.info[-1].value
        # Counters are those of the process, in which other tests may have asked for other routes.
        assert "/metrics" in page.dataframe[0].value["route"].to_list()
        where = service.target()
        with pytest.raises(InputError, match="there is no challenger"):
            service.ask(where.address, where.key, "/v1/models/comparison", "rows")
        assert token not in repr(where)
    finally:
        server.should_exit = True
        thread.join()
        database.close()


def test_what_is_no_service(address: str) -> None:
    for wrong in ("http://127.0.0.1:1", f"{address}/else", "http://[", "http://", "ftp://h", "http://u:p@h"):
        with pytest.raises(InputError, match=r"check the address|is no address"):
            service.ask(wrong, "right", "/v1/monitoring", "days")
    with pytest.raises(InputError, match="check the address"):
        service.ask(address, "right", "/v1/models", "days")


def test_metrics_are_parsed_and_latency_is_interpolated() -> None:
    found = service.parse_metrics(METRICS)
    assert found.requests() == 100 and found.requests(failed=True) == 10
    assert found.latency(0.25) == pytest.approx(0.0015)
    assert found.latency(0.5, "/v1/none") is None
    assert found.routes()["requests"].to_list() == [5, 100]
    assert service.parse_metrics("").latency(0.5) is None
    assert service.parse_metrics('a{x="1, {2}",y="z"} 3').values["a"] == [({"x": "1, {2}", "y": "z"}, 3.0)]


def test_a_usual_day_has_no_warning() -> None:
    usual = DAY | {"alert_rate": 0.011, "fields_changed": [], "drift": None}
    assert service.early_warnings({"days": [usual, BEFORE]}) == []
    assert service.early_warnings({"days": []}) == []


def test_champion_against_challenger_within_noise_and_without_labels() -> None:
    assert service.comparison_verdict(COMPARISON)[0] == "better"
    noise = COMPARISON | {"average_precision_difference": measured(0.01, -0.02, 0.03)}
    assert "no clear difference" in service.comparison_verdict(noise)[1]
    none = COMPARISON | {"average_precision_difference": measured(None), "labelled": 0, "frauds": 0}
    assert "no verdict" in service.comparison_verdict(none)[1]
    worse = COMPARISON | {"average_precision_difference": measured(-0.04, -0.07, -0.01)}
    assert "is worse than the champion" in service.comparison_verdict(worse)[1]


def test_the_charts_have_a_line_for_each_number() -> None:
    frame = service.frame_of({"days": [DAY, BEFORE | {"largest_drift": None, "model": "n"}], "notes": []})
    assert frame["day"].is_sorted()
    charts = service_charts.day_charts(frame)
    assert len(charts) == 3
    assert all("layer" in chart.to_dict() for chart in charts.values())
