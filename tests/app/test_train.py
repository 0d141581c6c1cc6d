"""The page Train on tables that are not the project's: uploads, unclear roles, a gap that is too long, leaks,
results at the level of chance, and a run from upload to verdict."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from streamlit.testing.v1 import AppTest

import balancer.app.watching  # noqa: F401 (imported before a test replaces jobs.start, of which it would keep the replacement)
from balancer.app import jobs
from balancer.app.browsing import read_run
from balancer.app.table_checks import candidates, check_upload, kept_lists, page_words, shorter_gap, unclear_roles, weak_result
from balancer.data.roles import resolve_spec
from balancer.errors import InputError
from tests.app.test_jobs import until
from tests.app.test_pages import opened
from tests.app.test_pages import typed as typed
from tests.conftest import TINY

DAYS, ROWS = 60, 1_600


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty runs folder."""
    monkeypatch.setenv("BALANCER_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def payments(rows: int = ROWS, *, second_time: bool = True) -> pl.DataFrame:
    """Payments of 60 days with names of their own; with `second_time` two columns may be the time."""
    rng = np.random.default_rng(5)
    seconds = np.sort(rng.uniform(0, DAYS * 86_400, rows))
    fraud = rng.random(rows) < 0.08
    start = datetime(2024, 3, 1)
    posted = [(start + timedelta(seconds=float(each))).strftime("%Y-%m-%d %H:%M:%S") for each in seconds]
    frame = pl.DataFrame(
        {
            "posted_at": posted,
            "account": [f"A{each % 90}" for each in range(rows)],
            "price": np.where(fraud, rng.gamma(3, 60, rows), rng.gamma(2, 30, rows)).round(2),
            "channel": np.where(rng.random(rows) < 0.2 + 0.6 * fraud, "web", "shop"),
            "hours_since_login": rng.gamma(2, 3, rows).round(3),
            "chargeback": fraud.astype(int),
        }
    )
    return frame.with_columns(created_at=pl.Series(posted)) if second_time else frame


def with_path(path: Path) -> AppTest:
    app = opened("train")
    app.get_by_key("how").set_value("a path").run()  # type: ignore[attr-defined]
    app.text_input(key="path").set_value(str(path)).run()
    assert not app.exception
    return app


def roles(app: AppTest) -> dict[str, str]:
    return dict(app.dataframe[-1].value.set_index("column")["role"].to_dict())


def start_button(app: AppTest) -> Any:
    return next(button for button in app.button if button.label == "Start training")


@pytest.mark.slow
def test_a_table_with_an_unclear_role_from_upload_to_verdict(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = jobs.start
    monkeypatch.setattr(jobs, "start", lambda runs, name, kind, arguments, **how: begin(runs, name, kind, [*arguments, *TINY], **how))
    app = opened("train")
    app.get_by_key("how").set_value("upload").run()  # type: ignore[attr-defined]
    app.get("file_uploader")[0].set_value(("my payments.csv", payments().write_csv().encode(), "text/csv")).run()  # type: ignore[attr-defined]
    assert not app.exception
    assert "posted_at, created_at" in app.warning[0].value.replace("\\", "")
    kept = {"account": "entity", "price": "amount", "channel": "categorical", "hours_since_login": "numeric", "chargeback": "label"}
    assert kept.items() <= roles(app).items(), "what was found is kept beside the doubt"
    assert start_button(app).disabled
    upload = folder.resolve() / "uploads" / "my_payments.csv"
    app.selectbox(key=f"role-time-{upload}").set_value("posted_at").run()
    assert roles(app) == kept | {"posted_at": "time", "created_at": "left out"}
    assert not app.error
    app.selectbox(key="policy").set_value("auto")
    app.text_input(key="run-name").set_value("mine").run()
    start_button(app).click().run()
    assert not app.exception
    (job,) = jobs.find_jobs(folder)
    until(lambda: not job.alive, 300)
    assert read_run(job.out).status == "complete", job.tail()
    app = opened("train")
    assert not app.exception
    said = [each.value for each in (*app.success, *app.warning) if "is trained" in each.value]
    assert len(said) == 1
    assert bool(app.success) == (weak_result(read_run(job.out).metrics) == "")
    next(button for button in app.button if button.label == "See the results").click().run()
    assert not app.exception
    assert app.sidebar.selectbox[0].value == "mine"


@pytest.mark.usefixtures("folder")
def test_a_gap_that_is_too_long_is_corrected_by_a_button(tmp_path: Path) -> None:
    file = tmp_path / "payments.csv"
    payments(second_time=False).write_csv(file)
    app = with_path(file)
    assert not start_button(app).disabled
    app.text_input(key=f"gap-{file}").set_value("7d").run()
    assert "--" not in app.warning[0].value and "Gap" in app.warning[0].value
    assert start_button(app).disabled
    next(button for button in app.button if button.label == "Use a gap of 3 days").click().run()
    assert app.text_input(key=f"gap-{file}").value == "72h"
    assert not app.warning
    assert not start_button(app).disabled
    app.text_input(key=f"gap-{file}").set_value("soon").run()
    assert "Gap" in app.error[0].value and "--" not in app.error[0].value
    app.text_input(key=f"gap-{file}").set_value("30d")
    app.selectbox(key=f"split-{file}").set_value("random").run()
    assert not app.warning and not app.error
    assert not start_button(app).disabled


def test_the_shares_of_the_parts_reach_the_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(jobs, "start", lambda runs, name, kind, arguments, **how: started.append(arguments))
    file = tmp_path / "payments.csv"
    payments(second_time=False).write_csv(file)
    app = with_path(file)
    app.number_input(key=f"train-{file}").set_value(70)
    app.number_input(key=f"validation-{file}").set_value(15).run()
    assert not app.exception and not app.error
    start_button(app).click().run()
    (arguments,) = started
    assert "--history-length" not in arguments, "what is not chosen is left to balancer train"
    written = Path(arguments[arguments.index("--spec") + 1])
    split = resolve_spec(file, spec_file=written).split
    assert (split.train, split.validation, split.test) == (0.7, 0.15, 0.15)
    assert written.is_relative_to(folder.resolve())
    app.number_input(key=f"train-{file}").set_value(90).run()
    assert "no rows are left for the test" in app.error[0].value
    assert not any(button.label == "Start training" for button in app.button)


@pytest.mark.usefixtures("folder")
def test_a_table_without_features_is_refused_and_a_leak_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "bare.csv"
    payments(300).select("posted_at", "chargeback").write_csv(file)
    app = with_path(file)
    assert "no column can be a feature" in app.warning[0].value
    assert start_button(app).disabled
    leaky = tmp_path / "leaky.csv"
    payments(second_time=False).with_columns(status=pl.when(pl.col("chargeback") == 1).then(pl.lit("b")).otherwise(pl.lit("a"))).write_csv(
        leaky
    )
    app.text_input(key="path").set_value(str(leaky)).run()
    assert "suspected leak" in app.warning[0].value
    next(button for button in app.button if button.label == "Leave out status").click().run()
    assert not app.exception and not app.warning
    assert roles(app)["status"] == "left out"
    app.selectbox(key=f"role-label-{leaky}").set_value("– no column –").run()
    assert "Choose the column of the label" in app.warning[0].value
    assert start_button(app).disabled


TEXT = "time,card,amount,label\n" + "".join(
    f"2024-01-{1 + row % 28:02} 10:00,c{row % 9},{row}.5,{int(row % 10 == 0)}\n" for row in range(400)
)


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        (TEXT.encode().replace(b"c3", b"c\0"), "zero byte"),
        ((TEXT * 40).encode() + b"2024-01-01 10:00,c\0,1.5,0\n", "zero byte"),
        (TEXT.encode("utf-16")[:-1], "save it as UTF-8"),
        (bytes(range(256)) * 99, "give a CSV"),
        (b"", "is empty"),
        (b"PK\x03\x04[Content_Types].xml" + bytes(300), "save the table as CSV"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_an_upload_that_cannot_be_read_is_refused_with_the_remedy(content: bytes, remedy: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=remedy) as error:
        check_upload(path)
    assert not path.exists()
    assert "--" not in str(error.value)
    assert str(tmp_path) not in str(error.value)


def test_an_upload_in_utf_16_is_read(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(TEXT, encoding="utf-16")
    check_upload(path)
    assert path.exists()


def test_a_refused_upload_is_one_sentence_on_the_page(folder: Path) -> None:
    app = opened("train")
    app.get_by_key("how").set_value("upload").run()  # type: ignore[attr-defined]
    app.get("file_uploader")[0].set_value(("bad.csv", TEXT.encode().replace(b"c3", b"c\0"), "text/csv")).run()  # type: ignore[attr-defined]
    assert not app.exception
    assert "zero byte" in app.error[0].value
    assert not list((folder / "uploads").glob("*"))


@pytest.mark.usefixtures("folder")
def test_names_with_the_marks_of_patterns(tmp_path: Path) -> None:
    odd = tmp_path / "a[1]*b"
    odd.mkdir()
    for name in ("x[2].csv", "y[1].parquet"):
        frame = payments(second_time=False)
        frame.write_csv(odd / name) if name.endswith("csv") else frame.write_parquet(odd / name)
        app = with_path(odd / name)
        assert not app.error
        assert roles(app)["chargeback"] == "label"


@pytest.mark.usefixtures("folder")
def test_trees_alone_have_no_budget(tmp_path: Path) -> None:
    file = tmp_path / "payments.csv"
    payments(second_time=False).write_csv(file)
    app = with_path(file)
    app.selectbox(key="learner").set_value("trees").run()
    assert not app.exception
    assert not app.radio
    assert not start_button(app).disabled


def test_words_of_the_page() -> None:
    text = "lower --label-delay or [split] gap (--gap), or give --time none; --hash-buckets"
    assert page_words(text) == (
        "lower the field “Label delay” or the field “Gap”, or choose no column for “Time”; --hash-buckets of balancer train"
    )
    assert "[split]" not in page_words("give more rows, or change the shares in [split]")


def test_a_name_is_proposed_until_one_is_typed(folder: Path, tmp_path: Path) -> None:
    (folder / "payments").mkdir(parents=True)
    for name in ("payments.csv", "other.csv"):
        payments(300, second_time=False).write_csv(tmp_path / name)
    app = with_path(tmp_path / "payments.csv")
    assert app.text_input(key="run-name").value == "payments-2"
    app.text_input(key="path").set_value(str(tmp_path / "other.csv")).run()
    assert app.text_input(key="run-name").value == "other"
    app.text_input(key="run-name").set_value("mine").run()
    app.text_input(key="path").set_value(str(tmp_path / "payments.csv")).run()
    assert app.text_input(key="run-name").value == "mine"


def test_doubts_and_what_they_propose() -> None:
    doubts = ["several columns may be the time (a, b): name it with --time", "no column can be a feature: name columns with --numeric or …"]
    assert list(unclear_roles(doubts)) == ["time", "numeric"]
    assert candidates(doubts[0], ["x", "b", "a"]) == ["b", "a", "x"]


def test_features_follow_the_single_roles_and_keep_what_was_done_by_hand() -> None:
    before = {"numeric": ("a", "b"), "categorical": ("card", "kind"), "context": ()}
    shown = {"numeric": ["a", "extra"], "categorical": ["card", "kind"], "context": []}
    now = {"numeric": ("a", "b", "c"), "categorical": ("kind",), "context": ("shop",)}
    kept = kept_lists(shown, before, now, {"card"})
    assert kept == {"numeric": ["a", "c", "extra"], "categorical": ["kind"], "context": ["shop"]}


def test_a_gap_is_proposed_only_where_the_gap_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "payments.csv"
    payments(second_time=False).write_csv(file)
    assert shorter_gap(file, {}, ["something else"]) is None
    assert shorter_gap(file, {"gap": "7d"}, ["the gap of 7 days is longer"]) == ("72h", "3 days")


def test_a_result_at_the_share_of_frauds_is_weak() -> None:
    assert "level of chance" in weak_result({"average_precision": 0.024, "positives": 20, "rows": 1000})
    assert "hardly above" in weak_result({"average_precision": 0.026, "positives": 20_000, "rows": 1_000_000})
    assert weak_result({"average_precision": 0.4, "positives": 200, "rows": 10_000}) == ""
    assert weak_result({"average_precision": None, "positives": 0, "rows": 10}) == ""
