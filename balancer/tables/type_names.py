"""Types of columns as messages name them."""

from __future__ import annotations

import polars as pl


def type_name(dtype: pl.DataType) -> str:
    """A type as messages name it.

    >>> type_name(pl.List(pl.String())), type_name(pl.Datetime("us"))
    ('list of text', 'datetime in us')
    """
    if isinstance(dtype, pl.String):
        return "text"
    if isinstance(dtype, pl.Datetime):
        return f"datetime in {dtype.time_unit}" + (f" ({dtype.time_zone})" if dtype.time_zone else "")
    if isinstance(dtype, pl.Duration):
        return f"duration in {dtype.time_unit}"
    if isinstance(dtype, pl.List | pl.Array):
        return f"list of {type_name(dtype.inner)}"  # type: ignore[arg-type]  # it is no class here
    if isinstance(dtype, pl.Struct):
        return f"object with {', '.join(repr(field.name) for field in dtype.fields[:3])}"
    if isinstance(dtype, pl.Null):
        return "empty"
    return str(dtype).lower()
