"""What looks wrong with a past beside the table to score: warnings of one line each."""

from __future__ import annotations

import polars as pl

from balancer.data.checked import CheckedTable
from balancer.data.spec import Spec
from balancer.tables.values import normal_form


def past_cautions(past: CheckedTable, table: CheckedTable, spec: Spec) -> list[str]:
    """Warnings about a past that is probably not that of the table.

    Args:
        past: Earlier rows, with those that are rows of the table too.
        table: The rows to score.
        spec: Roles of the columns.
    """
    found = []
    if spec.time is not None and past.size and table.size and past.time.min() > table.time.max():
        found.append("all rows of --past are later than the input, so no row has a past: are the two tables exchanged?")
    if spec.time is not None and spec.context and past.size and not (past.label >= 0).any():
        column = spec.label or spec.label_date
        found.append(
            f"--past has no labels, so the fields of known labels ({', '.join(spec.context)}) are empty: add the column {column!r}"
        )
    keys = {name: (past.texts[name], table.texts[name]) for name in (spec.entity, *spec.context) if name is not None}
    if past.ids is not None and table.ids is not None and spec.id is not None:
        keys[spec.id] = (normal_form(past.ids), normal_form(table.ids))
    for name, (earlier, own) in keys.items():
        example = _zeros(earlier.drop_nulls().unique(), own.drop_nulls().unique())
        if example is not None:
            found.append(
                f"values of {name} differ between --past and the input only by leading zeros ({example[0]} and {example[1]}), so they do not "
                "match: write them in one way"
            )
    return found


def _zeros(earlier: pl.Series, own: pl.Series) -> tuple[str, str] | None:
    """Two keys that are equal but for leading zeros, where more keys match without these."""
    plain = pl.DataFrame({"past": earlier, "key": earlier.str.strip_chars_start("0")})
    here = pl.DataFrame({"input": own, "key": own.str.strip_chars_start("0")})
    pairs = plain.join(here, on="key").filter((pl.col("past") != pl.col("input")) & pl.col("key").str.contains(r"^\d"))
    if not pairs.height or 2 * pairs.height <= int(own.is_in(earlier.implode()).sum()):
        return None
    first = pairs.sort("past", "input").row(0, named=True)
    return first["past"], first["input"]
