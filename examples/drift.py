"""Drift, and training again.

A detector is trained on the first half of a stream of payments. Then amounts rise by 60 %, and payments are
made farther from home. `score_file` compares what it scores with the rows of training, and says which
fields have changed. When labels have arrived, a second detector is trained on rows after the change alone.

What to see: which fields are named, with their population stability index (PSI), and average precision of
both detectors on later payments, which neither was trained on. The second one has fewer rows to learn from,
and may be behind in spite of the change. A change that is named does not mean that the ranking is worse,
nor that training again pays: only labels show that.

    pip install 'balancer[train]' altair vl-convert-python
    python examples/drift.py
"""

import tempfile
from pathlib import Path

import altair as alt
import polars as pl
from rich.console import Console
from sklearn.metrics import average_precision_score

from balancer.data.simulation.stream import simulate
from balancer.options.train import TrainConfig
from balancer.runs.tables import score_file
from balancer.runs.trained_run import TrainedRun
from balancer.training.pipeline import train_run

folder = Path(tempfile.mkdtemp())  # name a folder of your own to keep the runs
payments = simulate(12_000, seed=1, fraud_rate=0.04, days=240)
far = pl.col("distance_km") * 2 + 5
after = payments[6000:].with_columns(pl.col("amount") * 1.6, distance_km=far)
tables = {"first": payments[:6000], "changed": after[:1500], "second": after[:4000], "later": after[4000:]}
for name, table in tables.items():
    table.write_parquet(folder / f"{name}.parquet")


def train(name):
    """Train a detector on a table."""
    config = TrainConfig(dataset=folder / f"{name}.parquet", out=folder / f"run_{name}", learner="trees")
    return TrainedRun.load(train_run(config, {}, Console(quiet=True)))


def score(run, name, past):
    """Score a table: the summary, and a score for each row."""
    output = folder / "scored.parquet"
    summary = score_file(run, folder / f"{name}.parquet", output, past=folder / f"{past}.parquet", bad_rows="error", overwrite=True)
    return summary, pl.read_parquet(output)["score"].to_numpy()


first = train("first")
changed, _ = score(first, "changed", past="first")
notable, fields = changed["drift"]["notable"], changed["drift"]["fields"]
print(f"{len(notable)} of {len(fields)} fields have changed; {changed['alarms']} alarms in {changed['rows']} rows")
for field in notable[:5]:
    print(f"  {field['field']:32} PSI {field['psi']:.2f}, median {field['median'][0]:.2f}, now {field['median'][1]:.2f}")

label = tables["later"]["is_fraud"].to_numpy()
print(f"{label.sum()} frauds in {len(label)} later payments, share {label.mean():.4f}")
for name, run in (("first detector", first), ("trained again", train("second"))):
    _, scores = score(run, "later", past="second")
    print(f"{name:16} average precision {average_precision_score(label, scores):.3f}, mean score {scores.mean():.4f}")

shown = [{"field": name, "index": value} for name, value in sorted(fields.items(), key=lambda item: -item[1])[:12]]
bars = alt.Chart(alt.Data(values=shown)).mark_bar()
bars.encode(
    x=alt.X("index:Q").title("population stability index"), y=alt.Y("field:N").title(None).sort(None).axis(labelLimit=300, minExtent=250)
).properties(width=200, height=240).save("drift.svg")
