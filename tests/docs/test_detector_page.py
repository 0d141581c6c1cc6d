"""The examples of docs/detector.md run, and what the page says of decision.json and of codes holds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.data.schema import field_codes
from balancer.evaluation.calibration import KNEE, Calibration
from balancer.training import tree_fitting, tree_stage

PAGE = (Path(__file__).parents[2] / "docs" / "detector.md").read_text(encoding="utf-8")
CONTRIBUTIONS, CALIBRATION = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_example_of_contributions_runs(
    tiny_run: Path, tiny_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(tiny_run)
    pl.read_parquet(tiny_table).head(300).write_parquet("new.parquet")
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(CONTRIBUTIONS, "docs/detector.md", "exec"), names)
    frame = names["found"].frame(names["table"])
    assert frame.columns == ["row", "field", "value", "contribution", "words"] and frame["field"][0] == "(average)"
    assert frame["row"].n_unique() == 20
    output = capsys.readouterr().out
    assert "contribution" in output and re.search(r"\([+-]\d\.\d\d\)\n$", output)


@given(st.floats(0, 1), st.floats(0.05, 4), st.floats(0.05, 4), st.floats(-20, 20))
def test_the_formula_of_the_calibration(score: float, a: float, b: float, c: float) -> None:
    names: dict[str, Any] = {}
    exec(compile(CALIBRATION, "docs/detector.md", "exec"), names)
    expected = float(Calibration("beta", a, b, c).transform(np.array([score]))[0])
    assert names["calibrated"](score, a, b, c) == pytest.approx(expected, rel=1e-9, abs=1e-300)
    assert f"Beyond {KNEE:g}" in CALIBRATION


def test_the_calibration_of_a_run_has_these_names(tiny_run: Path) -> None:
    decision = json.loads((tiny_run / "decision.json").read_text())
    assert set(decision["calibration"]) == {"method", "a", "b", "c"} and {"threshold", "members"} <= set(decision)


def test_the_codes_of_categories() -> None:
    from zlib import crc32

    values = pl.Series(["a", None, "other", "b"], dtype=pl.String)
    assert field_codes(values, ["b", "a"]).tolist() == [2, 0, 0, 1]
    assert field_codes(values, ["b", "a"], 7).tolist() == [2, 0, 2 + 1 + crc32(b"other") % 7, 1]
    assert "V + 1 + crc32(value) mod N" in PAGE


def test_numbers_of_the_page() -> None:
    small, text = tree_fitting.SMALL, " ".join(PAGE.split())
    assert f"fixed at {tree_fitting.FIXED_ROUNDS} and" in text
    assert f"fewer than {tree_fitting.SMALL_FRAUDS} frauds among the rows of a fit" in text
    assert f"{small['num_leaves']} leaves of at least {tree_fitting.SMALL_LEAF} rows" in text
    assert f"{small['feature_fraction']:g} of the fields".removeprefix("0") in text
    assert f"learning rate of {small['learning_rate']:g}".replace("0.", ".") in text
    assert f"at least {tree_fitting.LEAST_LEAF})" in PAGE
    weights = [f"{weight:g}".removeprefix("0") for weight in (tree_stage.FEW_WEIGHT, tree_stage.SMALL_WEIGHT)]
    assert f"`w` is {weights[0]}, or {weights[1]} with fewer than {tree_fitting.SMALL_FRAUDS} frauds" in text
    assert f"fewer than {tree_fitting.ENOUGH_FRAUDS} frauds" in PAGE and f"`trees` {tree_fitting.LEAST_FRAUDS} are enough" in PAGE
