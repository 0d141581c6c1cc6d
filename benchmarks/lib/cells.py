"""Cells: measurements that are stored one by one, so that a stopped benchmark can continue."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from balancer.files import write_text


def stored(file: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The content of ``file``; if there is none yet, the result of ``measure``, which is written to it."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(measure(), indent=2) + "\n")
    content: dict[str, Any] = json.loads(file.read_text())
    return content
