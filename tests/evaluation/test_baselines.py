"""The boosted-trees baseline isolates narrow bands, uses categories, repeats bit for bit and prints
nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from balancer.data.dataset import Dataset, load_dataset
from balancer.data.roles import resolve_spec
from balancer.data.split import Split
from balancer.errors import InputError
from balancer.evaluation.baselines import fit_lightgbm


@pytest.fixture(scope="module")
def dataset(tiny_table: Path) -> Dataset:
    return load_dataset(tiny_table, resolve_spec(tiny_table))


def with_narrow_bands(dataset: Dataset) -> Dataset:
    """The same rows, but fraud is: category 1 with an amount in a band that holds 1.5 % of all amounts. No
    other field tells."""
    rng = np.random.default_rng(0)
    store = dataset.store
    n = len(store)
    amount, category = rng.random(n), rng.integers(0, 3, n)
    label = ((category == 1) & (amount > 0.500) & (amount < 0.515)).astype(np.int16)
    # Half of the band's rows of the other categories too: the band alone must not do.
    values = np.column_stack([amount, rng.random(n), category]).astype(np.float32)
    narrow = type(store)(values, 2, store.time, store.entity, store.start, label, store.amount, store.row)
    return Dataset(
        narrow,
        dataset.schema,
        dataset.split,
        dataset.ids,
        dataset.entities,
        dataset.fingerprint,
        dataset.dropped,
        dataset.notes,
        dataset.source,
    )


def test_it_learns_the_simulated_fraud_and_repeats_bit_for_bit(dataset: Dataset, capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[int, int]] = []
    first = fit_lightgbm(dataset, seed=1, threads=1, progress=lambda done, most: seen.append((done, most)))
    again = fit_lightgbm(dataset, seed=1, threads=1)
    assert np.array_equal(first.test_score, again.test_score)
    assert np.array_equal(first.threshold_score, again.threshold_score)
    assert len(first.threshold_score) == len(dataset.rows(Split.THRESHOLD))
    fraud = dataset.store.label[dataset.rows(Split.TEST)] > 0
    assert len(first.test_score) == len(fraud)
    assert average_precision_score(fraud, first.test_score) > 5 * fraud.mean()
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert 1 <= first.trees <= len(seen) <= seen[0][1]
    assert capfd.readouterr() == ("", "")


def test_it_isolates_a_narrow_band_within_a_category(dataset: Dataset) -> None:
    narrow = with_narrow_bands(dataset)
    result = fit_lightgbm(narrow, seed=0, threads=1)
    fraud = narrow.store.label[narrow.rows(Split.TEST)] > 0
    assert average_precision_score(fraud, result.test_score) > 0.6


@pytest.mark.parametrize(("split", "name"), [(Split.TRAIN, "train"), (Split.REWARD, "validation")])
def test_a_split_without_fraud_is_named(dataset: Dataset, split: Split, name: str) -> None:
    narrow = with_narrow_bands(dataset)
    narrow.store.label[narrow.split == split] = 0
    with pytest.raises(InputError, match=f"the {name} rows are all of one kind"):
        fit_lightgbm(narrow, seed=0, threads=1)
