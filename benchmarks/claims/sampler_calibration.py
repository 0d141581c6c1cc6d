"""Calibration of a model that was trained with the sampler's loss, where the true probabilities are known.

Claims, for `auto` on a simulated problem with a share of positives of .5 to .014, a small network and a
linear model, by `sampler.probabilities`: the mean is within 5 % of the true one (10 % at .014). Where a class
is the rarer one, the network's expected calibration error is at most .002 above that of natural sampling with
plain cross-entropy, and without the correction of hardness the mean is off by more than 5 % (10 %). The
correction does not change average precision. With equally frequent classes the error is higher (the first
share in the result), and a linear model can't fit the tilt that hardness gives.

    python -m benchmarks.claims.sampler_calibration          # -> benchmarks/results/sampler_calibration.json
    python -m benchmarks.claims.sampler_calibration --seeds 1

Rows: 4 fields, 40,000 rows to train on and as many to test; log-odds linear in the fields. Six epochs of
batches of 256, step sizes falling to a tenth. Every training row is scored after each epoch, which makes
hardness as strong as it gets. Errors of calibration are over 15 bins of equal size, with a noise of about
.002.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from balancer import AdaptiveSampler
from benchmarks.lib.checks import claim
from benchmarks.lib.commands import parser
from benchmarks.lib.recording import RESULTS, record, rounded

BIASES = (0.0, -2.0, -4.0, -6.0)
"""Log-odds of the average row."""
ROWS, EPOCHS, BATCH, BINS = 40_000, 6, 256, 15
POLICIES = {
    "auto": "auto",
    "hardness compensated": "constant:share=root,hardness=1,class_importance=.5,hardness_importance=1",
    "no hardness": "constant:share=root,hardness=0,class_importance=.5",
    "natural": "constant:share=prior,hardness=0",
}
MODELS = ("network", "linear")


def problem(seed: int, bias: float) -> tuple[Tensor, NDArray[np.int64], NDArray[np.float64]]:
    """Fields (n, 4), labels (n,) and their true probabilities (n,)."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(ROWS, 4))
    p = 1.0 / (1.0 + np.exp(-(x @ np.array([1.5, -1.0, 0.7, 0.3]) + bias)))
    return torch.tensor(x, dtype=torch.float32), (rng.random(ROWS) < p).astype(np.int64), p


def calibration_error(y: NDArray[np.int64], p: NDArray[np.float64]) -> float:
    """Mean difference between probability and frequency over bins of equal size."""
    bins = np.array_split(np.argsort(p), BINS)
    return float(sum(len(rows) / len(p) * abs(p[rows].mean() - y[rows].mean()) for rows in bins))


def trained(policy: str, model: str, bias: float, seed: int) -> dict[str, float]:
    """Figures of one model on rows that it has not seen."""
    (x, y, _), (test_x, test_y, true) = problem(2 * seed, bias), problem(2 * seed + 1, bias)
    torch.manual_seed(seed)
    net = nn.Linear(4, 1) if model == "linear" else nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    sampler = AdaptiveSampler(y, policy=policy, epochs=EPOCHS, seed=seed, compensated=True)
    labels = torch.as_tensor(y)
    for _ in range(EPOCHS):
        for rows in torch.tensor(list(sampler)).split(BATCH):
            optimizer.zero_grad()
            sampler.loss(net(x[rows]), labels[rows], rows).backward()
            optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] *= 0.1 ** (1.0 / EPOCHS)
        with torch.no_grad():
            p = sampler.probabilities(net(x))
        sampler.update(y, p, rows=np.arange(ROWS), row_score=p)
    with torch.no_grad():
        logits = net(test_x)[:, 0].double().numpy()
    corrected = sampler.probabilities(logits)[:, 1]
    uncorrected = 1.0 / (1.0 + np.exp(-logits - np.log(sampler.prior[1] / sampler.prior[0])))
    return {
        "mean": float(corrected.mean() / true.mean()),
        "mean_uncorrected": float(uncorrected.mean() / true.mean()),
        "calibration_error": calibration_error(test_y, corrected),
        "calibration_error_uncorrected": calibration_error(test_y, uncorrected),
        "average_precision": float(average_precision_score(test_y, corrected)),
        "average_precision_uncorrected": float(average_precision_score(test_y, uncorrected)),
    }


def measured(seeds: int) -> dict[str, Any]:
    """Means over seeds, by share of positives, model and policy."""
    result: dict[str, Any] = {}
    for bias in BIASES:
        share = f"{problem(0, bias)[2].mean():.3f}"
        result[share] = {model: {} for model in MODELS}
        for model in MODELS:
            for name, policy in POLICIES.items():
                runs = [trained(policy, model, bias, seed) for seed in range(seeds)]
                result[share][model][name] = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
    return result


def claims(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The claims of this script."""
    found = []
    for share, models in result.items():
        limit = 0.05 if float(share) > 0.05 else 0.10
        for model, policies in models.items():
            auto = policies["auto"]
            found.append(claim(f"{share}, {model}: mean probability, relative error", abs(auto["mean"] - 1.0), limit, above=False))
        auto, natural = models["network"]["auto"], models["network"]["natural"]
        change = abs(auto["average_precision"] - auto["average_precision_uncorrected"])
        found.append(claim(f"{share}, network: change of average precision by the correction", change, 1e-6, above=False))
        if float(share) < 0.4:
            excess = auto["calibration_error"] - natural["calibration_error"]
            found.append(claim(f"{share}, network: calibration error above that of natural sampling", excess, 0.002, above=False))
            off = abs(auto["mean_uncorrected"] - 1.0)
            found.append(claim(f"{share}, network: relative error of the mean without the correction", off, limit))
    return found


def main() -> None:
    """Train all models and record their figures."""
    arguments = parser(__doc__)
    arguments.add_argument("--seeds", type=int, default=3)
    seeds = arguments.parse_args().seeds
    torch.set_num_threads(1)
    result = measured(seeds)
    record({"seeds": seeds} | rounded(result, 4) | {"claims": rounded(claims(result), 3)}, RESULTS / "sampler_calibration.json")


if __name__ == "__main__":
    main()
