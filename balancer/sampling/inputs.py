"""Labels, scores, times and sizes as people have them: tensors, lists, arrays and numbers of any kind.

Nothing here imports torch; a tensor is recognised by its methods.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.errors import InputError


def plain(values: Any) -> Any:
    """``values`` as NumPy takes them.

    A torch tensor may be on any device, carry gradients, or have half precision; it becomes an array. So do
    the tensors in a list. Everything else is returned as it is.
    """
    if hasattr(values, "detach"):
        tensor = values.detach()
        if tensor.is_floating_point() and tensor.element_size() < 4:
            tensor = tensor.float()  # NumPy has no bfloat16
        return tensor.cpu().numpy()
    if isinstance(values, (list, tuple)) and values and hasattr(values[0], "detach"):
        parts = [plain(value) for value in values]
        return [part.item() if np.ndim(part) == 0 else part for part in parts]
    return values


def numbers(values: Any, name: str) -> NDArray[np.float64]:
    """``values`` as an array of float64.

    Raises:
        InputError: They are no numbers, or lists of different lengths; the message begins with ``name``.
    """
    try:
        return np.asarray(plain(values), dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        ragged = "inhomogeneous" in str(error)
        reason = "one array of numbers, but its rows have different lengths" if ragged else f"numbers ({error})"
        raise InputError(f"{name} must be {reason}{'; join the batches into one array' if ragged else ''}") from error


def whole_number(value: Any, name: str, least: int, why: str = "") -> int:
    """``value`` as an int.

    Raises:
        InputError: It is no whole number, or less than ``least``; the message names ``name`` and ends with
            ``why``.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise InputError(f"{name} must be a whole number and at least {least}{f' ({why})' if why else ''}, not {value!r}")
    return int(value)
