"""Mistakes in paths and flags end a command before anything slow is imported."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

HEAVY = ("torch", "polars", "sklearn", "lightgbm", "sqlalchemy", "fastapi", "streamlit", "pyarrow")
SLOWEST = 5.0
"""Seconds; a limit for a busy machine. On an idle one a command ends in a quarter of a second."""

MISTAKES = {
    "train, table": ["train", "--dataset", "absent.parquet"],
    "train, kind": ["train", "--dataset", "OTHER"],
    "train, spec": ["train", "--dataset", "TABLE", "--spec", "absent.toml"],
    "train, broken spec": ["train", "--dataset", "TABLE", "--spec", "TABLE"],
    "train, out": ["train", "--dataset", "TABLE", "--out", "TABLE/run"],
    "train, from": ["train", "--dataset", "TABLE", "--from", "absent"],
    "train, policy": ["train", "--dataset", "TABLE", "--policy", "absent"],
    "train, policy option": ["train", "--dataset", "TABLE", "--policy", "constant:share=2"],
    "train, resume": ["train", "--resume", "--out", "absent"],
    "train, flag": ["train", "--datset", "TABLE"],
    "train, value": ["train", "--dataset", "TABLE", "--seed", "-1"],
    "pretrain, table": ["pretrain", "--dataset", "absent.csv"],
    "score, run": ["score", "absent", "--input", "TABLE", "--output", "new.csv"],
    "score, input": ["score", "absent", "--input", "absent.csv", "--output", "new.csv"],
    "score, past": ["score", "absent", "--input", "TABLE", "--output", "new.csv", "--past", "absent.csv"],
    "score, output": ["score", "absent", "--input", "TABLE", "--output", "absent/new.csv"],
    "score, ending": ["score", "absent", "--input", "TABLE", "--output", "new.txt"],
    "score, itself": ["score", "absent", "--input", "TABLE", "--output", "TABLE", "--overwrite"],
    "evaluate, run": ["evaluate", "absent", "--dataset", "TABLE"],
    "evaluate, table": ["evaluate", "absent", "--dataset", "absent.csv"],
    "quantize, run": ["quantize", "absent"],
    "export, run": ["export", "absent"],
    "compare, table": ["compare", "--dataset", "absent.csv"],
    "compare, chart": ["compare", "--dataset", "TABLE", "--chart", "absent/chart.svg"],
    "compare, treatment": ["compare", "--dataset", "TABLE", "--treatments", "imaginary"],
    "policy train, out": ["policy", "train", "--out", "TABLE/policy"],
    "policy evaluate, policy": ["policy", "evaluate", "absent"],
    "serve, run": ["serve", "--run", "absent"],
    "app, runs": ["app", "--runs", "TABLE"],
    "simulate, out": ["simulate", "--out", "absent/table.csv"],
    "simulate, existing": ["simulate", "--out", "TABLE"],
    "keys, database": ["keys", "list", "--database", "sqlite:///absent.db"],
    "a command": ["trian"],
}


def run(arguments: list[str], folder: Path) -> tuple[str, str, float]:
    """Error, slow modules that were imported, and seconds of a command in a process of its own."""
    code = (
        "import sys\nfrom balancer.cli import main\ncode = main(sys.argv[1:])\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\nsys.exit(code)"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    return done.stderr, done.stdout.strip(), time.monotonic() - started


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_found_before_anything_slow_is_imported(case: str, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("time,amount,is_fraud\n1,2,0\n")
    other = tmp_path / "table.xlsx"
    other.write_bytes(b"PK")
    before = sorted(tmp_path.iterdir())
    error, imported, seconds = run([word.replace("TABLE", str(table)).replace("OTHER", str(other)) for word in MISTAKES[case]], tmp_path)
    assert error.startswith("error: ") and error.count("\n") == 1, error
    assert imported == "[]", error
    assert seconds < SLOWEST
    assert sorted(tmp_path.iterdir()) == before


def test_the_table_of_a_run_is_looked_for_before_anything_slow_is_imported(tiny_run: Path, tmp_path: Path) -> None:
    for command in (["quantize", str(tiny_run)], ["export", str(tiny_run), "--lite"]):
        error, imported, _ = run([*command, "--dataset", "absent.parquet"], tmp_path)
        assert error == "error: --dataset absent.parquet does not exist: check the path of the table\n"
        assert imported == "[]"


@pytest.mark.parametrize("flags", [["--label-delay", "30d"], ["--gap", "30d"], ["--spec", "spec.toml"]])
def test_a_delay_that_does_not_fit_is_refused_without_torch(flags: list[str], tmp_path: Path) -> None:
    rows = [f"2024-01-{1 + row // 24:02} {row % 24:02}:00:00,{row % 37}.5,{int(row % 9 == 0)}" for row in range(600)]
    (tmp_path / "table.csv").write_text("\n".join(["time,amount,is_fraud", *rows]) + "\n")
    (tmp_path / "spec.toml").write_text('label_delay = "30d"\n')
    error, imported, _ = run(["train", "--dataset", "table.csv", *flags], tmp_path)
    assert "the gap of 30 days is longer than half of the validation span" in error
    assert "torch" not in imported and "lightgbm" not in imported
