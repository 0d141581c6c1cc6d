"""Columns that alone separate the classes are found; strong but honest ones, and chance, are not."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from balancer.data.leaks import leak_notes, suspected_leaks
from balancer.data.roles import inferred
from balancer.data.separation import area

ROWS, FRAUDS = 4_000, 200


def table(**columns: object) -> pl.DataFrame:
    y = np.zeros(ROWS, int)
    y[np.random.default_rng(5).permutation(ROWS)[:FRAUDS]] = 1
    base = {"time": np.arange(ROWS) * 600, "amount": np.random.default_rng(1).random(ROWS), "is_fraud": y}
    made = {name: values(y, np.random.default_rng(2)) if callable(values) else values for name, values in columns.items()}
    return pl.DataFrame(base | made, strict=False)


def leaks(frame: pl.DataFrame, **flags: object) -> dict[str, str]:
    return suspected_leaks(inferred(frame, overrides=flags))


def test_leaks_of_every_kind() -> None:
    found = leaks(
        table(
            balance_after=lambda y, rng: np.where(y == 1, 0.0, 1.0 + rng.random(ROWS)),
            middle=lambda y, rng: np.where(
                y == 1, 0.5 + 0.001 * rng.random(ROWS), np.where(rng.random(ROWS) < 0.5, 0.0, 1.0) + rng.random(ROWS) / 9
            ),
            status=lambda y, rng: np.where(y == 1, "blocked", np.where(rng.random(ROWS) < 0.5, "ok", "open")),
            case=lambda y, rng: [f"{value:.3f}" if fraud else None for fraud, value in zip(y, rng.random(ROWS), strict=True)],
        )
    )
    assert set(found) == {"balance_after", "middle", "status", "case"}
    assert found["case"] == "is missing in the rows of one class only"
    (alone, missing) = leak_notes(found)
    assert alone.startswith("suspected leak, alone separates the classes: balance_after (AUC 1.000), middle (AUC ")
    assert missing.startswith("suspected leak, is missing in the rows of one class only: case: check that it is known")


def test_no_leak() -> None:
    found = leaks(
        table(
            strong=lambda y, rng: 2.0 * y + rng.normal(size=ROWS),
            merchant_id=lambda y, rng: rng.integers(0, 700, ROWS),
            sku=lambda y, rng: [f"k{value}" for value in rng.integers(0, 750, ROWS)],
            sparse=lambda y, rng: [float(value) if value > 0.9 else None for value in rng.random(ROWS)],
        )
    )
    assert found == {} and leak_notes(found) == []


def test_too_few_frauds_and_no_label() -> None:
    frame = table(x=lambda y, rng: y + 0.5)
    few = frame.with_columns(
        is_fraud=pl.when(pl.int_range(pl.len()) < 1500).then(pl.col("is_fraud")).otherwise(0) * (pl.int_range(pl.len()) < 150)
    )
    assert few["is_fraud"].sum() < 20
    assert leaks(few) == {}
    assert suspected_leaks(inferred(frame.drop("is_fraud"), need_label=False)) == {}
    assert list(leaks(frame)) == ["x"]
    dated = frame.with_columns(reported=pl.when(pl.col("is_fraud") == 1).then(pl.lit("2024-01-31")).otherwise(pl.lit("-"))).drop("is_fraud")
    assert list(leaks(dated, label_date="reported")) == ["x"]


@pytest.mark.parametrize("seed", range(5))
def test_the_area_is_that_of_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    score, y = rng.integers(0, 9, 300).astype(float), rng.random(300) < 0.3
    assert area(score, y) == pytest.approx(roc_auc_score(y, score))


def test_a_column_with_values_in_frauds_only_is_a_leak() -> None:
    def some_of(y: np.ndarray, chosen: int, share: float) -> list[str | None]:
        rng = np.random.default_rng(3)
        return ["limit" if each == chosen and rng.random() < share else None for each in y]

    found = leaks(
        table(
            reason=lambda y, rng: some_of(y, 1, 0.4),
            few=lambda y, rng: some_of(y, 1, 0.02),
            usual=lambda y, rng: some_of(y, 0, 0.1),
            both=lambda y, rng: ["X" if value < 0.3 else None for value in rng.random(ROWS)],
        )
    )
    assert found == {"reason": "has values, or none, in frauds only"}
    assert "suspected leak, has values, or none, in frauds only: reason:" in leak_notes(found)[0]
