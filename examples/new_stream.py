"""Moving a model to a new stream.

A network is trained on the payments of one bank. Another bank has few labelled payments. Three networks are
trained on them, with the same few steps: the plain way, from new weights; from the first bank's network,
all parts (`--from`); and from it, head and adapters alone (`--from`, `--train-only`).

What to see: average precision on later payments of the second bank, and the size of what is stored. With
`--train-only` a run stores its own parts alone and refers to the first run for the others. They learn less
from so few steps than all parts do. The test rows have few frauds, so a small difference is noise. With
many rows of the second bank, moving gains nothing.

    pip install 'balancer[train]'
    python examples/new_stream.py
"""

import json
import tempfile
from pathlib import Path

from rich.console import Console

from balancer.data.simulation.stream import simulate
from balancer.options.train import TrainConfig
from balancer.training.pipeline import train_run

folder = Path(tempfile.mkdtemp())  # name a folder of your own to keep the runs
simulate(6000, seed=1, fraud_rate=0.03).write_parquet(folder / "first_bank.parquet")
simulate(3000, seed=3, fraud_rate=0.06).write_parquet(folder / "second_bank.parquet")
NETWORK = {"policy": "auto", "history_length": 4, "precision": "full"}
NEW = {"learner": "network", "d_model": 16, "layers": 1}  # with from_ all of this is that of the first run


def train(name, table, **options):
    """Train a run, and print its figures."""
    out = folder / name
    train_run(TrainConfig(dataset=folder / table, out=out, **NETWORK, **options), {}, Console(quiet=True))
    test = json.loads((out / "report.json").read_text())["test"]
    size = sum(file.stat().st_size for file in out.glob("model*.safetensors"))
    print(f"{name:24} average precision {test['average_precision']:.3f} on {test['positives']} frauds, weights stored {size / 1000:.0f} kB")


train("first bank", "first_bank.parquet", epochs=6, steps_per_epoch=20, **NEW)
print("second bank:")
few = {"epochs": 2, "steps_per_epoch": 8}
train("new weights", "second_bank.parquet", **few, **NEW)
train("all parts", "second_bank.parquet", **few, from_=folder / "first bank")
train("head and adapters alone", "second_bank.parquet", **few, from_=folder / "first bank", train_only=("head", "adapter"))
