"""A hundred million rows: what the sampler takes to be made, to draw, and to weigh a batch.

Claims, with 10^8 labels (int8 and int64 of two classes, int16 of a thousand): the sampler is made in under 10
CPU seconds, the first index comes in under 1, also that of one rank of eight, of a batch sampler, and after
an update with scores of 100,000 training rows (10,000 with a thousand classes). It holds at most 5.1 bytes a
row (6.1 for a thousand classes), and 4 more once there are scores. With times (4 more) and a half-life, the
first index comes in under 5 CPU seconds. The weights of a batch of 256 rows take at most 5 milliseconds.

    python -m benchmarks.claims.sampler_scale                    # -> benchmarks/results/sampler_scale.json
    python -m benchmarks.claims.sampler_scale --rows 1e7         # a smaller table
    python -m benchmarks.claims.sampler_scale --before ../older  # and draws of 10^6 rows by another checkout

Every case runs in a process of its own with one thread. Its peak of memory is counted above the labels
themselves. With ``--before``, both versions draw in turns, and the ratio of the medians is recorded.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import copy
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.sampling.torch_sampler import AdaptiveBatchSampler, AdaptiveSampler
from benchmarks.lib.checks import claim
from benchmarks.lib.commands import parser
from benchmarks.lib.recording import RESULTS, ROOT, record, rounded

CASES = {
    "int8, 2 classes": ("int8", 2),
    "int64, 2 classes": ("int64", 2),
    "int16, 1000 classes": ("int16", 1000),
}
SCORED, BATCH, RARE = 100_000, 256, 0.01
"""Training rows that are scored, rows of a batch, and the part of the rarer of two classes."""
POLICY = "constant:share=root,hardness=1,class_importance=.5,hardness_importance=.5"
PIECE = 1 << 22
"""Labels that are made at once."""
ROUNDS = 7
"""Processes of each version that draw, in turns, with ``--before``."""
DRAWS = """
import time
import numpy as np
from balancer.sampling.row_sampler import RowSampler
from balancer.sampling.weights import SamplingWeights
rng = np.random.default_rng(0)
labels = (rng.random(10_000_000) < 0.01).astype(np.int8)
sampler = RowSampler(labels, 2)
scored = rng.integers(0, len(labels), 200_000)
score = rng.random(200_000)
for hardness in (0.0, 1.0):
    weights = SamplingWeights(np.array([0.5, 0.5]), hardness)
    if hardness:
        sampler.refresh(scored, np.stack([1.0 - score, score], axis=1))
    spent = []
    for seed in range(6):
        begin = time.process_time()
        sampler.draw(1_000_000, weights, np.random.default_rng(seed))
        spent.append(time.process_time() - begin)
    print(min(spent[1:]))
"""


def labels(kind: str, classes: int, rows: int) -> NDArray[Any]:
    """(rows,) random labels: of two classes a hundredth is the rarer one, more are equally frequent."""
    rng, result = np.random.default_rng(0), np.empty(rows, dtype=kind)
    for start in range(0, rows, PIECE):
        size = min(PIECE, rows - start)
        result[start : start + size] = rng.random(size) < RARE if classes == 2 else rng.integers(0, classes, size)
    return result


def spent(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call, and its result."""
    begin = time.process_time()
    result = call()
    return time.process_time() - begin, result


