"""The comparison of sampling policies and baselines on two public streams, over folds and seeds.

Two learners are compared: the small network of the population and the sequence classifier.

Claims, each checked and recorded whether it holds or not:

- Against 1:1 over-sampling and random under-sampling, `auto` raises at least 29 % fewer false alarms at
  recall .60 and .70, has an F1 at the default threshold more than 17 % higher, and a tuned F1 at least 3 %
  higher.
- Its calibration error and average precision are not worse than without resampling.
- Its average precision is not below that of TPE over constants, and is above that of the bandit. The average
  precision of PPO is not below that of `auto`, and is above that of the bandit.

    python -m benchmarks.claims.sampling --only sparkov-population  # one part; the others are kept
    python -m benchmarks.claims.sampling                            # all four; finished cells are kept

The result is benchmarks/results/sampling.json.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from balancer.comparison.config import CLASSIFIER_TREATMENTS, POPULATION_TREATMENTS, CompareConfig
from balancer.comparison.running import run_comparison
from balancer.comparison.statistics import FALSE_ALARMS, means, paired
from balancer.comparison.terminal import print_comparison
from balancer.runs.progress import TrainingProgress
from benchmarks.lib.commands import parser
from benchmarks.lib.recording import RESULTS, ROOT, record, recorded, rounded
from benchmarks.lib.streams import STREAMS, missing

PARTS = ("handbook-population", "sparkov-population", "handbook-classifier", "sparkov-classifier")
REFERENCES = ("one_to_one", "under", "none", "tpe")
DIGITS = 6
"""Significant digits of the recorded means and differences."""
CLASS_FIGURES = ("average_precision", "average_precision_one_vs_rest", "recall", "precision", "f1")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure")
    options.add_argument("--work", type=Path, default=ROOT / "runs" / "sampling", help="folder of finished cells")
    options.add_argument("--folds", type=int, default=5, help="rolling windows of time")
    options.add_argument("--seeds", type=int, default=3, help="seeds per fold")
    options.add_argument("--first-seed", type=int, default=100, help="first seed")
    options.add_argument("--treatments", help="treatments to compare, separated by commas (default: all of the learner)")
    options.add_argument("--epochs", type=int, default=10, help="epochs of a training")
    options.add_argument("--steps-per-epoch", type=int, default=40, help="mini-batches per epoch")
    options.add_argument("--ppo-rollouts", type=int, default=15, help="rollouts of the PPO fine-tuning")
    options.add_argument("--threads", type=int, default=1, help="CPU threads")
    options.add_argument("--device", default="auto", help="auto, cpu or cuda")
    arguments = options.parse_args()
    for part in arguments.only:
        reason = missing(part.split("-")[0])
        if reason is not None:
            print(reason)
        else:
            merge(part, measure(part, arguments))


def measure(part: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Compare on one data set with one learner; finished cells are read."""
    name, student = part.split("-")
    out = arguments.work / part
    given = tuple(arguments.treatments.split(",")) if arguments.treatments else None
    config = CompareConfig(
        dataset=STREAMS[name].table,
        spec=STREAMS[name].spec,
        treatments=given or (POPULATION_TREATMENTS if student == "population" else CLASSIFIER_TREATMENTS),
        folds=arguments.folds,
        seeds=arguments.seeds,
        seed=arguments.first_seed,
        student=student,  # type: ignore[arg-type]  # of PARTS
        epochs=arguments.epochs,
        steps_per_epoch=arguments.steps_per_epoch,
        ppo_rollouts=arguments.ppo_rollouts,
        device=arguments.device,
        threads=arguments.threads,
        out=out,
        resume=(out / "compare.json").is_file(),
    )
    console = Console()
    started = time.monotonic()
    with TrainingProgress(console) as progress:
        _, content = run_comparison(config, progress)
    print_comparison(content, console)
    results = content["results"]
    return {
        "treatments": list(config.chosen()),
        "budget": {name: getattr(config, name) for name in ("epochs", "steps_per_epoch", "batch_size", "search_trials", "ppo_rollouts")},
        "seeds": list(range(config.seed, config.seed + config.seeds)),
        "folds": content["folds"],
        "seconds_of_this_run": round(time.monotonic() - started),
        "sentence": content["sentence"],
        "claims": claims(results),
        "means": rounded(means(results), DIGITS),
        "paired": {reference: rounded(paired(results, reference), DIGITS) for reference in REFERENCES if reference in config.chosen()},
        "per_class": per_class(results),
    }


