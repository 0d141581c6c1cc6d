"""What all pages share: the run in the address, a run that is gone, odd names and paths, damaged files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from balancer.app.browsing import read_run
from balancer.app.loading import plain

APP = str(Path(__file__).resolve().parents[2] / "app" / "streamlit_app.py")
ABOUT_A_RUN = ("runs", "weights", "threshold", "transactions", "model")
ODD = "*a* [b](c) _d_ `e` $f$ :red[g] #h"


@pytest.fixture
def runs(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runs folder whose path is a pattern, with two runs; `first` is the older one."""
    folder = tmp_path / "runs [1-3]*"
    for name in ("first", "second"):
        shutil.copytree(tiny_run, folder / name)
    content = json.loads((folder / "first" / "run.json").read_text())
    (folder / "first" / "run.json").write_text(json.dumps(content | {"created": "2020-01-01T00:00:00+00:00"}))
    monkeypatch.setenv("BALANCER_RUNS", str(folder))
    monkeypatch.setattr("sys.argv", ["streamlit_app.py"])
    return folder


def opened(page: str = "runs", *, run: str | None = None) -> AppTest:
    app = AppTest.from_file(APP, default_timeout=600)
    if run is not None:
        app.query_params["run"] = run
    app = app.run()
    return app if page == "runs" else app.switch_page(f"views/{page}.py").run()


def said(app: AppTest) -> str:
    return " ".join(each.value for each in (*app.error, *app.warning, *app.info))


def test_a_path_with_brackets_and_stars_is_no_pattern(runs: Path) -> None:
    assert [read_run(runs / name).problem for name in ("first", "second")] == ["", ""]
    for page in ABOUT_A_RUN:
        app = opened(page)
        assert not app.exception
        assert not app.error


def test_a_link_names_the_run_and_the_address_follows_the_choice(runs: Path) -> None:
    app = opened("weights", run="first")
    assert "first" in app.title[0].value
    app.sidebar.selectbox[0].set_value("second").run()
    assert app.query_params["run"] in ("second", ["second"])
    assert "second" in app.title[0].value
    assert (runs / "second").is_dir()


@pytest.mark.usefixtures("runs")
def test_a_link_to_a_run_that_does_not_exist_names_it() -> None:
    app = opened("model", run="never there")
    assert not app.exception
    assert "never there" in app.error[0].value and "is gone" in app.error[0].value
    assert not app.metric


@pytest.mark.parametrize("page", ABOUT_A_RUN)
def test_a_run_that_is_deleted_while_it_is_open_is_named_and_no_other_is_shown(runs: Path, page: str) -> None:
    app = opened(page, run="first")
    assert not app.error
    shutil.rmtree(runs / "first")
    app.run()
    assert not app.exception
    assert "**first** is gone" in app.error[0].value
    assert not app.metric
    assert not [button for button in app.button if "Save" in button.label and not button.disabled]
    assert app.sidebar.selectbox[0].value == "first"
    app.sidebar.selectbox[0].set_value("second").run()
    assert not app.error
    assert "second" in app.title[0].value


def test_a_save_after_the_run_was_deleted_writes_nothing(runs: Path) -> None:
    app = opened("threshold", run="first")
    before = (runs / "second" / "decision.json").read_bytes()
    shutil.rmtree(runs / "first")
    for button in app.button:
        if "Save" in button.label and not button.disabled:
            button.click()
    app.run()
    assert "is gone" in app.error[0].value
    assert not (runs / "first").exists()
    assert (runs / "second" / "decision.json").read_bytes() == before


def test_names_are_shown_as_they_are(runs: Path) -> None:
    (runs / "first").rename(runs / ODD)
    for page in ABOUT_A_RUN:
        app = opened(page, run=ODD)
        assert not app.exception
        assert not app.error
        title = app.title[0].value
        assert plain(ODD) in title and ODD not in title


@pytest.mark.parametrize("text", ["*a*", "[b](c)", "_d_", "`e`", "$f$", ":red[g]", "# h", "<i>", "a&amp;b", "~~j~~", "- k", "1. l", "+ m"])
def test_marks_of_markdown_are_escaped(text: str) -> None:
    markdown_it = pytest.importorskip("markdown_it")
    shown = markdown_it.MarkdownIt("commonmark").render(plain(text))
    inside = shown.removeprefix("<p>").removesuffix("</p>\n")
    unescaped = inside.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert unescaped == text
    assert plain("card_2 in snake_case") == "card_2 in snake_case"


@pytest.mark.parametrize("content", [b"", b"damaged", b"\x00" * 4000])
@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "trees/second-0.txt", "precision.json", "schema.json"])
def test_a_damaged_file_of_the_model_is_one_sentence(runs: Path, name: str, content: bytes) -> None:
    file = runs / "first" / name
    file.write_bytes(content)
    app = opened("model", run="first")
    assert not app.exception
    assert len(app.error) == 1
    assert Path(name).name.split("-")[0] in app.error[0].value
    assert "\n" not in app.error[0].value


@pytest.mark.parametrize("name", ["model.safetensors", "trees/second-0.txt"])
def test_a_file_that_is_cut_off_is_one_sentence(runs: Path, name: str) -> None:
    file = runs / "first" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    app = opened("model", run="first")
    assert not app.exception
    assert app.error
    app = opened("weights", run="first")
    assert not app.exception


def test_many_broken_runs_are_one_compact_list(runs: Path) -> None:
    for number in range(5):
        shutil.copytree(runs / "second", runs / f"broken {number}")
        (runs / f"broken {number}" / "report.json").write_text("{")
    app = opened()
    assert not app.exception
    assert any("5 runs can't be shown" in each.label for each in app.expander)
    assert all(f"broken {number}" in said(app) for number in range(5))


@pytest.mark.parametrize(("page", "name", "content"), [("model", "precision.json", {"about": {}}), ("model", "model.json", {"config": None}),
    ("weights", "report.json", None), ("runs", "schema.json", {"classes": {}}), ("threshold", "decision.json", {"threshold": "high"})])  # fmt: skip
def test_content_of_another_kind_is_one_sentence(runs: Path, page: str, name: str, content: object) -> None:
    file = runs / "first" / name
    if content is None:
        content = json.loads(file.read_text()) | {"run": {"network": {"form": 1}, "policy": 3}}
    file.write_text(json.dumps(content))
    app = opened(page, run="first")
    assert not app.exception
    assert len(app.error) == 1
    assert "\n" not in app.error[0].value


def test_choices_survive_a_change_of_the_page_and_of_the_run(runs: Path) -> None:
    shutil.copytree(runs / "second", runs / "third")
    app = opened(run="first")
    app.multiselect(key="compare-with").select("second").select("third").run()
    app = app.switch_page("views/model.py").run().switch_page("views/runs.py").run()
    assert set(app.multiselect(key="compare-with").value) == {"second", "third"}
    app.sidebar.selectbox[0].set_value("second").run()
    assert not app.exception
    shutil.rmtree(runs / "third")
    app.run()
    assert not app.exception
    assert not app.error
    app = opened("weights", run="first")
    app.slider(key="game-hardness").set_value(1.5).run()
    app = app.switch_page("views/threshold.py").run().switch_page("views/weights.py").run()
    assert app.slider(key="game-hardness").value == 1.5
