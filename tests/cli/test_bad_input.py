"""Bad input on the command line: one line that names column, row, flag or file, exit code 2, and no output
folder."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from balancer.cli import main
from tests.conftest import TINY

Change = Callable[[pl.DataFrame], pl.DataFrame]


def value_at(row: int, column: str, value: object) -> Change:
    """Replace one cell; text or another type turns the column into text."""

    def change(frame: pl.DataFrame) -> pl.DataFrame:
        kept = frame[column] if isinstance(value, float | int) or value is None else frame[column].cast(pl.String)
        values = kept.to_list()
        values[row] = value
        return frame.with_columns(pl.Series(column, values))

    return change


def all_classes(value: int) -> Change:
    return lambda frame: frame.with_columns(is_fraud=pl.lit(value, pl.Int8))


def no_positive_between(low: float, high: float) -> Change:
    def change(frame: pl.DataFrame) -> pl.DataFrame:
        index = pl.int_range(frame.height)
        inside = (index >= low * frame.height) & (index < high * frame.height)
        return frame.with_columns(pl.when(inside).then(0).otherwise(pl.col("is_fraud")).cast(pl.Int8).alias("is_fraud"))

    return change


BAD_TABLES: dict[str, tuple[Change, tuple[str, ...], tuple[str, ...]]] = {
    "missing column": (lambda frame: frame, ("--amount", "amuont"), ("amuont", "amount")),
    "no label": (lambda frame: frame.drop("is_fraud"), (), ("--label",)),
    "NaN amount": (value_at(17, "amount", float("nan")), (), ("amount", "row 18")),
    "infinite amount": (value_at(17, "amount", float("inf")), (), ("amount", "row 18")),
    "text amount": (value_at(17, "amount", "twelve"), ("--amount", "amount"), ("amount", "row 18", "twelve")),
    "null time": (value_at(17, "time", None), (), ("time", "row 18")),
    "one class only": (all_classes(0), (), ("is_fraud",)),
    "no positive in validation": (no_positive_between(0.55, 0.85), (), ("is_fraud",)),
    "duplicate id": (value_at(18, "transaction_id", 18), (), ("transaction_id", "18")),
    "a negative class that is not there": (lambda frame: frame, ("--negative", "fine"), ("is_fraud", "fine")),
    "empty table": (lambda frame: frame.head(0), (), ("no rows",)),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_tables(case: str, tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, flags, named = BAD_TABLES[case]
    table = tmp_path / "table.parquet"
    change(pl.read_parquet(tiny_table)).write_parquet(table)
    refused(["train", "--dataset", str(table), *flags], named, tmp_path, capsys)


def refused(command: list[str], named: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail: exit 2, one line on stderr with all of ``named``, no run folder."""
    out = tmp_path / "run"
    extra = ["--out", str(out), *TINY] if command[0] == "train" else []
    assert main([*command, *extra]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    for word in named:
        assert word in error, error
    assert not out.exists()
    return error


def test_bad_files(tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = tiny_table.read_bytes()
    frame = pl.read_parquet(tiny_table)
    (tmp_path / "empty.parquet").write_bytes(b"")
    (tmp_path / "empty.csv").write_bytes(b"")
    (tmp_path / "torn.parquet").write_bytes(content[: len(content) // 2])
    lines = frame.head(50).write_csv().splitlines()
    lines[20] = lines[20].rsplit(",", 4)[0]
    (tmp_path / "torn.csv").write_text("\n".join(lines))
    times = frame.with_columns(pl.col("time").dt.strftime("%Y-%m-%d %H:%M:%S"))
    two = times.with_columns(pl.when(pl.int_range(pl.len()) == 99).then(pl.lit("31/12/2025 10:00")).otherwise(pl.col("time")).alias("time"))
    two.write_csv(tmp_path / "two_formats.csv")
    (tmp_path / "folder").mkdir()
    for name in ("empty.parquet", "empty.csv", "torn.parquet", "torn.csv", "absent.parquet", "folder"):
        refused(["train", "--dataset", str(tmp_path / name)], (name,), tmp_path, capsys)
    refused(["train", "--dataset", str(tmp_path / "two_formats.csv")], ("time", "31/12/2025 10:00"), tmp_path, capsys)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("entitty = 'card_id'", "entitty"),
        ("entity = 3", "entity"),
        ("label_delay = 'soon'", "label_delay"),
        ("[split]\ntrain = 2.0", "train"),
        ("[split]\nvalidatoin = 0.2", "validatoin"),
        ("entity = 'nobody'", "nobody"),
        ("this is no TOML", "spec.toml"),
    ],
)
def test_bad_specs(text: str, named: str, tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text(text)
    refused(["train", "--dataset", str(tiny_table), "--spec", str(spec)], (named,), tmp_path, capsys)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--policy", "magic"), "magic"),
        (("--policy", "constant:share=2"), "share=2"),
        (("--attention", "imaginary"), "imaginary"),
        (("--d-model", "30"), "--d-model is 30"),
        (("--gap", "400d"), "gap"),
        (("--seed", "-1"), "--seed"),
    ],
)
def test_bad_flags(flags: tuple[str, ...], named: str, tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(["train", "--dataset", str(tiny_table), "--out", str(out), *TINY, *flags]) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1
    assert not out.exists()


def test_an_unwritable_place_is_named(tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main(["train", "--dataset", str(tiny_table), "--out", str(tmp_path / "file" / "run"), *TINY]) == 2
    assert "--out" in capsys.readouterr().err


def test_dropping_bad_rows_counts_them(tiny_table: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, output = tmp_path / "table.parquet", tmp_path / "scored.parquet"
    value_at(17, "amount", float("nan"))(pl.read_parquet(tiny_table)).write_parquet(table)
    score = ["score", str(tiny_run), "--input", str(table), "--output", str(output)]
    error = refused(score, ("amount", "row 18"), tmp_path, capsys)
    assert "--bad-rows drop" in error
    assert not output.exists()
    assert main([*score, "--bad-rows", "drop"]) == 0
    assert "dropped 1 row: " in capsys.readouterr().out
    assert pl.read_parquet(output).height == pl.read_parquet(tiny_table).height - 1


def test_odd_but_good_rows_are_scored(tiny_table: Path, tiny_run: Path, tmp_path: Path) -> None:
    frame = pl.read_parquet(tiny_table).head(200).drop("is_fraud")
    amounts = frame["amount"].to_list()
    amounts[0], amounts[1], amounts[2] = 1e12, -35.0, 0.0
    frame = frame.with_columns(
        pl.Series("amount", amounts),
        pl.when(pl.int_range(pl.len()) == 3)
        .then(pl.lit("a category never seen"))
        .otherwise(pl.col("merchant_category"))
        .alias("merchant_category"),
        pl.when(pl.int_range(pl.len()) == 4).then(pl.lit("a card never seen")).otherwise(pl.col("card_id")).alias("card_id"),
    )
    source, output = tmp_path / "odd.parquet", tmp_path / "scored.parquet"
    frame.write_parquet(source)
    assert main(["score", str(tiny_run), "--input", str(source), "--output", str(output)]) == 0
    scored = pl.read_parquet(output)
    assert scored["score"].is_finite().all() and scored.height == 200


def test_score_and_evaluate_refuse_what_they_cannot_use(
    tiny_table: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pl.read_parquet(tiny_table)
    unlabelled, strange = tmp_path / "unlabelled.parquet", tmp_path / "strange.parquet"
    frame.drop("is_fraud").write_parquet(unlabelled)
    value_at(5, "is_fraud", 7)(frame).write_parquet(strange)
    run, table = str(tiny_run), str(tiny_table)
    refused(["evaluate", run, "--dataset", str(unlabelled)], ("is_fraud",), tmp_path, capsys)
    refused(["evaluate", run, "--dataset", str(strange)], ("is_fraud", "7"), tmp_path, capsys)
    refused(["score", run, "--input", table, "--output", str(tmp_path / "x.xlsx")], ("--output", ".parquet"), tmp_path, capsys)
    refused(["score", run, "--input", table, "--output", str(tmp_path / "no" / "x.csv")], ("--output",), tmp_path, capsys)
    refused(["score", str(tmp_path), "--input", table, "--output", str(tmp_path / "x.csv")], ("run.json",), tmp_path, capsys)
    missing = tmp_path / "missing.parquet"
    frame.drop("amount").write_parquet(missing)
    refused(["score", run, "--input", str(missing), "--output", str(tmp_path / "x.csv")], ("amount",), tmp_path, capsys)


def test_simulate_refuses_figures_out_of_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "x.parquet")
    refused(["simulate", "--rows", "0", "--out", out], ("--rows",), tmp_path, capsys)
    refused(["simulate", "--fraud-rate", "0.7", "--out", out], ("--fraud-rate",), tmp_path, capsys)
    refused(["simulate", "--rows", "8000", "--out", str(tmp_path / "x.xlsx")], (".parquet",), tmp_path, capsys)
    assert not list(tmp_path.iterdir())


def test_an_unknown_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tarin"]) == 2
    assert "tarin" in capsys.readouterr().err


def test_a_reader_that_ends_early_is_no_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As in ``balancer report RUN --json | head``."""

    class Ended(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Ended())
    assert main(["--help"]) == 141
    assert capsys.readouterr().err == ""


def test_brackets_in_names_are_printed_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rich reads ``[old]`` as a style and leaves it out, unless the console has no markup."""
    package = Path(__file__).resolve().parents[2] / "balancer"
    calls = [call for file in package.rglob("*.py") for call in re.findall(r"\bConsole\([^)]*", file.read_text(encoding="utf-8"))]
    assert len(calls) > 15 and all("markup=False" in call for call in calls)
    table = tmp_path / "new [old].csv"
    assert main(["simulate", "--rows", "800", "--fraud-rate", "0.05", "--out", str(table)]) == 0
    assert main(["inspect", str(table), "--out", str(tmp_path / "my spec.toml")]) == 0
    printed = capsys.readouterr()
    assert "new [old].csv" in printed.out
    assert f"balancer train --dataset '{table}' --spec '{tmp_path / 'my spec.toml'}'" in printed.err
