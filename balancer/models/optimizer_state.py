"""The moments of an Adam optimizer as named arrays, for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def moments_to_arrays(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, NDArray[Any]]:
    """Copy the moments and step counts to arrays named ``PREFIX.NUMBER_OF_THE_PARAMETER.NAME``."""
    arrays = {}
    for index, moments in optimizer.state_dict()["state"].items():
        for name, tensor in moments.items():
            arrays[f"{prefix}.{index}.{name}"] = torch.as_tensor(tensor).detach().cpu().numpy().copy()
    return arrays


def load_moments(optimizer: torch.optim.Optimizer, prefix: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Restore the moments of :func:`moments_to_arrays`; arrays with other prefixes are ignored."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, array in arrays.items():
        if name.startswith(f"{prefix}."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = torch.from_numpy(np.array(array))
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
