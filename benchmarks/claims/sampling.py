"""The protocol of sampling: all policies and baselines on two public streams, rolling windows, seeds, two learners, losses in the same table.

Claims, each checked and written down whether it holds or not: against 1:1 and random under-sampling `auto` raises at least 29 % fewer false alarms at
recall .60 and .70, has an F1 at the default threshold more than 17 % higher and a tuned F1 at least 3 % higher; its calibration error and average precision are
not worse than without resampling; how it stands to TPE over constants, and PPO to the bandit.

    python benchmarks/sampling.py --only sparkov-population     # one part; parts are merged -> benchmarks/results/sampling.json
    python benchmarks/sampling.py                               # all four; finished cells under --work are not made again
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from recording import RESULTS, ROOT, SHARED, record
from rich.console import Console

from balancer.comparison.config import CLASSIFIER_POLICIES, POPULATION_POLICIES, CompareConfig
from balancer.comparison.running import run_comparison
from balancer.comparison.statistics import FALSE_ALARMS, means, paired
from balancer.comparison.terminal import print_comparison
from balancer.runs.progress import TrainingProgress

PARTS = ("handbook-population", "sparkov-population", "handbook-classifier", "sparkov-classifier")
REFERENCES = ("one_to_one", "under", "none", "tpe")
CLASS_FIGURES = ("average_precision", "average_precision_one_vs_rest", "recall", "precision", "f1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "sampling", help="folder of finished cells")
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--policies", help="instead of all, separated by commas")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--steps-per-epoch", type=int, default=40)
    parser.add_argument("--ppo-rollouts", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    for part in arguments.only:
        merge(part, measure(part, arguments))


def measure(part: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One data set with one learner, from finished cells on."""
    name, student = part.split("-")
    table = SHARED / name / "transactions.parquet"
    if not table.is_file():
        return {"skipped": f"{name}/transactions.parquet is not there: these public streams are fetched apart from the repository"}
    out = arguments.work / part
    given = tuple(arguments.policies.split(",")) if arguments.policies else None
    config = CompareConfig(
        dataset=table,
        spec=ROOT / "benchmarks" / "datasets" / f"{name}.toml",
        policies=given or (POPULATION_POLICIES if student == "population" else CLASSIFIER_POLICIES),
        windows=arguments.windows,
        seeds=arguments.seeds,
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
        _, content = run_comparison(config, {}, progress)
    print_comparison(content, console)
    results = content["results"]
    return {
        "policies": list(config.chosen()),
        "budget": {name: getattr(config, name) for name in ("epochs", "steps_per_epoch", "batch_size", "search_trials", "ppo_rollouts")},
        "seeds": list(range(config.seed, config.seed + config.seeds)),
        "windows": content["windows"],
        "seconds_of_this_run": round(time.monotonic() - started),
        "sentence": content["sentence"],
        "claims": claims(results),
        "means": rounded(means(results)),
        "paired": {reference: rounded(paired(results, reference)) for reference in REFERENCES if reference in config.chosen()},
        "per_class": per_class(results),
    }


def claims(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each claim with its figure, its interval and whether it holds: ``yes``, ``no``, ``within noise``, or ``not measured``."""
    averages = means(results)
    against = {name: paired(results, name) for name in ("one_to_one", "under", "none", "tpe", "auto", "bandit") if name in averages}
    found = []
    for other in ("one_to_one", "under"):
        for recall in ("0.60", "0.70"):
            own = against.get(other, {}).get("auto", {}).get(f"{FALSE_ALARMS}_{recall}")
            low, high = (None, None) if own is None else (own["ratio_low"], own["ratio_high"])
            figure = None if own is None else own["ratio"] - 1
            ends = (None, None) if low is None else (low - 1, high - 1)
            found.append(
                _claim(f"auto: false alarms at recall {recall} at least 29 % fewer than {other}", figure, *ends, limit=-0.29, above=False)
            )
        for key, limit, said in (
            ("f1_at_half", 0.17, "F1 at threshold .5 more than 17 % above"),
            ("f1", 0.03, "tuned F1 at least 3 % above"),
        ):
            own = against.get(other, {}).get("auto", {}).get(key)
            base = averages.get(other, {}).get(key)
            relative = [None if own is None or own[end] is None or not base else own[end] / base for end in ("difference", "low", "high")]
            found.append(_claim(f"auto: {said} {other}", *relative, limit=limit, above=True))
    plain = (
        ("auto", "none", "ece", "calibration error not above", False),
        ("auto", "none", "average_precision", "average precision not below", True),
        ("auto", "tpe", "average_precision", "average precision not below", True),
        ("ppo", "auto", "average_precision", "average precision not below", True),
        ("ppo", "bandit", "average_precision", "average precision above", True),
        ("auto", "bandit", "average_precision", "average precision above", True),
    )
    for name, other, key, said, above in plain:
        own = against.get(other, {}).get(name, {}).get(key)
        values = (None, None, None) if own is None else (own["difference"], own["low"], own["high"])
        found.append(_claim(f"{name}: {said} {other}", *values, limit=0.0, above=above))
    return found


def _claim(text: str, figure: float | None, low: float | None, high: float | None, *, limit: float, above: bool) -> dict[str, Any]:
    """``yes`` and ``no`` where the whole interval lies on one side of the limit."""
    if figure is None:
        return {"claim": text, "holds": "not measured"}
    side = figure >= limit if above else figure <= limit
    if low is None or high is None or low <= limit <= high:
        holds = f"within noise, {'on the right side' if side else 'on the wrong side'}"
    else:
        holds = "yes" if side else "no"
    return {"claim": text, "figure": figure, "low": low, "high": high, "limit": limit, "holds": holds}


def per_class(results: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Means of the figures of every fraud class by policy; recall and precision at the tuned threshold."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for policy in dict.fromkeys(result["policy"] for result in results):
        cells = [result["per_class"] for result in results if result["policy"] == policy]
        for name in dict.fromkeys(name for cell in cells for name in cell):
            values = {key: [cell[name][key] for cell in cells if name in cell and cell[name][key] is not None] for key in CLASS_FIGURES}
            found.setdefault(policy, {})[name] = {key: round(float(np.mean(own)), 5) for key, own in values.items() if own}
    return found


def rounded(value: Any) -> Any:
    """Six significant digits, all the way down."""
    if isinstance(value, dict):
        return {key: rounded(own) for key, own in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def merge(part: str, measured: dict[str, Any]) -> None:
    """Put a part beside those measured before."""
    path = RESULTS / "sampling.json"
    parts = json.loads(path.read_text())["parts"] if path.exists() else {}
    parts[part] = rounded(measured)
    record({"parts": {name: parts[name] for name in PARTS if name in parts}}, path)


if __name__ == "__main__":
    main()
