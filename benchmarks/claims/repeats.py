"""How often may a fraud be repeated? Shares at two lengths of training, on simulated tables; the evidence behind MAX_REPEATS and MOST_PASSES.

Claim: what is best across lengths is a number of draws per training fraud, not a share; 1:1 over-sampling is never best.

    python benchmarks/repeats.py                        # -> benchmarks/results/repeats.json
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from recording import RESULTS, record
from sklearn.metrics import average_precision_score

from balancer.data.dataset import load_dataset
from balancer.data.roles import resolve_spec
from balancer.data.simulation.stream import simulate
from balancer.data.split import PART_TEST, PART_THRESHOLD, PART_TRAIN
from balancer.models import ModelConfig, fit_edges
from balancer.options.train import Budget, TrainConfig
from balancer.sampling.policies import ConstantPolicy
from balancer.training.fitting import Pools, Scheme, baseline_scheme, fit_classifier

ROWS, FRAUD_RATE, EPOCHS = 60_000, 0.02, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12])
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 60], help="mini-batches an epoch")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = TrainConfig(dataset=Path("simulated"))
    rows = []
    for seed in arguments.seeds:
        table = simulate(ROWS, seed=seed, fraud_rate=FRAUD_RATE)
        dataset = load_dataset(table, resolve_spec(table))
        store, schema, pools = dataset.store, dataset.schema, Pools.of(dataset)
        train = dataset.rows(PART_TRAIN)
        edges = fit_edges(store.values[train, : store.num_numeric], store.label[train].astype(np.int64), seed=1)
        model = ModelConfig(
            schema.numeric_fields,
            schema.categorical_fields,
            schema.cardinalities,
            edges,
            classes=schema.classes,
            dropout=config.dropout,
            field_dropout=config.field_dropout,
        )
        held = np.concatenate([dataset.rows(PART_THRESHOLD), dataset.rows(PART_TEST)])
        for steps in arguments.steps:
            draws = EPOCHS * steps * config.batch_size
            schemes = [baseline_scheme(name, pools.train_counts) for name in ("none", "one_to_one")]
            schemes[1:1] = [Scheme(f"share {share}", ConstantPolicy(share, 0.0)) for share in (0.06, 0.12)]
            for scheme in schemes:
                with tempfile.TemporaryDirectory() as folder:
                    student, figures = fit_classifier(
                        dataset,
                        model,
                        scheme,
                        Budget(EPOCHS, steps),
                        config,
                        device="cpu",
                        checkpoint=Path(folder) / "checkpoint.safetensors",
                        after_epoch=lambda epoch, line: None,
                    )
                score = student.score(held)[:, 1]
                rows.append(
                    {
                        "table": seed,
                        "sampling": scheme.name,
                        "draws_per_row": round(draws / len(train), 2),
                        "repeats_per_fraud": round(figures[-1]["share"][1] * draws / int(pools.train_counts[1]), 1),
                        "average_precision": round(float(average_precision_score(store.label[held] > 0, score)), 4),
                    }
                )
                record({"rows": ROWS, "fraud_rate": FRAUD_RATE, "seed": config.seed, "results": rows}, RESULTS / "repeats.json")


if __name__ == "__main__":
    main()
