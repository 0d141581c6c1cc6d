"""The benchmark of calibration: its figures on few rows, and its claims."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.claims import sampler_calibration
from benchmarks.claims.sampler_calibration import calibration_error, claims, measured, problem


def test_the_error_of_calibration_is_that_of_the_bins() -> None:
    p = np.repeat([0.2, 0.6], 150)
    y = np.tile([1, 0, 0, 0, 0, 0], 50)  # a sixth
    assert calibration_error(y, p) == pytest.approx((abs(0.2 - 1 / 6) + abs(0.6 - 1 / 6)) / 2, abs=0.02)


def test_all_cases_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler_calibration, "ROWS", 1_500)
    monkeypatch.setattr(sampler_calibration, "EPOCHS", 2)
    monkeypatch.setattr(sampler_calibration, "BIASES", (-2.0,))
    (share, models), *others = measured(1).items()
    assert not others
    assert float(share) == pytest.approx(problem(0, -2.0)[2].mean(), abs=1e-3)
    for model in models.values():
        for name, figures in model.items():
            assert figures["mean"] == pytest.approx(1, abs=0.5)
            if name != "auto":  # nothing to correct
                assert figures["mean"] == pytest.approx(figures["mean_uncorrected"], rel=0.02)
    checked = claims({share: models})
    assert len(checked) == 5  # two means, the change of average precision, the error, the mean without correction
    assert {each["holds"] for each in checked} <= {"met", "not met"}
