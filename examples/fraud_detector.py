"""A fraud detector from one table.

From a table of payments to a detector, its report, scores of later payments, and a threshold that costs
least. The detector here is boosted trees alone, which takes seconds; without `learner="trees"` a network is
trained beside them (`balancer train` does the same on the command line). The plain way is LightGBM on the
same fields, which each run trains by itself.

What to see: average precision on the latest rows, which no training saw; and what alarms and missed frauds
cost at the threshold with the best F1 and at the cheapest one, if an alarm costs little or much. Thresholds
are chosen on validation rows and counted on test rows. Both have few frauds, so small differences are
noise, and the threshold that was cheapest on validation rows need not be the cheapest on test rows.

    pip install 'balancer[report]'
    python examples/fraud_detector.py
"""

import json
import tempfile
from pathlib import Path

import altair as alt
import numpy as np
import polars as pl
from rich.console import Console

from balancer.data.simulation.stream import simulate
from balancer.evaluation.operating_points import OperatingPoints
from balancer.inference.decision import Decision
from balancer.options.train import TrainConfig
from balancer.runs.tables import score_file
from balancer.runs.trained_run import TrainedRun
from balancer.training.pipeline import train_run

LOST_SHARE = 1.0  # the whole amount of a missed fraud is lost
folder = Path(tempfile.mkdtemp())  # name a folder of your own to keep the run

payments = simulate(20_000, seed=1, fraud_rate=0.03)
payments[:17_000].write_parquet(folder / "known.parquet")
payments[17_000:].drop("is_fraud").write_parquet(folder / "new.parquet")

config = TrainConfig(dataset=folder / "known.parquet", out=folder / "run", learner="trees")
train_run(config, {}, Console(quiet=True))
report = json.loads((folder / "run" / "report.json").read_text())
models = {"this detector": report["test"], "LightGBM": report["baselines"]["lightgbm"]}
for name, figures in models.items():
    print(f"{name:14} average precision {figures['average_precision']:.3f}, {figures['positives']} frauds in {figures['rows']} test rows")


def points(file):
    """Every threshold of a file of scores, with what it catches."""
    rows = pl.read_parquet(folder / "run" / file)
    time = rows["time"].dt.epoch("s").to_numpy()
    return OperatingPoints.of(
        rows["label"].cast(pl.Int64).to_numpy(), rows["score"].to_numpy(), time=time, amount=rows["amount"].to_numpy()
    )


validation, test = points("threshold_scores.parquet"), points("predictions.parquet")
decision = Decision.load(folder / "run")
cheapest = {per_alarm: validation.for_cost(per_alarm, LOST_SHARE) for per_alarm in (5, 50)}
for per_alarm, lowest in cheapest.items():
    print(f"an alarm costs {per_alarm}; without alarms the loss is {test.cost_at(1.0, per_alarm, LOST_SHARE):,.0f}")
    for name, threshold in (("best F1", decision.threshold), ("cheapest", lowest)):
        alarms = test.metrics(threshold)
        print(
            f"  {name:9} threshold {threshold:.4f}: {alarms['caught']} frauds caught, {alarms['false_alarms']} false alarms, "
            f"total cost {test.cost_at(threshold, per_alarm, LOST_SHARE):,.0f}"
        )

decision.with_threshold(cheapest[5], "lowest cost, 5 per alarm").save(folder / "run")
run = TrainedRun.load(folder / "run")
table = {"past": folder / "known.parquet", "bad_rows": "error", "explain": 2}
summary = score_file(run, folder / "new.parquet", folder / "scored.parquet", **table)
scored = pl.read_parquet(folder / "scored.parquet").sort("score", descending=True)
frauds = payments[17_000:].filter(pl.col("is_fraud") == 1)["transaction_id"].to_list()
caught = scored.filter("decision")["transaction_id"].is_in(frauds).sum()
print(f"{summary['rows']} new payments: {summary['alarms']} alarms, {caught} of {len(frauds)} frauds among them")
print(f"reasons of the first alarm: {scored['reasons'][0]}")

costs = [
    {"threshold": float(at), "cost": test.cost_at(at, per_alarm, LOST_SHARE), "alarm": f"an alarm costs {per_alarm}"}
    for per_alarm in cheapest
    for at in np.geomspace(0.002, 0.99, 80)
]
chosen = [{"threshold": lowest, "alarm": f"an alarm costs {per_alarm}"} for per_alarm, lowest in cheapest.items()]
chosen.append({"threshold": decision.threshold, "alarm": "best F1"})
colour = alt.Color("alarm:N").title(None).sort(None).legend(orient="bottom", columns=2)
at = alt.X("threshold:Q").title("threshold; dashed lines: chosen on validation rows").scale(type="log", domain=[0.002, 1], nice=False)
cost = alt.Y("cost:Q").title("total cost, test rows").scale(domain=[0, 25_000])
lines = alt.Chart(alt.Data(values=costs)).mark_line(interpolate="step", clip=True).encode(x=at, y=cost, color=colour)
rules = alt.Chart(alt.Data(values=chosen)).mark_rule(strokeDash=[4, 3]).encode(x="threshold:Q", color=colour)
(lines + rules).properties(width=360, height=240).save("fraud_detector.svg")
