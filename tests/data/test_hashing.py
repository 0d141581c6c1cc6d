"""Hash buckets: rare and unseen values share a few codes, which are the same everywhere; without buckets
nothing changes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from balancer.data.dataset import Dataset, load_dataset
from balancer.data.schema import Schema, encode, field_codes
from balancer.data.spec import DAY, Spec
from balancer.data.split import Split
from balancer.errors import InputError
from balancer.options.data import DataOptions

SPEC = Spec(time="time", entity="card", label="fraud", amount="amount", categorical=("kind", "shop"), label_delay=2 * DAY)


def make_table(rows: int = 1000) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "time": np.sort(rng.random(rows)) * 60 * DAY,
            "card": rng.integers(0, 40, rows),
            "amount": rng.lognormal(3, 1, rows),
            "kind": rng.choice(["web", "pos", None], rows).tolist(),
            "shop": [f"s{number}" for number in (300 * rng.random(rows) ** 3).astype(int)],
            "fraud": (rng.random(rows) < 0.1).astype(np.int8),
        }
    )


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset(make_table(), SPEC, hash_buckets=16)


def test_codes_are_fixed_numbers() -> None:
    values = pl.Series("kind", ["web", None, "new", "Über", "", "pos", "new"])
    assert field_codes(values, ["web", "pos"], 16).tolist() == [1, 0, 8, 9, 3, 2, 8]  # by crc32, so the same on every machine
    assert field_codes(pl.Series("kind", [7, None, 8]), ["7"], 16).tolist() == [1, 0, 5]


def test_without_buckets_codes_are_as_ever() -> None:
    values = pl.Series("kind", ["web", None, "new"])
    assert np.array_equal(field_codes(values, ["web"]), encode(values, ["web"]) + 1)
    plain = load_dataset(make_table(), SPEC)
    assert "hash_buckets" not in plain.schema.to_dict()
    assert plain.schema.cardinalities == tuple(len(plain.schema.vocabularies[name]) + 1 for name in SPEC.categorical)
    assert Schema.from_dict(plain.schema.to_dict()).hash_buckets == 0


def test_rare_values_are_hashed(data: Dataset) -> None:
    shops = make_table()["shop"].to_numpy()[data.store.row]
    train = shops[data.split == Split.TRAIN]
    vocabulary = data.schema.vocabularies["shop"]
    assert set(vocabulary) == {name for name in train if (train == name).sum() >= 5}
    assert data.schema.cardinalities == (2 + 1 + 16, len(vocabulary) + 1 + 16)
    code = data.store.values[:, -1]
    rare = ~np.isin(shops, vocabulary)
    assert rare[data.split == Split.TRAIN].any()
    assert code[rare].min() > len(vocabulary)
    assert code.max() < data.schema.cardinalities[1]
    assert (code[~rare] <= len(vocabulary)).all()
    assert code[~rare].min() == 1
    kinds = make_table()["kind"][data.store.row]
    assert np.array_equal(data.store.values[:, -2] == 0, kinds.is_null().to_numpy())


def test_scoring_gives_the_same_codes(data: Dataset) -> None:
    schema = Schema.from_dict(json.loads(json.dumps(data.schema.to_dict())))
    assert schema == data.schema
    scored = load_dataset(make_table(), schema.spec, schema=schema)
    assert np.array_equal(scored.store.values[:, -2:], data.store.values[:, -2:])


@pytest.mark.parametrize("number", [-1, 2_000_000])
def test_bad_numbers_are_named(number: int) -> None:
    with pytest.raises(InputError, match="hash_buckets is"):
        load_dataset(make_table(), SPEC, hash_buckets=number)
    with pytest.raises(InputError, match="--hash-buckets is"):
        DataOptions(dataset=Path("x"), hash_buckets=number)


def test_a_run_keeps_its_buckets(tmp_path: Path) -> None:
    from balancer.cli import main
    from balancer.runs.run_folder import RunFolder
    from balancer.runs.tables import evaluate_file
    from balancer.runs.trained_run import TrainedRun, training_table

    table, out = tmp_path / "table.parquet", tmp_path / "run"
    make_table(3000).write_parquet(table)
    flags = ["--entity=card", "--time=time", "--label=fraud", "--categorical=kind,shop", "--label-delay=2d", "--hash-buckets=8"]
    short = ["--policy=rule", "--epochs=1", "--steps-per-epoch=2", "--history=4", "--d-model=8", "--layers=1"]
    assert main(["train", "--dataset", str(table), "--out", str(out), *flags, *short]) == 0
    run = TrainedRun.load(out)
    assert run.schema.hash_buckets == 8
    assert run.model.config.cardinalities == run.schema.cardinalities
    assert training_table(RunFolder.open(out)).schema == run.schema
    new = tmp_path / "new.parquet"
    make_table(200).with_columns(shop=pl.lit("never seen")).write_parquet(new)
    assert evaluate_file(run, new, past=None, bad_rows="error")["rows"] == 200
    assert evaluate_file(run, table, past=None, bad_rows="error")["part"] == "test"
