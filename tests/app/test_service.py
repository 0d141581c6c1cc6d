"""The panel Service: empty, from a database, from a service, and what goes wrong."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from streamlit.testing.v1 import AppTest

from balancer.app import service
from balancer.errors import InputError
from balancer.serving.models.loaded_model import LoadedModel
from tests.app.test_pages import opened
from tests.app.test_pages import runs as runs
from tests.app.test_pages import typed as typed
from tests.serving.tools import opened as opened_database
from tests.serving.tools import replay

DAY = {
    "day": "2026-05-01",
    "model": "m",
    "transactions": 1000,
    "alert_rate": 0.02,
    "estimated_precision": {"value": 0.4, "interval": [0.3, 0.5]},
    "true_precision": {"value": None, "interval": None},
    "expected_frauds": {"value": 12.0, "interval": [5.0, 19.0]},
    "largest_drift": {"field": "amount", "index": 0.3},
}


@pytest.fixture
def address() -> Iterator[str]:
    """A service with one day for the key "right"."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/else"):
                self.send_response(302)
                self.send_header("Location", "/v1/monitoring")
                self.end_headers()
                return
            allowed = self.headers["authorization"] == "Bearer right"
            content = json.dumps({"days": [DAY], "notes": ["a note"]} if allowed else {"error": "no"}).encode()
            self.send_response(200 if allowed else 403)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Be quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def panel() -> AppTest:
    return opened("threshold")


def typed_in(app: AppTest, address: str, key: str = "") -> AppTest:
    app.text_input(key="service-address").set_value(address)
    app.text_input(key="service-key").set_value(key)
    return app.run()


@pytest.mark.usefixtures("runs")
def test_without_an_address_the_panel_says_what_to_give() -> None:
    app = panel()
    assert not app.exception and not app.error
    assert "Give the address of a service" in app.info[-1].value


@pytest.mark.usefixtures("runs")
def test_days_of_a_service(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app = typed_in(panel(), f"{address}/", "right")
    assert not app.exception and not app.error
    assert app.dataframe[-1].value["alert rate"].to_list() == [0.02]
    assert app.caption[-1].value == "a note"
    app = typed_in(panel(), address, "wrong")
    assert "lacks the scope operator" in app.error[0].value
    monkeypatch.setenv(service.ADDRESS, address)
    monkeypatch.setenv(service.KEY, "right")
    app = panel()
    assert app.text_input(key="service-key").value == ""  # the browser does not see it
    assert app.dataframe[-1].value["largest drift"].to_list() == [0.3]
    app = typed_in(app, address.replace("127.0.0.1", "localhost"))
    assert "lacks the scope operator" in app.error[0].value  # the key of the environment is for its own address


def test_days_of_a_database(runs: Path, tiny_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'service.db'}"
    database = opened_database(url)
    app = typed_in(panel(), url)
    assert "decided about no transaction" in app.info[-1].value
    model = LoadedModel.load(runs / "first", "first")
    replay(database, model, pl.read_parquet(tiny_table).sort("time").tail(120), size=20)
    database.close()
    service._days_of.clear()
    monkeypatch.setenv("BALANCER_DATABASE", url)
    app = panel()
    assert not app.exception and not app.error
    assert app.text_input(key="service-address").value == ""  # a URL may have a password
    assert app.dataframe[-1].value["transactions"].to_list() == [120]
    app = typed_in(app, f"sqlite:///{tmp_path / 'missing.db'}")
    assert "does not exist" in app.error[0].value


def test_what_is_no_service(address: str) -> None:
    for wrong in ("http://127.0.0.1:1", f"{address}/else", "http://[", "http://"):
        with pytest.raises(InputError, match=r"check the address"):
            service.ask(wrong, "right", 7)


def test_the_chart_has_a_line_for_each_number() -> None:
    frame = service.frame_of({"days": [DAY, DAY | {"day": "2026-04-30", "largest_drift": None}], "notes": []})
    assert frame["day"].is_sorted()
    content = service.days_chart(frame).to_dict()
    assert len(content["vconcat"]) == 3
