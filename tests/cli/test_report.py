"""``balancer report``: the report of a run again, its JSON, and the PDF of one page."""

from __future__ import annotations

import json
import re
import shutil
import zlib
from pathlib import Path

import polars as pl
import pytest

from balancer.app.chart_parts import MODEL_COLOURS
from balancer.cli import main
from balancer.evaluation import pdf_fonts, report_chart
from balancer.evaluation.pdf_fonts import Letters, clean
from balancer.evaluation.report_pdf import render_pdf
from balancer.runs.run_report import RunReport, run_pdf


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The error of a command that must fail with exit code 2, in one line."""
    assert main(["report", *map(str, arguments)]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert "\n" not in error
    return error


def pages(content: bytes) -> int:
    return len(re.findall(rb"/Type\s*/Page\b", content))


def shown(content: bytes) -> str:
    """The texts that the built-in font writes."""
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", content, flags=re.DOTALL)
    texts = []
    for stream in streams:
        try:
            plain = zlib.decompress(stream)
        except zlib.error:
            continue
        texts += re.findall(rb"\(((?:[^()\\]|\\.)*)\) Tj", plain)
    return re.sub(r"\\(.)", r"\1", b" ".join(texts).decode("cp1252"))


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "mine"))


def test_the_report_of_training_is_printed_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    report = json.loads((run / "report.json").read_text())
    assert f"{report['test']['average_precision']:.3f}" in text
    assert "sampling: policy" in text
    assert "This run catches" in text
    assert "which training tuned on validation rows" in text


def test_json_is_that_of_the_file(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((run / "report.json").read_text())


def test_the_page_shows_the_verdict_and_the_models(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.pdf"
    assert main(["report", str(run), "--pdf", str(file)]) == 0
    assert str(file) in capsys.readouterr().out
    content = file.read_bytes()
    assert content.startswith(b"%PDF-")
    assert pages(content) == 1
    found, text = RunReport.load(run), shown(content)
    assert "Run mine" in text
    for wanted in (found.verdict.recommendation, "LightGBM", "Frauds caught", "Sampling", "Precision and recall", "transactions.parquet"):
        assert wanted in text
    assert f"{found.report['test']['average_precision']:.3f}" in text


def test_equal_runs_give_equal_bytes(run: Path) -> None:
    first = run_pdf(run)
    assert first == run_pdf(run)
    content = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(content | {"created": "2020-02-03T04:05:06+00:00"}))
    later = run_pdf(run)
    assert b"D:20200203040506" in later
    assert later != first


def test_a_file_is_replaced_only_if_asked(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.pdf"
    file.write_text("old")
    assert "--overwrite" in refused(capsys, run, "--pdf", file)
    assert file.read_text() == "old"
    assert main(["report", str(run), "--pdf", str(file), "--overwrite"]) == 0
    assert file.read_bytes().startswith(b"%PDF-")


def test_bad_input_is_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.pdf"
    assert "not a run folder" in refused(capsys, tmp_path / "none", "--pdf", target)
    assert "ends in .pdf" in refused(capsys, run, "--pdf", tmp_path / "a.txt")
    assert "does not exist" in refused(capsys, run, "--pdf", tmp_path / "no" / "a.pdf")
    assert "is a folder" in refused(capsys, run, "--pdf", Path(shutil.copytree(run, tmp_path / "folder.pdf")))
    assert "--pdf" in refused(capsys, run, "--overwrite")
    monkeypatch.setattr("balancer.dependencies.is_installed", lambda library: library != "fpdf")
    assert "--pdf needs fpdf: pip install 'balancer[report]'" in refused(capsys, run, "--pdf", target)
    monkeypatch.undo()
    for name in ("report.json", "decision.json", "schema.json", "predictions.parquet", "test_scores.parquet", "curves.parquet"):
        kept = (run / name).read_bytes()
        (run / name).write_text("damaged")
        assert name in refused(capsys, run, "--pdf", target)
        (run / name).write_bytes(kept)
    content = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(content | {"status": "running"}))
    assert "not complete" in refused(capsys, run, "--pdf", target)
    assert not target.exists()
    assert not list(tmp_path.glob(".a.pdf*"))


def test_an_older_run_has_a_page_too(run: Path) -> None:
    for name in ("test_scores.parquet", "curves.parquet"):
        (run / name).unlink()
    report = json.loads((run / "report.json").read_text())
    for metrics in (report["test"], *report["baselines"].values()):
        del metrics["alarms"]
    for name in ("network", "precision"):
        report["run"].pop(name, None)
    (run / "report.json").write_text(json.dumps(report))
    text = shown(run_pdf(run))
    assert "an earlier version wrote this run" in text
    assert "There is no curve" in text


def test_a_run_of_trees_alone(trees_run: Path) -> None:
    content = run_pdf(trees_run)
    assert pages(content) == 1
    assert "boosted trees alone" in shown(content)


NAMES = [
    "naïve – “café” €",
    "銀行の取引 不正",
    "Ελλάδα Łódź Привет",
    "שלום مرحبا",
    "🙂 👩‍👩‍👧 flags 🇩🇪",
    "a\tb\nc\x00\x1b[31m",
    "\ud800 half",
    "x" * 400,
    "𝔉𝔯𝔞𝔲𝔡",
    "",
    "%PDF (a) \\ <b>",
]


@pytest.mark.parametrize("fonts", ["those of this machine", "none"])
def test_any_name_can_be_shown_or_is_replaced(run: Path, fonts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fonts == "none":
        monkeypatch.setattr(pdf_fonts, "font_folders", list)
    monkeypatch.setattr(report_chart, "curves_png", lambda *_, **__: None)  # it shows no name of a file
    found = RunReport.load(run)
    for name in NAMES:
        content = render_pdf(
            name=name, table=f"/data/{name}.csv", created=found.created, report=found.report, verdict=found.verdict, curves=found.curves
        )
        assert pages(content) == 1


def test_letters_that_no_font_has_are_replaced() -> None:
    from fpdf import FPDF

    letters = Letters(FPDF(), ["Łódź"], folders=[])
    assert letters("Łódź −5 ≥ 銀") == "?ódz –5 >= ?"
    assert letters("a\x00b\nc\ud800") == "a?b c?"
    assert clean("a\u200bb") == "a\u200bb"


def test_a_font_of_the_machine_that_is_damaged_is_left_out(tmp_path: Path) -> None:
    from fpdf import FPDF

    whole = next((path for folder in pdf_fonts.font_folders() for path in folder.rglob("DejaVuSans.ttf")), None)
    cuts = [b"no font"] if whole is None else [b"no font", *(whole.read_bytes()[: whole.stat().st_size * part // 10] for part in range(10))]
    for content in cuts:
        (tmp_path / "DejaVuSans.ttf").write_bytes(content)
        assert Letters(FPDF(), ["Ł"], folders=[tmp_path]).family("Ł") == pdf_fonts.BUILT_IN


def test_colours_are_those_of_the_app() -> None:
    assert {name: MODEL_COLOURS[name] for name in report_chart.COLOURS} == report_chart.COLOURS


def test_curves_of_no_frauds_have_no_picture() -> None:
    assert report_chart.curves_png(pl.DataFrame({"model": [], "recall": [], "precision": []}), width=100, height=100) is None
