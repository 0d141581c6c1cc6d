"""Write the files of this folder. Run it in this folder, with the Python of an environment that has version
0.1 of balancer.

Everything is real but small: one table of 2,400 simulated rows, one block of width 16, two short epochs.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from unittest.mock import patch

import numpy as np
import polars as pl
import torch

import balancer
from balancer import AdaptiveSampler, EmbeddedSampler
from balancer.cli import main
from balancer.files import write_arrays, write_json
from balancer.models import Classifier, ModelConfig, SequenceBatch, fit_edges, save_classifier

TABLE, TYPES = "transactions.parquet", "types.parquet"
SHORT = [
    "--epochs",
    "2",
    "--steps-per-epoch",
    "6",
    "--d-model",
    "16",
    "--layers",
    "1",
    "--history",
    "6",
    "--batch-size",
    "64",
    "--threads",
    "1",
    "--seed",
    "1",
]
CONSTANT = "constant:share=.3,hardness=0"


def call(*words: str, code: int = 0) -> None:
    """Run one command of the command line."""
    result = main(list(words))
    assert result == code, (result, words)


def simulate(file: str, *words: str) -> None:
    """Simulate a table, and keep few columns: each numeric field has a table of weights."""
    call("simulate", "--out", file, "--rows", "2400", "--seed", "5", *words)
    label = "fraud_type" if "types" in words else "is_fraud"
    pl.read_parquet(file).select("transaction_id", "time", "card_id", "channel", "amount", label).write_parquet(file)


def train(name: str, *words: str, table: str = TABLE) -> None:
    """Train a run."""
    call("train", "--dataset", table, "--out", name, *SHORT, *words)


def interrupted(name: str, *words: str) -> None:
    """Train a run that is interrupted after its first epoch."""
    with patch("balancer.training.pipeline.describe", side_effect=KeyboardInterrupt):
        call("train", "--dataset", TABLE, "--out", name, *SHORT, *words, code=130)


def scores(run: str, *words: str, table: str = TABLE) -> pl.DataFrame:
    """Identifier and score of every row of the table."""
    call("score", run, "--input", table, "--output", "scores.parquet", *words)
    frame = pl.read_parquet("scores.parquet")
    Path("scores.parquet").unlink()
    return frame.select("transaction_id", "score")


def classifier() -> None:
    """A classifier that no command made, with the options that the runs leave at their defaults; its outputs
    for 32 histories.
    """
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    values = np.column_stack([rng.normal(size=(400, 2)), rng.integers(0, 24, 400)]).astype(np.float32)
    config = ModelConfig(
        numeric_fields=("amount", "balance", "hour"),
        categorical_fields=("channel",),
        cardinalities=(4,),
        edges=fit_edges(values, rng.integers(0, 3, 400), max_leaves=4, seed=0),
        classes=("fine", "stolen", "lost"),
        history=8,
        d_model=16,
        num_heads=2,
        num_layers=2,
        attention="sparse",
        window=3,
        global_nodes=2,
        form="sequence",
        head="multiclass",
        numeric_encoding="periodic",
        cycles={"hour": 24.0},
    )
    model = Classifier(config).eval()
    save_classifier(model, Path("classifier"))
    lengths = rng.integers(1, 9, 32)
    fields = np.concatenate([values[rng.integers(0, 400, (32, 8))], rng.integers(0, 4, (32, 8, 1))], axis=2).astype(np.float32)
    fields[np.arange(8) >= lengths[:, None]] = 0.0
    with torch.no_grad():
        output = model.probabilities(SequenceBatch.from_windows(fields, lengths))
    write_arrays(Path("classifier/expected.safetensors"), {"values": fields, "lengths": lengths, "probabilities": output.numpy()}, {})


def plain(state: object) -> object:
    """A state as JSON."""
    if isinstance(state, dict):
        return {key: plain(value) for key, value in state.items()}
    return state.tolist() if isinstance(state, np.ndarray | torch.Tensor) else state


def samplers() -> None:
    """States of the samplers after one epoch, and what they draw next."""
    labels = ["fine"] * 270 + ["fraud"] * 30
    truth, score = ["fine"] * 9 + ["fraud"], np.linspace(0.05, 0.95, 10)
    rows = np.arange(0, 300, 3)
    options = {"policy": "constant:share=.3,hardness=0", "epochs": 4, "num_samples": 60, "seed": 3}
    core = EmbeddedSampler(labels, **options)
    core.draw()
    core.update(truth, score, rows=rows, row_score=np.linspace(0.0, 1.0, 100))
    write_json(Path("sampler.json"), {"options": options, "state": plain(core.state_dict()), "next": core.draw().tolist()})
    sampler = AdaptiveSampler(labels, **options)
    walk = iter(sampler)
    [next(walk) for _ in range(25)]
    state = plain(sampler.state_dict())
    write_json(Path("torch_sampler.json"), {"options": options, "state": state, "next": list(walk)})


def make() -> None:
    """Write everything."""
    assert balancer.__version__.startswith("0.1."), balancer.__version__
    simulate(TABLE, "--fraud-rate", ".05")
    simulate(TYPES, "--fraud-rate", ".08", "--labels", "types")
    train("rows", "--policy", "ppo", "--policy-rollouts", "1")
    shutil.move("rows/policy", "policy")
    call("quantize", "rows", "--prefer", "size", "--max-drop", ".5")
    train("histories", *["--policy", "schedule", "--form", "sequence", "--attention", "sparse", "--window", "4", "--global-nodes", "2"])
    train("types", "--policy", "rule", table=TYPES)
    call("pretrain", "--dataset", TABLE, "--out", "pretrained", *SHORT)
    train("delta", *["--from", "pretrained", "--train-only", "head,adapter", "--adapter-rank", "2", "--policy", "auto"])
    train("finished", "--policy", CONSTANT)
    interrupted("unfinished", "--policy", CONSTANT)
    expected = {name: scores(name) for name in ("rows", "histories", "delta", "finished")}
    expected |= {"quantized": scores("rows", "--precision", "quantized"), "types": scores("types", table=TYPES)}
    shutil.rmtree("finished")  # the end of the unfinished run
    frames = [frame.select(pl.col("score").alias(name)) for name, frame in expected.items()]
    pl.concat([expected["rows"].select("transaction_id"), *frames], how="horizontal").tail(480).write_parquet("scores.parquet")
    compare = "--policies none,one_to_one,auto --windows 1 --seeds 2 --epochs 2 --steps-per-epoch 5 --threads 1 --out comparison"
    call("compare", "--dataset", TABLE, *compare.split())
    classifier()
    samplers()
    shutil.rmtree("policy/tensorboard")
    unread = [
        *Path().glob("*/.lock"),
        *(Path(run, name) for run in ("histories", "types", "delta") for name in ("curves.parquet", "report.md")),
    ]
    for file in unread:
        file.unlink()


if __name__ == "__main__":
    make()
