"""Aggregate `predictions.parquet` for the pages, with polars; this module does not use Streamlit."""

from __future__ import annotations

import numpy as np
import polars as pl

from balancer.evaluation.operating_points import OperatingPoints
from balancer.evaluation.threshold_changes import EvaluatedRows


def operating_points(predictions: pl.DataFrame, negative: str, *, amounts: bool) -> OperatingPoints:
    """Compute all thresholds on the test rows of a run.

    Args:
        predictions: The content of `predictions.parquet`.
        negative: Name of the legitimate class.
        amounts: Whether the table has amounts.
    """
    time = predictions["time"].dt.epoch("us").fill_null(0).to_numpy() / 1e6
    amount = predictions["amount"].to_numpy() if amounts else None
    return OperatingPoints.of(_codes(predictions, negative), predictions["score"].to_numpy(), time=time, amount=amount)


def evaluated_rows(predictions: pl.DataFrame, negative: str, *, amounts: bool) -> EvaluatedRows:
    """Prepare the test rows of a run to compare thresholds on them.

    Args:
        predictions: The content of `predictions.parquet`.
        negative: Name of the legitimate class.
        amounts: Whether the table has amounts.
    """
    timed = has_times(predictions)
    return EvaluatedRows.of(
        _codes(predictions, negative),
        predictions["score"].to_numpy(),
        time=predictions["time"].dt.epoch("us").fill_null(0).to_numpy() / 1e6 if timed else None,
        entity=predictions["entity"].rank("dense").fill_null(0).to_numpy() if "entity" in predictions.columns else None,
        amount=predictions["amount"].to_numpy() if amounts else None,
    )


def _codes(predictions: pl.DataFrame, negative: str) -> np.ndarray:
    """Return 1 for fraud, 0 for legitimate and -1 for unlabelled rows."""
    label = predictions["label"]
    code = label.is_null().cast(pl.Int8) * -1 + (label.is_not_null() & (label != negative)).fill_null(False).cast(pl.Int8)
    return code.to_numpy()


def has_times(predictions: pl.DataFrame) -> bool:
    """Whether the rows have times; a run without a time has none."""
    return predictions["time"].null_count() < predictions.height


def outcome(threshold: float, negative: str) -> pl.Expr:
    """Build the column `outcome`: caught, missed, false alarm or passed; null where the label is unknown."""
    alarm, fraud = pl.col("score") >= threshold, pl.col("label") != negative
    known = pl.when(alarm & fraud).then(pl.lit("caught")).when(fraud).then(pl.lit("missed")).when(alarm).then(pl.lit("false alarm"))
    return pl.when(pl.col("label").is_not_null()).then(known.otherwise(pl.lit("passed"))).alias("outcome")


def alarms_by_day(predictions: pl.DataFrame, threshold: float, negative: str) -> pl.DataFrame:
    """Count caught frauds and false alarms by day, also for days without alarms.

    Columns `day, outcome, alarms`.
    """
    lazy = predictions.lazy()
    days = lazy.select(pl.date_range(pl.col("time").min().dt.date(), pl.col("time").max().dt.date(), "1d").alias("day"))
    both = days.join(pl.LazyFrame({"outcome": ["caught", "false alarm"]}), how="cross")
    counts = (
        lazy.filter(pl.col("score") >= threshold)
        .select(pl.col("time").dt.date().alias("day"), outcome(threshold, negative))
        .group_by("day", "outcome")
        .agg(pl.len().alias("alarms"))
    )
    return both.join(counts, on=["day", "outcome"], how="left").with_columns(pl.col("alarms").fill_null(0)).sort("day", "outcome").collect()


def by_class(predictions: pl.DataFrame, threshold: float, negative: str, *, amounts: bool) -> pl.DataFrame:
    """Count frauds and alarms by fraud class.

    Columns `fraud class, frauds, caught, recall` and, with amounts, `amount, amount caught`.
    """
    amount = pl.col("amount").clip(0)
    alarm = pl.col("score") >= threshold
    sums = [amount.sum().alias("amount"), amount.filter(alarm).sum().alias("amount caught")] if amounts else []
    frauds = predictions.lazy().filter(pl.col("label") != negative).group_by(pl.col("label").alias("fraud class"))
    table = frauds.agg(pl.len().alias("frauds"), alarm.sum().alias("caught"), *sums).sort("frauds", descending=True)
    return table.with_columns(recall=pl.col("caught") / pl.col("frauds")).collect()


def calibration_bins(predictions: pl.DataFrame, negative: str, *, bins: int = 12) -> pl.DataFrame:
    """Compute the points of a calibration plot.

    The bins have equal numbers of frauds: with equal numbers of rows, nearly all bins would have no fraud.

    Returns:
        A row per bin: `score` (mean), `rate` of frauds with its 95 % Wilson interval `low, high`, and `rows`.
    """
    known = predictions.lazy().filter(pl.col("label").is_not_null()).select("score", fraud=pl.col("label") != negative).collect()
    frauds = known.filter("fraud")["score"].to_numpy()
    if not len(frauds):
        return pl.DataFrame(schema={"score": pl.Float64, "rate": pl.Float64, "low": pl.Float64, "high": pl.Float64, "rows": pl.UInt32})
    edges = np.unique(np.quantile(frauds, np.linspace(0, 1, bins + 1)[1:-1]))
    place = np.searchsorted(edges, known["score"].to_numpy(), side="right")
    grouped = known.lazy().with_columns(place=pl.Series(place)).group_by("place")
    table = grouped.agg(pl.col("score").mean(), pl.col("fraud").mean().alias("rate"), pl.len().alias("rows")).sort("place")
    n, p, z = pl.col("rows"), pl.col("rate"), 1.96
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)).sqrt()
    return table.with_columns(low=(middle - half).clip(0), high=(middle + half).clip(upper_bound=1)).drop("place").collect()


def attention_of(row: dict[str, object]) -> dict[object, float]:
    """Return the attention by id of earlier transactions, largest first; empty where there is none."""
    ids, mass = row.get("attended") or [], row.get("attended_mass") or []
    assert isinstance(ids, list) and isinstance(mass, list)
    return dict(zip(ids, mass, strict=True))
