"""Every Python block of docs/parts.md runs, in order, in the folder of its file."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "parts.md"


def test_the_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *others = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert "class MyAttention" in first
    (tmp_path / "mymodule.py").write_text(first)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mymodule", raising=False)
    assert len(others) == 2
    for block in others:
        exec(compile(block, str(PAGE), "exec"), {"__name__": "page"})
    monkeypatch.delitem(sys.modules, "mymodule", raising=False)
