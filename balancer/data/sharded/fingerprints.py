"""The fingerprint of a table, computed from parts of its row hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from balancer.data.spec import Spec

_ROWS = 1 << 22


def fingerprint(spec: Spec, hashes: Iterable[NDArray[np.uint64]]) -> str:
    """Hex digest of the roles and of the hashes of the rows, as `CheckedTable.fingerprint` computes it.

    Args:
        spec: Roles of the columns.
        hashes: The hashes of all rows, in parts.
    """
    digest = hashlib.sha256(json.dumps(spec.to_dict(), sort_keys=True).encode())
    for part in hashes:
        for first in range(0, len(part), _ROWS):
            digest.update(part[first : first + _ROWS].tobytes())
    return digest.hexdigest()
