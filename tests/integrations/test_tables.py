"""Labels of tables: messages show them as plain values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from balancer.errors import InputError
from balancer.integrations.tables import class_index, label_codes


@pytest.mark.parametrize(("label", "shown"), [(np.int64(0), "0"), (np.float64(1.0), "1.0"), ("a", "'a'"), (True, "True")])
def test_the_only_class_is_shown_as_a_plain_value(label: Any, shown: str) -> None:
    with pytest.raises(InputError, match=rf"y has 1 class only \({shown}\); sampling needs"):
        label_codes(np.array([label] * 5))


@pytest.mark.parametrize(("labels", "shown"), [(np.array([0, 1, 7]), "7"), (np.array(["a"], dtype=object), "'a'")])
def test_an_unknown_label_is_shown_as_a_plain_value(labels: np.ndarray, shown: str) -> None:
    classes = np.array([0, 1]) if labels.dtype.kind == "i" else np.array(["b", "c"], dtype=object)
    with pytest.raises(InputError, match=rf"y_valid has the label {shown} in row {len(labels) - 1}, which y lacks"):
        class_index(labels, classes, "y_valid")
