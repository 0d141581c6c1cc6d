"""The simulator: how fast it is, and how hard the classification of its tables is.

Claims: a million rows take at most 20 s on one core. On the sample (60,000 rows, 2 % fraud, seed 12) and on a
larger stream, boosted trees with simple causal features reach an average precision between .6 and .85 on
rows later than their training rows: the task is neither trivial nor hopeless.

    python -m benchmarks.claims.simulate                # -> benchmarks/results/simulate.json
"""

from __future__ import annotations

import os

# One core, set before NumPy and polars are loaded.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["POLARS_MAX_THREADS"] = "1"

import resource
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import polars as pl
from sklearn.metrics import average_precision_score

from balancer.data.simulation.stream import simulate
from benchmarks.lib.commands import parser
from benchmarks.lib.recording import RESULTS, record

DELAY = timedelta(days=7)
FRAUDS = ("card_testing", "stolen_card", "account_takeover", "compromised_merchant")


def simple_features(frame: pl.DataFrame) -> tuple[np.ndarray, list[str]]:
    """Features (rows, features) as float64, and their names.

    A feature depends on the row itself, on earlier rows of its card, and on labels that are at least 7 days
    old.
    """
    fraud = (pl.col("fraud_type") != "legitimate").cast(pl.Float64)
    log_amount = pl.col("amount").log()
    kind = ("card_id", "merchant_category")
    earlier = frame.with_columns(
        *[pl.col("time").diff(n).over("card_id").dt.total_seconds().alias(f"gap_{n}") for n in (1, 2, 3, 6)],
        *[log_amount.shift(n).over("card_id").alias(f"log_amount_{n}") for n in (1, 2, 3)],
        log_amount=log_amount,
        hour=pl.col("time").dt.hour(),
        weekday=pl.col("time").dt.weekday(),
        habit=log_amount - (log_amount.cum_sum() - log_amount).over("card_id") / pl.int_range(pl.len()).over("card_id"),
        category_habit=log_amount - (log_amount.cum_sum() - log_amount).over(kind) / pl.int_range(pl.len()).over(kind),
        category=pl.col("merchant_category").cast(pl.Categorical).to_physical(),
        way=pl.col("channel").cast(pl.Categorical).to_physical(),
        seen_before=pl.int_range(pl.len()).over("card_id", "merchant_id"),
        last_distance=pl.col("distance_km").shift(1).over("card_id"),
    )
    reported = frame.select("merchant_id", time=pl.col("time") + DELAY, rows=pl.lit(1.0), frauds=fraud).with_columns(
        pl.col("rows", "frauds").cum_sum().over("merchant_id")
    )
    for days in (0, 7, 30):
        at = earlier.select("merchant_id", time=pl.col("time") - timedelta(days=days))
        known = at.join_asof(reported, on="time", by="merchant_id", strategy="backward", check_sortedness=False)
        earlier = earlier.with_columns(known.select(pl.col("rows", "frauds").fill_null(0.0).name.suffix(f"_{days}")))
    for days in (7, 30):
        count, frauds = (pl.col(f"{name}_0") - pl.col(f"{name}_{days}") for name in ("rows", "frauds"))
        earlier = earlier.with_columns((frauds / count).alias(f"risk_{days}"), count.alias(f"count_{days}"))
    names = ["log_amount", "hour", "weekday", "habit", "category_habit", "category", "way", "seen_before", "distance_km", "last_distance"]
    names += ["gap_1", "gap_2", "gap_3", "gap_6", "log_amount_1", "log_amount_2", "log_amount_3"]
    names += ["risk_7", "count_7", "risk_30", "count_30"]
    return earlier.select(pl.col(names).cast(pl.Float64)).to_numpy(), names


def difficulty(rows: int, seed: int, fraud_rate: float) -> dict[str, Any]:
    """Average precision of boosted trees that are trained on the first 60 % of a stream, on its last 40 %.

    It is measured for all frauds together, and for each type of fraud against the legitimate rows.
    """
    frame = simulate(rows, seed=seed, fraud_rate=fraud_rate, labels="types")
    values, names = simple_features(frame)
    kind = frame["fraud_type"].to_numpy()
    label = (kind != "legitimate").astype(int)
    cut = int(0.6 * rows)
    parameters = {
        "objective": "binary",
        "num_leaves": 15,
        "learning_rate": 0.05,
        "min_data_in_leaf": 30,
        "feature_fraction": 0.7,
        "max_bin": 1023,
        "num_threads": 1,
        "verbose": -1,
        "seed": 0,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "lambda_l2": 5.0,
    }
    categorical = [names.index("category"), names.index("way")]
    model = lightgbm.train(parameters, lightgbm.Dataset(values[:cut], label[:cut], categorical_feature=categorical), 200)
    score = np.asarray(model.predict(values[cut:]))
    later = kind[cut:]
    figures: dict[str, Any] = {
        "rows": rows,
        "seed": seed,
        "fraud_rate": fraud_rate,
        "frauds_train": int(label[:cut].sum()),
        "frauds_test": int(label[cut:].sum()),
    }
    figures["average_precision"] = round(float(average_precision_score(label[cut:], score)), 4)
    for name in FRAUDS:
        part = (later == name) | (later == "legitimate")
        figures[f"average_precision_{name}"] = round(float(average_precision_score(later[part] == name, score[part])), 4)
    # Legitimate rows that are trivial to recognise: those scored below a tenth of the prior.
    figures["trivial_legitimate_share"] = round(float((score[later == "legitimate"] < 0.1 * label.mean()).mean()), 4)
    return figures


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rows", type=int, default=1_000_000, help="rows of the timed simulation")
    options.add_argument("--out", type=Path, default=RESULTS / "simulate.json", help="JSON file for the result")
    arguments = options.parse_args()
    begin = time.perf_counter()
    simulate(arguments.rows, seed=0)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result = {
        "speed": {"rows": arguments.rows, "seed": 0, "seconds": round(seconds, 2), "peak_mib": round(peak), "threads": 1},
        "difficulty": [difficulty(60_000, 12, 0.02), difficulty(60_000, 7, 0.02), difficulty(300_000, 7, 0.01)],
    }
    record(result, arguments.out)


if __name__ == "__main__":
    main()
