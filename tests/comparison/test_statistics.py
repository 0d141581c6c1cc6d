"""Paired statistics against figures worked out by hand and by SciPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, trim_mean

from balancer.comparison.statistics import METRICS, bootstrap, holm, interquartile_mean, means, paired

ALARMS = "false_alarms_per_10k_at_recall_0.60"


def _cell(policy: str, window: int, seed: int, value: float, alarms: float | None = 4.0) -> dict[str, Any]:
    return {
        "treatment": policy,
        "fold": window,
        "seed": seed,
        "average_precision": value,
        "false_alarms_per_10k_at_recall": {"0.60": alarms},
        "rows": 10_100,
        "positives": 100,
    }


def test_seeds_are_averaged_inside_a_window_before_windows_are() -> None:
    cells = [_cell("a", 0, s, v) for s, v in enumerate((0.6, 0.8))] + [_cell("a", 1, 0, 0.5)]
    cells += [_cell("base", w, s, 0.4) for w, s in ((0, 0), (0, 1), (1, 0))]
    found = paired(cells, "base")["a"]["average_precision"]
    assert found["difference"] == pytest.approx((0.3 + 0.1) / 2)
    assert (found["low"], found["high"]) == pytest.approx((0.1, 0.3))
    assert (found["folds"], found["folds_better"], found["over"]) == (2, 2, "folds")
    assert means(cells)["a"]["average_precision"] == pytest.approx((0.7 + 0.5) / 2)


def test_false_alarms_fewer_is_better_and_the_ratio_bears_none() -> None:
    cells = [_cell("a", w, 0, 0.5, 2.0) for w in range(3)] + [_cell("base", w, 0, 0.5, 4.0) for w in range(3)]
    found = paired(cells, "base")["a"][ALARMS]
    assert found["difference"] == -2.0
    assert found["folds_better"] == 3
    assert found["ratio"] == pytest.approx(2.5 / 4.5)  # half a false alarm in 10,000 on both sides
    none = paired([_cell("a", w, 0, 0.5, 0.0) for w in range(3)] + cells[3:], "base")["a"][ALARMS]
    assert none["ratio"] == pytest.approx(0.5 / 4.5)
    assert none["ratio_low"] == pytest.approx(none["ratio_high"])


def test_one_window_resamples_seeds_and_says_so() -> None:
    cells = [_cell(name, 0, s, v + s / 100) for name, v in (("a", 0.5), ("base", 0.4)) for s in range(4)]
    found = paired(cells, "base")["a"]["average_precision"]
    assert (found["over"], found["seeds"], found["seeds_better"]) == ("seeds", 4, 4)
    alone = paired([cells[0], cells[4]], "base")["a"]["average_precision"]
    assert alone["low"] is None
    assert alone["p_holm"] is None


def test_pairs_alone_count_and_missing_figures_are_left_out() -> None:
    cells = [_cell("a", 0, 0, 0.5, None), _cell("a", 1, 0, 0.9), _cell("base", 0, 0, 0.4)]
    found = paired(cells, "base")["a"]
    assert found["average_precision"]["difference"] == pytest.approx(0.1)
    assert ALARMS not in found
    assert "f1" not in found


def test_bootstrap_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(120):
        low, high, _ = bootstrap(rng.normal(0.3, 1.0, 40), seed=seed)
        hits += low <= 0.3 <= high
    assert 0.87 <= hits / 120 <= 1.0


def test_bootstrap_p_value_goes_with_the_interval() -> None:
    clear, doubtful = np.array([0.1, 0.2, 0.15, 0.12, 0.18]), np.array([0.1, -0.2, 0.15, -0.12, 0.08])
    low, _, p = bootstrap(clear, seed=0)
    assert low > 0
    assert p < 0.001
    low, high, p = bootstrap(doubtful, seed=0)
    assert low < 0 < high
    assert p > 0.05
    assert bootstrap(clear, seed=0) == bootstrap(clear, seed=0)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=4).map(lambda v: v * 4))
def test_interquartile_mean_is_the_trimmed_mean(values: list[float]) -> None:
    array = np.array(values)  # of a length that four divides, where no value lies on the border
    assert interquartile_mean(array) == pytest.approx(float(trim_mean(array, 0.25)), abs=1e-12)


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8))
def test_holm_lies_between_plain_and_bonferroni(p_values: list[float]) -> None:
    corrected = holm(p_values)
    for p, q in zip(p_values, corrected, strict=True):
        assert q is not None
        assert p <= q <= min(1.0, len(p_values) * p) + 1e-12
    order = np.argsort(p_values, kind="stable")
    assert (np.diff([corrected[i] for i in order]) >= 0).all()  # type: ignore[arg-type]
    less_strict = false_discovery_control(p_values)
    assert (np.array(corrected, dtype=float) >= less_strict - 1e-12).all()


def test_holm_leaves_none_out() -> None:
    assert holm([0.02, None, 0.01]) == [0.02, None, 0.02]


def test_every_metric_reads_a_cell() -> None:
    assert METRICS[ALARMS].of(_cell("a", 0, 0, 0.5)) == 4.0
    assert METRICS["f1"].of(_cell("a", 0, 0, 0.5)) is None
