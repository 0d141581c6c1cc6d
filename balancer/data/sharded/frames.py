"""The rows of a store as a frame, with the used columns in the form in which they were checked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from balancer.data.sharded.files import ENTITY, StoreFiles, key_file, number_file
from balancer.data.spec import Spec
from balancer.tables.options import ReadOptions


def rows_frame(store: StoreFiles, first: int, last: int) -> pl.DataFrame:
    """Rows from `first` to before `last`, in the order of the store.

    Joined columns are one column with their joined name. Times are datetimes, or numbers of seconds where
    the table had numbers.
    """
    spec, info, frame = store.spec, store.info, {}
    shards = [number for number in range(store.shards) if store.range(number)[0] >= first and store.range(number)[1] <= last]

    def column(name: str) -> NDArray[Any]:
        return store.column(name, first, last)

    for name in spec.columns():
        if name == spec.id:
            frame[name] = pl.concat([store.ids(number) for number in shards])
        elif name == spec.entity:
            frame[name] = store.names(ENTITY).gather(column("entity").astype(np.uint32))
        elif name == spec.time:
            frame[name] = pl.Series(column("time")) if info.found.unit is not None else _moments(column("time"))
        elif name == spec.label:
            label = column("label")
            names = pl.Series([*store.schema.classes, None], dtype=pl.String)
            frame[name] = names.gather(np.where(label < 0, len(names) - 1, label).astype(np.uint32))
        elif name == spec.label_date:
            frame[name] = _moments(column("reports"))
        elif name == spec.amount:
            frame[name] = pl.Series(column("amount"))
        elif name in spec.numeric:
            frame[name] = pl.Series(column(number_file(spec.numeric.index(name)))).fill_nan(None)
        else:
            place = info.keys.index(name)
            codes, names = column(key_file(place)), store.names(key_file(place))
            names = pl.concat([names, pl.Series(names.name, [None], dtype=pl.String)])
            frame[name] = names.gather(np.where(codes < 0, len(names) - 1, codes).astype(np.uint32))
    return pl.DataFrame({name: values.alias(name) for name, values in frame.items()})


def table_frame(store: StoreFiles) -> tuple[pl.DataFrame, Spec]:
    """All rows in the order of the input, and the spec with which they are read as the table was."""
    spec = store.spec
    order = np.argsort(store.column("row"), kind="stable")
    unit = "s" if store.info.found.unit is not None else None
    read = replace(
        spec,
        time_format=None,
        time_unit=unit,
        negative=store.schema.classes[0] if spec.label is not None and store.schema.classes else spec.negative,
        unlabelled=None,
        read=ReadOptions(),
    )
    return rows_frame(store, 0, store.rows)[order], read


def _moments(seconds: NDArray[np.float64]) -> pl.Series:
    """Datetimes in whole microseconds; null where there is none."""
    missing = np.isnan(seconds)
    micro = np.rint(np.where(missing, 0.0, seconds) * 1e6).astype(np.int64)
    return pl.Series(micro).set(pl.Series(missing), None).cast(pl.Datetime("us"))
