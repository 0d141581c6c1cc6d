"""What a row costs in a detector: trees, score memory, network, and all of it.

Claims, on one core: the trees of both stages take less than .1 ms for a single row, the whole detector (score
memory, both stages, one step of a streaming network) less than 1 ms, and a table of a million rows takes less
than 60 seconds. The compiled evaluator is faster than LightGBM's own prediction of the same trees.

    python -m benchmarks.claims.detector_speed            # -> benchmarks/results/detector_speed.json
    python -m benchmarks.claims.detector_speed --run RUN  # with the run of balancer train in RUN
"""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import torch

from balancer.data.score_memory import TableScores, memory_fields
from balancer.inference.streaming import RowStream
from balancer.inference.tree_stages import TREES_FOLDER
from balancer.runs.trained_run import TrainedRun
from benchmarks.lib.commands import BALANCER, parser
from benchmarks.lib.recording import RESULTS, ROOT, record
from benchmarks.lib.streams import SAMPLE

SINGLE = 500
"""Rows that are scored one by one."""


def per_row(call: Callable[[int], Any]) -> float:
    """Median milliseconds of ``call(row)`` over `SINGLE` rows, after a few warm-up calls."""
    for row in range(20):
        call(row)
    times = []
    for row in range(SINGLE):
        started = time.perf_counter()
        call(row)
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def measure(run: TrainedRun, table: Path) -> dict[str, Any]:
    """Times of single rows and of the whole table."""
    started, cpu = time.perf_counter(), time.process_time()
    dataset = run.table(table)
    fields = time.process_time() - cpu
    rows = dataset.scored_rows()
    cpu = time.process_time()
    run.detector.scores(dataset, rows, device=run.device)
    scoring = time.process_time() - cpu
    stages, store, base = run.detector.stages, dataset.store, dataset.without_score_fields().store
    assert stages is not None
    late, fold = np.array([stages.train_end + 1.0]), np.zeros(1, dtype=np.int8)

    def trees(row: int) -> None:
        stages.first_logit(base.values[row : row + 1], late, fold)
        stages.second_logit(store.values[row : row + 1])

    def memory(row: int) -> None:
        past = TableScores(np.zeros(10, np.int64), store.time[row : row + 10], store.values[row : row + 10, 0])
        list(memory_fields(past))

    boosters = [lgb.Booster(model_file=str(run.folder.path / TREES_FOLDER / f"first-{number}.txt")) for number in range(len(stages.folds))]
    seconds = [lgb.Booster(model_file=str(run.folder.path / TREES_FOLDER / f"second-{number}.txt")) for number in range(len(stages.second))]

    def lightgbm(row: int) -> None:
        for booster in boosters:
            booster.predict(base.values[row : row + 1], raw_score=True, num_threads=1)
        for booster in seconds:
            booster.predict(store.values[row : row + 1], raw_score=True, num_threads=1)

    def batch(call: Callable[[], Any]) -> float:
        cpu = time.process_time()
        call()
        return time.process_time() - cpu

    many = np.ascontiguousarray(store.values[: min(len(store), 20_000)])
    ours = batch(lambda: stages.second_logit(many))
    theirs = batch(lambda: [booster.predict(many, raw_score=True, num_threads=1) for booster in seconds])
    found: dict[str, Any] = {
        "rows": len(rows),
        "trees": {"first": [each.num_trees for each in stages.folds], "second": [each.num_trees for each in stages.second]},
        "million_rows": {
            "fields_and_first_stage_cpu_s": 1e6 / len(rows) * fields,
            "network_and_second_stage_cpu_s": 1e6 / len(rows) * scoring,
            "cpu_s": 1e6 / len(rows) * (fields + scoring),
        },
        "row_ms": {"trees": per_row(trees), "trees_lightgbm": per_row(lightgbm), "score_memory": per_row(memory)},
        "second_stage_times_faster_than_lightgbm": theirs / ours,
    }
    if run.detector.model is not None:
        stream = RowStream(run.model, run.device)
        state = stream.start()

        def step(row: int) -> None:
            nonlocal state
            network, state = stream.advance(store.values[row], state)
            run.detector.combine(network[None], store.values[row : row + 1])

        found["step"] = stream.uses
        found["row_ms"]["network_and_second_stage"] = per_row(step)
    found["row_ms"]["whole"] = per_row(lambda row: stages.first_logit(base.values[row : row + 1], late, fold)) + sum(
        found["row_ms"].get(part, 0.0) for part in ("score_memory", "network_and_second_stage")
    )
    found["seconds"] = round(time.perf_counter() - started)
    return found


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--run", type=Path, help="run of balancer train (default: one is trained on the sample)")
    options.add_argument("--table", type=Path, default=SAMPLE, help="table to score")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run = arguments.run
        if run is None:
            run = Path(folder) / "run"
            command = [*BALANCER, "train", "--dataset", str(SAMPLE), "--out", str(run), "--policy", "auto", "--threads", "1"]
            subprocess.run(command, cwd=ROOT, check=True)
        found = measure(TrainedRun.load(run), arguments.table)
    row, million = found["row_ms"], found["million_rows"]["cpu_s"]
    found["claims"] = {
        "trees_below_.1_ms": row["trees"] < 0.1,
        "whole_below_1_ms": row["whole"] < 1,
        "million_rows_below_60_s": million < 60,
    }
    print(f"one row: trees {row['trees']:.3f} ms (LightGBM {row['trees_lightgbm']:.3f}), whole detector {row['whole']:.2f} ms")
    print(
        f"a million rows: {million:.0f} CPU s; second stage {found['second_stage_times_faster_than_lightgbm']:.1f} times LightGBM's speed"
    )
    record(found, RESULTS / "detector_speed.json")


if __name__ == "__main__":
    main()
