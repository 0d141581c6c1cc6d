"""Whole histories with sparse attention, against the last 8 rows with dense attention, in the detector.

`balancer train` puts a network on boosted trees whose scores of earlier rows are fields already. Two networks
are trained on the same trees and fields:

- rows: each row with the 7 rows before it, dense attention (the default).
- histories: histories of up to 2,048 rows, each read once for all rows that are drawn from it; sparse
  attention with a window of 64 and 8 global nodes.

"rows" is trained with the schedule of `balancer train`. "histories" is trained with a single step in each
epoch ("fewest steps"): its CPU time is what scoring alone costs, of the reward rows after each epoch and of
the test rows. Where that is more than the whole cost of "rows", no training of "histories" is as cheap. With
--equal-steps it is also trained with the schedule of "rows". The blend takes its weight from the reward half
of validation, as `balancer train` does.

Whole histories become the default where the blend is no worse at equal cost on every stream.

    python -m benchmarks.claims.whole_histories      # all -> benchmarks/results/whole_histories.json
    python -m benchmarks.claims.whole_histories --only handbook --seeds 2

Every training is recorded when it ends, so a stopped run continues.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import replace
from typing import Any

from benchmarks.claims.network_variants import base, blended
from benchmarks.lib.commands import parser
from benchmarks.lib.network_trial import Training, train_and_read
from benchmarks.lib.recording import RESULTS, recorded, rounded, write
from benchmarks.lib.stage_cache import Stages, opened_stages
from benchmarks.lib.streams import STREAMS, missing

PATH = RESULTS / "whole_histories.json"
LENGTH = 2048
SEEDS = 2
ROWS, FEWEST, EQUAL = "rows", "histories, fewest steps", "histories, equal steps"
Cells = dict[str, dict[str, Any]]
"""Figures by name of the training and seed."""


def whole_histories(stages: Stages) -> Training:
    """The network that reads whole histories."""
    made = base(stages)
    model = replace(made.model, form="histories", history_length=LENGTH, attention="sparse", attention_window=64, global_nodes=8)
    return replace(made, model=model)


def measured(stages: Stages, training: Training, seed: int) -> dict[str, Any]:
    """Average precision of network and blend, and CPU seconds."""
    found, seconds, _ = train_and_read(training, seed, ("last",))
    figures = blended(stages, found["last"])
    schedule = training.schedule
    measured_now: dict[str, Any] = rounded(
        {
            "network": figures["network"]["average_precision"],
            "blend": figures["blend"]["average_precision"],
            "weight": figures["weight"],
            "cpu_seconds": seconds,
            "steps": schedule.epochs * schedule.steps_per_epoch,
        },
        6,
    )
    return measured_now


def summary(cells: Cells) -> dict[str, Any]:
    """Mean difference of each training to ROWS, over the seeds that both have."""
    found: dict[str, Any] = {}
    for name, by_seed in cells.items():
        both = [seed for seed in by_seed if seed in cells[ROWS]]
        found[name] = {
            part: {
                "mean": statistics.mean(by_seed[seed][part] for seed in both),
                "difference": statistics.mean(by_seed[seed][part] - cells[ROWS][seed][part] for seed in both),
            }
            for part in ("network", "blend", "cpu_seconds")
        } | {"seeds": len(both)}
    averages: dict[str, Any] = rounded(found, 6)
    return averages


def measure(stream: str, seeds: int, *, equal_steps: bool) -> None:
    """Measure the trainings of one stream."""
    content: dict[str, Any] = recorded(PATH).get("streams", {}).get(stream, {})
    cells: Cells = content.setdefault("networks", {})

    def keep(name: str, seed: int, found: dict[str, Any]) -> None:
        cells.setdefault(name, {})[str(seed)] = found
        print(f"{stream}, {name}, seed {seed}: {found}", file=sys.stderr, flush=True)
        content["summary"] = summary(cells)
        streams = recorded(PATH).get("streams", {}) | {stream: content}
        write({"streams": {each: streams[each] for each in STREAMS if each in streams}}, PATH)

    with opened_stages(stream) as stages:
        whole = whole_histories(stages)
        few = replace(whole, schedule=replace(whole.schedule, steps_per_epoch=1))
        trainings = {ROWS: base(stages), FEWEST: few, **({EQUAL: whole} if equal_steps else {})}
        for seed in range(seeds):
            for name, training in trainings.items():
                if str(seed) not in cells.get(name, {}):
                    keep(name, seed, measured(stages, training, seed))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--only", choices=STREAMS, help="one stream (default: all)")
    options.add_argument("--seeds", type=int, default=SEEDS, help=f"seeds of each network (default: {SEEDS})")
    options.add_argument("--equal-steps", action="store_true", help="train on whole histories with the schedule of rows too")
    arguments = options.parse_args()
    for name in [arguments.only] if arguments.only else STREAMS:
        reason = missing(name)
        if reason is not None:
            print(reason, file=sys.stderr)
            continue
        measure(name, arguments.seeds, equal_steps=arguments.equal_steps)
    for stream, content in recorded(PATH).get("streams", {}).items():
        for name, found in content["summary"].items():
            print(
                f"{stream:10} {name:24} "
                + "  ".join(f"{part} {each['mean']:.4f} ({each['difference']:+.4f})" for part, each in found.items() if part != "seeds")
            )


if __name__ == "__main__":
    main()
