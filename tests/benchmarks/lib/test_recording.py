"""Results as they are recorded: with their environment, and merged with what is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.lib import cells, recording
from benchmarks.lib.checks import claim
from benchmarks.lib.statistics import mean_interval


def test_a_result_is_recorded_with_machine_versions_and_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "result.json"
    assert recording.recorded(path) == {}
    recording.record({"figure": 1.5}, path)
    content = recording.recorded(path)
    assert content["figure"] == 1.5
    assert set(content) == {"figure", "machine", "versions", "date"}
    assert "numpy" in content["versions"]
    assert content["machine"]["instructions"][0] == "portable"
    assert "instructions_of_our_kernels" not in content["machine"]
    monkeypatch.setenv("BALANCER_INSTRUCTIONS", "portable")
    recording.record({}, path)
    assert recording.recorded(path)["machine"]["instructions_of_our_kernels"] == "portable"


def test_rounding_keeps_significant_digits_and_everything_that_is_no_float() -> None:
    value = {"a": [1.23456789, {"b": 0.000123456789}], "c": 123456789, "d": None, "e": True}
    assert recording.rounded(value, 5) == {"a": [1.2346, {"b": 0.00012346}], "c": 123456789, "d": None, "e": True}


def test_a_cell_is_measured_once(tmp_path: Path) -> None:
    measured: list[int] = []

    def measure() -> dict[str, int]:
        measured.append(len(measured))
        return {"figure": 7}

    file = tmp_path / "work" / "cell.json"
    assert [cells.stored(file, measure) for _ in range(3)] == [{"figure": 7}] * 3
    assert measured == [0]
    assert json.loads(file.read_text()) == {"figure": 7}


def test_an_interrupted_cell_leaves_no_file(tmp_path: Path) -> None:
    def fail() -> dict[str, int]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cells.stored(tmp_path / "cell.json", fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("figure", "above", "holds"),
    [
        (2.0, True, "met"),
        (2.0, False, "met"),
        (2.1, True, "met"),
        (2.1, False, "not met"),
        (1.9, True, "not met"),
        (None, True, "not measured"),
    ],
)
def test_a_figure_on_the_limit_meets_the_claim(figure: float | None, above: bool, holds: str) -> None:
    assert claim("it is fast", figure, 2.0, above=above)["holds"] == holds


def test_the_interval_is_that_of_students_t() -> None:
    mean, low, high = mean_interval([1.0, 2.0, 3.0, 4.0])
    # Mean 2.5, standard error 0.6455, and t = 3.1824 with 3 degrees of freedom.
    assert (mean, low, high) == (2.5, pytest.approx(0.4457, abs=1e-4), pytest.approx(4.5543, abs=1e-4))
    assert mean_interval([1.5]) == (1.5, None, None)
