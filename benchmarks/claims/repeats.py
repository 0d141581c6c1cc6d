"""How often a fraud may be repeated in training: shares of frauds, with two lengths of training.

The constants MAX_REPEATS and MOST_PASSES of the package are based on this measurement.

Claim: what is best for both lengths of training is a number of draws per training fraud, not a share; 1:1
over-sampling is never best.

    python -m benchmarks.claims.repeats                 # -> benchmarks/results/repeats.json
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.metrics import average_precision_score

from balancer.data.split import Split
from balancer.options.fit import Budget, FitOptions
from balancer.sampling.policies import ConstantPolicy
from balancer.training.fitting import Pools
from balancer.training.treatment import Treatment, fixed_treatment
from benchmarks.lib.commands import parser
from benchmarks.lib.recording import RESULTS, record
from benchmarks.lib.training import default_model, simulated_dataset, train_classifier

ROWS, FRAUD_RATE, EPOCHS = 60_000, 0.02, 8
SEED = 0
"""Seed of every training."""


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, nargs="+", default=[11, 12], help="seeds of the simulated tables")
    options.add_argument("--steps", type=int, nargs="+", default=[20, 60], help="mini-batches per epoch")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    fit = FitOptions()
    rows = []
    for seed in arguments.seeds:
        dataset = simulated_dataset(ROWS, seed=seed, fraud_rate=FRAUD_RATE)
        pools, label = Pools.of(dataset), dataset.store.label
        model = default_model(dataset, edges_seed=1)
        train = dataset.rows(Split.TRAIN)
        held_out = np.concatenate([dataset.rows(Split.THRESHOLD), dataset.rows(Split.TEST)])
        for steps in arguments.steps:
            draws = EPOCHS * steps * fit.batch_size
            treatments = [fixed_treatment(name, pools.train_counts) for name in ("none", "one_to_one")]
            treatments[1:1] = [Treatment(f"share {share}", ConstantPolicy(share, 0.0)) for share in (0.06, 0.12)]
            for treatment in treatments:
                student, figures = train_classifier(dataset, model, treatment, Budget(EPOCHS, steps), fit, seed=SEED)
                score = student.score(held_out)[:, 1]
                rows.append(
                    {
                        "table": seed,
                        "sampling": treatment.name,
                        "draws_per_row": round(draws / len(train), 2),
                        "repeats_per_fraud": round(figures[-1]["share"][1] * draws / int(pools.train_counts[1]), 1),
                        "average_precision": round(float(average_precision_score(label[held_out] > 0, score)), 4),
                    }
                )
                record({"rows": ROWS, "fraud_rate": FRAUD_RATE, "seed": SEED, "results": rows}, RESULTS / "repeats.json")


if __name__ == "__main__":
    main()
