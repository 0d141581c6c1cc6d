"""docs/fields.md names exactly the fields that a table gets."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl

from balancer.data.dataset import load_dataset
from balancer.data.score_memory import memory_names
from balancer.data.spec import Spec

PAGE = (Path(__file__).parents[2] / "docs" / "fields.md").read_text(encoding="utf-8")


def expanded(name: str) -> list[str]:
    """Names of a pattern: `a_{1d,7d}` is two names."""
    before, brace, rest = name.partition("{")
    choices, _, after = rest.partition("}")
    return [f"{before}{choice}{after}" for choice in choices.split(",")] if brace else [name]


def named(number: int) -> list[str]:
    """The fields of a table of the page."""
    table = PAGE.split("| fields | meaning |")[number].split("\n\n")[0]
    patterns = re.findall(r"`([^`]+)`", "\n".join(line.split("|")[1] for line in table.splitlines()[2:]))
    return [name for pattern in patterns for name in expanded(pattern)]


def test_the_page_names_the_score_fields() -> None:
    assert sorted(named(2)) == sorted(memory_names(True))


def test_the_page_names_the_fields() -> None:
    names = named(1)
    columns = {"KIND": ("kind",), "SHOP": ("shop",), "COLUMN": ("kind", "shop")}
    for word, values in columns.items():
        names = [name.replace(word, value) for name in names for value in (values if word in name else ("",))]
    rows = 60
    frame = pl.DataFrame(
        {"time": np.arange(rows) * 3600.0, "fraud": np.arange(rows) % 2, "amount": 1.0, "card": "c", "kind": "k", "shop": "s"}
    )
    spec = Spec("time", entity="card", label="fraud", amount="amount", categorical=("kind",), context=("shop",), label_delay=0.0)
    fields = load_dataset(frame, spec).schema.numeric_fields
    assert sorted(names) == sorted(fields)