def claims(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Check every claim; ``holds`` is ``yes``, ``no``, ``within noise`` or ``not measured``."""
    averages = means(results)
    references = ("one_to_one", "under", "none", "tpe", "auto", "bandit")
    against: dict[str, Any] = {name: paired(results, name) for name in references if name in averages}
    found = []
    for other in ("one_to_one", "under"):
        for recall in ("0.60", "0.70"):
            value = against.get(other, {}).get("auto", {}).get(f"{FALSE_ALARMS}_{recall}")
            ratios = [None if value is None else value[key] for key in ("ratio", "ratio_low", "ratio_high")]
            changes = [None if ratio is None else ratio - 1 for ratio in ratios]
            text = f"auto: false alarms at recall {recall} at least 29 % fewer than {other}"
            found.append(_claim(text, *changes, limit=-0.29, above=False))
        for key, limit, text in (
            ("f1_at_half", 0.17, "F1 at threshold .5 more than 17 % above"),
            ("f1", 0.03, "tuned F1 at least 3 % above"),
        ):
            value = against.get(other, {}).get("auto", {}).get(key)
            base = averages.get(other, {}).get(key)
            relative = [
                None if value is None or value[end] is None or not base else value[end] / base for end in ("difference", "low", "high")
            ]
            found.append(_claim(f"auto: {text} {other}", *relative, limit=limit, above=True))
    plain = (
        ("auto", "none", "ece", "calibration error not above", False),
        ("auto", "none", "average_precision", "average precision not below", True),
        ("auto", "tpe", "average_precision", "average precision not below", True),
        ("ppo", "auto", "average_precision", "average precision not below", True),
        ("ppo", "bandit", "average_precision", "average precision above", True),
        ("auto", "bandit", "average_precision", "average precision above", True),
    )
    for name, other, key, text, above in plain:
        value = against.get(other, {}).get(name, {}).get(key)
        values = (None, None, None) if value is None else (value["difference"], value["low"], value["high"])
        found.append(_claim(f"{name}: {text} {other}", *values, limit=0.0, above=above))
    return found


def _claim(text: str, figure: float | None, low: float | None, high: float | None, *, limit: float, above: bool) -> dict[str, Any]:
    """Check one claim; ``yes`` and ``no`` require that the whole interval lies on one side of the limit."""
    if figure is None:
        return {"claim": text, "holds": "not measured"}
    side = figure >= limit if above else figure <= limit
    if low is None or high is None or low <= limit <= high:
        holds = f"within noise, {'on the right side' if side else 'on the wrong side'}"
    else:
        holds = "yes" if side else "no"
    return {"claim": text, "figure": figure, "low": low, "high": high, "limit": limit, "holds": holds}


def per_class(results: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean figures of every fraud class by treatment; recall and precision at the tuned threshold."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for treatment in dict.fromkeys(result["treatment"] for result in results):
        cells = [result["per_class"] for result in results if result["treatment"] == treatment]
        for name in dict.fromkeys(name for cell in cells for name in cell):
            values = {key: [cell[name][key] for cell in cells if name in cell and cell[name][key] is not None] for key in CLASS_FIGURES}
            found.setdefault(treatment, {})[name] = {key: round(float(np.mean(column)), 5) for key, column in values.items() if column}
    return found


def merge(part: str, measured: dict[str, Any]) -> None:
    """Record a part and keep the other parts."""
    path = RESULTS / "sampling.json"
    parts = recorded(path).get("parts", {}) | {part: measured}
    record({"parts": {name: parts[name] for name in PARTS if name in parts}}, path)


if __name__ == "__main__":
    main()