def peak() -> float:
    """Largest memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def held(sampler: AdaptiveSampler) -> int:
    """Bytes of the arrays that the sampler holds, each counted once."""
    found: dict[int, int] = {}
    for part in (sampler._core, sampler._core._labels, sampler._core._rows):
        for value in vars(part).values():
            if isinstance(value, np.ndarray):
                found[value.__array_interface__["data"][0]] = value.nbytes
    return sum(found.values())


def measured(name: str, rows: int) -> dict[str, float]:
    """CPU seconds, bytes a row and milliseconds of one case."""
    kind, classes = CASES[name]
    y = labels(kind, classes, rows)
    return _one_by_one(y, classes) | _in_batches(y) | _by_age(y)


def _one_by_one(y: NDArray[Any], classes: int) -> dict[str, float]:
    """A sampler of rows: made, first draws, an update, weights of a batch, its state."""
    before, result, rng = peak(), {}, np.random.default_rng(1)
    result["make"], sampler = spent(lambda: AdaptiveSampler(y, policy=POLICY, epochs=2))
    result["bytes_a_row"], result["peak_bytes_a_row"] = held(sampler) / len(y), (peak() - before) / len(y)
    result["first_index"], _ = spent(lambda: next(iter(sampler)))
    result["first_index_of_a_rank"], _ = spent(lambda: next(iter(_rank(sampler, 5, 8))))
    number = SCORED if classes == 2 else SCORED // 10
    scored, held_out, score = *rng.integers(0, len(y), (2, number)), rng.dirichlet(np.ones(classes), number)
    result["update"], _ = spent(lambda: sampler.update(y[held_out], score, rows=scored, row_score=score))
    result["first_index_after_update"], _ = spent(lambda: next(iter(sampler)))
    result["bytes_a_row_with_scores"] = held(sampler) / len(y)
    batch = rng.integers(0, len(y), BATCH)
    result["first_batch_weights"], _ = spent(lambda: sampler.sample_weight(batch))
    result["batch_weights_ms"] = 1000 * min(spent(lambda: sampler.sample_weight(batch))[0] for _ in range(20))
    result["state"], _ = spent(sampler.state_dict)
    return result


def _in_batches(y: NDArray[Any]) -> dict[str, float]:
    """A sampler of batches with quotas: its first batch."""
    sampler = AdaptiveBatchSampler(y, batch_size=BATCH, policy=POLICY, epochs=2)
    return {"first_batch": spent(lambda: next(iter(sampler)))[0]}


def _by_age(y: NDArray[Any]) -> dict[str, float]:
    """A sampler of recent rows: made with the time of each row, first draw."""
    times, policy = np.arange(len(y), dtype=np.int32), f"{POLICY},half_life=.25"
    made, sampler = spent(lambda: AdaptiveSampler(y, policy=policy, epochs=2, times=times))
    return {"make_with_times": made, "first_index_by_age": spent(lambda: next(iter(sampler)))[0]}


def _rank(sampler: AdaptiveSampler, rank: int, ranks: int) -> AdaptiveSampler:
    """The sampler as that of one rank of several; it shares the core."""
    other = copy.copy(sampler)
    other.rank, other.num_replicas = rank, ranks
    return other


def in_a_process(*words: str, folder: Path = ROOT) -> str:
    """Run Python with ``words`` on the package in ``folder``, and return what it printed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
    return subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout


def compared(older: Path) -> dict[str, float]:
    """CPU seconds of a draw of 10^6 rows by this version, relative to the version in ``older``."""
    found: dict[Path, list[list[float]]] = {ROOT: [], older: []}
    for _ in range(ROUNDS):
        for folder, times in found.items():
            times.append([float(line) for line in in_a_process("-c", DRAWS, folder=folder).split()])
    even, hard = (np.median(found[ROOT], axis=0) / np.median(found[older], axis=0)).tolist()
    seconds_even, seconds_hard = np.median(found[ROOT], axis=0).tolist()
    return {"even": even, "hard": hard, "seconds_even": seconds_even, "seconds_hard": seconds_hard}


def claims(cases: dict[str, dict[str, float]], draws: dict[str, float] | None) -> list[dict[str, Any]]:
    """The claims of this script."""

    def worst(*names: str) -> float:
        return max(case[name] for case in cases.values() for name in names)

    extra = {"int16, 1000 classes": 1.0}
    bytes_over = max(case["bytes_a_row"] - extra.get(name, 0.0) for name, case in cases.items())
    scores = max(case["bytes_a_row_with_scores"] - case["bytes_a_row"] for case in cases.values())
    indices = ("first_index", "first_index_of_a_rank", "first_index_after_update", "first_batch")
    return [
        claim("made, CPU seconds", worst("make"), 10.0, above=False),
        claim("first index, CPU seconds", worst(*indices), 1.0, above=False),
        claim("bytes a row (one more for a thousand classes)", bytes_over, 5.1, above=False),
        claim("bytes a row for scores", scores, 4.1, above=False),
        claim("weights of a batch of 256, milliseconds", worst("batch_weights_ms"), 5.0, above=False),
        claim("made with times, CPU seconds", worst("make_with_times"), 10.0, above=False),
        claim("first index by age, CPU seconds", worst("first_index_by_age"), 5.0, above=False),
        *(
            claim(f"{kind} draw of 10^6 rows, relative to the version before", None if draws is None else draws[kind], 1.1, above=False)
            for kind in ("even", "hard")
        ),
    ]


def main() -> None:
    """Measure all cases, each in a process of its own."""
    arguments = parser(__doc__)
    arguments.add_argument("--rows", type=float, default=1e8)
    arguments.add_argument("--before", type=Path, help="folder of another checkout")
    arguments.add_argument("--case", choices=CASES, help="measure one case in this process and print it")
    chosen = arguments.parse_args()
    if chosen.case is not None:
        print(json.dumps(measured(chosen.case, int(chosen.rows))))
        return
    words = ("-m", "benchmarks.claims.sampler_scale", "--rows", str(chosen.rows), "--case")
    cases = {name: json.loads(in_a_process(*words, name)) for name in CASES}
    draws = None if chosen.before is None else compared(chosen.before.resolve())
    result: dict[str, Any] = {"rows": int(chosen.rows), "cpu_seconds": cases}
    if draws is not None:
        result["draws_relative_to_before"] = draws
    record(rounded(result, 3) | {"claims": rounded(claims(cases, draws), 3)}, RESULTS / "sampler_scale.json")


if __name__ == "__main__":
    main()
