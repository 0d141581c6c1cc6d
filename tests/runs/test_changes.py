"""score says what changed since training, and a copied run finds its table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from balancer.cli import main
from balancer.runs.run_folder import RunFolder

NOTHING = ("Fields that changed", "without a code")


@pytest.fixture(scope="module")
def parts(tiny_table: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The first two thirds of the table, and the rest, which has the rows of the test part."""
    table = pl.read_parquet(tiny_table)
    return table[:4000], table[4000:]


def score(run: Path, frame: pl.DataFrame, folder: Path, *flags: str) -> int:
    frame.write_parquet(folder / "in.parquet")
    return main(["score", str(run), "--input", str(folder / "in.parquet"), "--output", str(folder / "out.parquet"), "--overwrite", *flags])


def result(run: Path, frame: pl.DataFrame, folder: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, object]:
    capsys.readouterr()
    assert score(run, frame, folder, "--json", *flags) == 0
    content = json.loads(capsys.readouterr().out)
    assert isinstance(content, dict)
    return content


def test_rows_like_those_of_training_are_not_reported(
    tiny_run: Path, parts: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts[0].write_parquet(tmp_path / "past.parquet")
    found = result(tiny_run, parts[1], tmp_path, capsys, "--past", str(tmp_path / "past.parquet"))
    assert found["warnings"] == []
    assert found["alert_rate"]["is_usual"]  # type: ignore[index]
    drift = found["drift"]
    assert isinstance(drift, dict)
    assert set(drift["fields"]) > {"amount_log", "hour", "score"}
    assert not {"amount_log", "hour", "score"} & {each["field"] for each in drift["notable"]}


def test_amounts_in_cents_are_reported(
    tiny_run: Path,
    parts: tuple[pl.DataFrame, pl.DataFrame],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    cents = parts[1].with_columns(pl.col("amount") * 100)
    found = result(tiny_run, cents, tmp_path, capsys)
    drift = found["drift"]
    assert isinstance(drift, dict)
    worst = {each["field"]: each for each in drift["notable"]}
    assert worst["amount_log"]["psi"] > 1
    before, now = worst["amount_log"]["median"]
    assert now > before + 3
    assert score(tiny_run, cents, tmp_path) == 0
    printed = capsys.readouterr()
    assert "Fields that changed since training" in printed.out
    assert "amount_log" in printed.out
    assert max(map(len, printed.out.splitlines()[1:])) <= 80
    if not found["alert_rate"]["is_usual"]:  # type: ignore[index]
        assert "usual for this run" in printed.err


def test_an_unusual_share_of_alarms_is_a_warning(
    tiny_run: Path, parts: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    decision = json.loads((run / "decision.json").read_text())
    decision["threshold"] = 0.0
    (run / "decision.json").write_text(json.dumps(decision))
    # Every test row raises an alarm at this threshold too.
    assert result(run, parts[1], tmp_path, capsys)["warnings"] == []
    decision["threshold"] = 1e-9
    (run / "decision.json").write_text(json.dumps(decision))
    pl.read_parquet(run / "predictions.parquet").with_columns(score=pl.lit(0.0)).write_parquet(run / "predictions.parquet")
    assert score(run, parts[1], tmp_path) == 0
    assert "warning: 100 % of the rows raise an alarm; " in capsys.readouterr().err
    assert result(run, parts[1], tmp_path, capsys)["warnings"]


def test_values_that_training_did_not_have_are_listed(
    tiny_run: Path, parts: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schema = json.loads((tiny_run / "schema.json").read_text())
    column = schema["categorical_fields"][0]
    half = pl.when(pl.int_range(pl.len()) % 2 == 0).then(pl.lit("never seen")).otherwise(pl.col(column).cast(pl.String)).alias(column)
    changed = parts[1].with_columns(half)
    drift = result(tiny_run, changed, tmp_path, capsys)["drift"]
    assert isinstance(drift, dict)
    assert drift["unseen"][column]["rows"] >= 1000
    assert drift["unseen"][column]["examples"][0] == "never seen"
    assert score(tiny_run, changed, tmp_path) == 0
    out = capsys.readouterr().out
    assert column in out
    assert "never seen" in out


def test_a_run_without_a_reference_says_so_in_one_note(
    tiny_run: Path, parts: tuple[pl.DataFrame, pl.DataFrame], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / "reference.json").unlink()
    assert score(run, parts[1], tmp_path) == 0
    printed = capsys.readouterr()
    assert printed.err.count("reference.json") == 1
    assert not any(text in printed.out for text in NOTHING)


def test_a_run_copied_with_its_table_finds_it(tiny_table: Path, tiny_run: Path, tmp_path: Path) -> None:
    content = json.loads((tiny_run / "run.json").read_text())
    assert Path(content["table"]["absolute"]) == tiny_table.resolve()
    there = tmp_path / "elsewhere"
    there.mkdir()
    run = shutil.copytree(tiny_run, there / "run")
    table = shutil.copy(tiny_table, there / content["table"]["relative"].removeprefix("../"))
    content["table"]["absolute"] = content["config"]["dataset"] = "/no/such/table.parquet"
    (run / "run.json").write_text(json.dumps(content))
    assert RunFolder.open(run).find_table().samefile(table)


def test_commands_take_the_table_of_a_run_that_has_moved(
    tiny_table: Path, network_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(network_run, tmp_path / "run")
    content = json.loads((run / "run.json").read_text())
    content["table"] = {"absolute": "/no/such/table.parquet", "relative": "no.parquet"}
    content["config"]["dataset"] = "no.parquet"
    (run / "run.json").write_text(json.dumps(content))
    assert main(["quantize", str(run)]) == 2
    assert "name the table with --dataset" in capsys.readouterr().err
    other = tmp_path / "other.parquet"
    pl.read_parquet(tiny_table)[:-1].write_parquet(other)
    assert main(["quantize", str(run), "--dataset", str(other)]) == 2
    assert "is not the table" in capsys.readouterr().err
    moved = shutil.copy(tiny_table, tmp_path / "moved.parquet")
    assert main(["quantize", str(run), "--dataset", str(moved), "--max-drop", "0.9"]) == 0


def test_an_interrupted_run_is_continued_with_a_table_that_has_moved(
    tiny_table: Path, network_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(network_run, tmp_path / "run")
    content = json.loads((run / "run.json").read_text())
    content |= {"status": "running", "table": {}}
    content["config"]["dataset"] = "no.parquet"
    (run / "run.json").write_text(json.dumps(content))
    resume = ["train", "--resume", "--out", str(run)]
    assert main(resume) == 2
    assert "--dataset" in capsys.readouterr().err
    other = tmp_path / "other.parquet"
    pl.read_parquet(tiny_table)[:-1].write_parquet(other)
    assert main([*resume, "--dataset", str(other)]) == 2
    assert "has changed" in capsys.readouterr().err
    assert main([*resume, "--dataset", str(tiny_table)]) == 0


def test_the_last_rows_of_the_table_are_not_another_population(
    tiny_run: Path, tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pl.read_parquet(tiny_table).sort("time")
    for share in (0.8, 0.9):
        cut = int(share * len(table))
        table[:cut].write_parquet(tmp_path / "past.parquet")
        drift = result(tiny_run, table[cut:], tmp_path, capsys, "--past", str(tmp_path / "past.parquet"))["drift"]
        assert isinstance(drift, dict)
        assert [each for each in drift["notable"] if each["psi"] > 0.25] == []
    # A column that changed comes before the fields of the past that follow from it.
    dear = table[cut:].with_columns(pl.col("amount") * 100, channel=pl.lit("online"))
    drift = result(tiny_run, dear, tmp_path, capsys, "--past", str(tmp_path / "past.parquet"))["drift"]
    assert isinstance(drift, dict)
    assert {each["field"] for each in drift["notable"][:2]} == {"amount_log", "channel"}
    channel = next(each for each in drift["notable"] if each["field"] == "channel")
    assert channel["value"] == "online"
    assert channel["shares"][1] == 1.0
    assert score(tiny_run, dear, tmp_path) == 0
    shown = capsys.readouterr().out
    assert "online: 100.0 %" in shown
