"""Small tables of many kinds, and how they are prepared and compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from balancer.data.dataset import Dataset, load_dataset
from balancer.data.preparing import store_writing
from balancer.data.preparing.store_writing import prepare_store
from balancer.data.roles import Roles, inferred
from balancer.data.sharded.folder import StoreFolder
from balancer.data.spec import DAY

START = 1_700_000_000
ROLES: dict[str, Any] = {
    "time": "time",
    "entity": "card",
    "label": "fraud",
    "amount": "amount",
    "id": "id",
    "numeric": ("distance", "score"),
    "categorical": ("kind",),
    "context": ("shop", "kind"),
    "label_delay": 2 * DAY,
}


def table(rows: int = 360, seed: int = 0) -> pl.DataFrame:
    """Payments of 30 cards at 12 shops in 60 days, in no order, with nulls and some equal times."""
    rng = np.random.default_rng(seed)
    seconds = START + np.floor(rng.random(rows) * 60 * DAY).astype(np.int64)
    seconds[1::9] = seconds[::9][: len(seconds[1::9])]
    return pl.DataFrame(
        {
            "id": rng.permutation(rows) + 5000,
            "time": pl.Series(seconds * 1_000_000).cast(pl.Datetime("us")),
            "card": pl.Series(rng.integers(0, 30, rows)).cast(pl.String) + "x",
            "amount": np.round(rng.lognormal(3, 1, rows), 2),
            "distance": np.where(rng.random(rows) < 0.1, np.nan, rng.random(rows)),
            "score": rng.random(rows),
            "kind": pl.Series(rng.choice(["web", "pos", "atm", " Pos"], rows)).set(pl.Series(rng.random(rows) < 0.05), None),
            "shop": pl.Series(rng.integers(0, 12, rows)).set(pl.Series(rng.random(rows) < 0.1), None),
            "fraud": (rng.random(rows) < 0.2).astype(np.int8),
            "note": rng.choice(["a", "b"], rows),
        }
    )


def roles_of(path: Path, roles: Mapping[str, Any] = ROLES, **changes: Any) -> Roles:
    """The roles of a table, with some changed; None takes a key out, and it is then inferred."""
    given = {key: value for key, value in {**roles, **changes}.items() if value is not None}
    return inferred(path, overrides=given, need_label=False)


def prepared(
    path: Path, out: Path, roles: Roles, monkeypatch: pytest.MonkeyPatch, *, shards: int = 2, chunk: int = 200, **options: Any
) -> StoreFolder:
    """Prepare a table in chunks of few rows."""
    monkeypatch.setattr(store_writing, "CHUNK_ROWS", chunk)
    return prepare_store(path, out, roles, shards=shards, **options)


def equal(table: Dataset, store: Dataset) -> None:
    """Compare two data sets to the bit."""
    assert table.schema == store.schema
    for name in ("time", "entity", "start", "label", "amount", "row", "values"):
        one, two = getattr(table.store, name), getattr(store.store, name)
        assert one.dtype == two.dtype, name
        np.testing.assert_array_equal(one, two, err_msg=name)
    assert table.split.tolist() == store.split.tolist()
    assert table.ids.to_list() == store.ids.to_list()
    assert table.ids.dtype == store.ids.dtype
    assert table.entities == store.entities
    assert table.fingerprint == store.fingerprint
    assert table.dropped == store.dropped
    assert table.notes == store.notes
    assert table.cautions == store.cautions


def check(
    path: Path, out: Path, roles: Roles, monkeypatch: pytest.MonkeyPatch, *, shards: int = 2, chunk: int = 200, **options: Any
) -> StoreFolder:
    """Prepare a table, and compare the store with the table in memory."""
    store = prepared(path, out, roles, monkeypatch, shards=shards, chunk=chunk, **options)
    equal(
        load_dataset(path, roles.spec, left_out=roles.notes, **options),
        load_dataset(store.path, roles.spec, left_out=roles.notes, hash_buckets=options.get("hash_buckets", 0)),
    )
    return store
