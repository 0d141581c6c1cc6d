"""Past one machine: equal results of several processes and nodes, memory and time by rows, gains, losses.

Parts, chosen by ``--only``; the others keep what they recorded before:

- ``equality``: train, compare and score on a local Ray cluster of two nodes, each killed once and continued,
  against one process.
- ``torchrun``: a run by 1, 2 and 4 processes of torchrun (gloo): weights and scores, also with
  ``--deterministic``.
- ``kill``: one of two processes of torchrun is killed in mid-epoch; the rows of all steps are counted.
- ``linear``: simulated rows are written by shards, prepared and scored in one process each: time and peak
  memory by number of rows.
- ``sampler``: 10^8 labels.
- ``speedup``: two processes against one, for a comparison and the preparation of a store.
- ``training``: the same for training.

Claims: the results of part 1 are equal to the bit; those of torchrun have equal weights and scores within
1e-6, with ``--deterministic`` equal to the bit; no row is drawn twice or lost; preparing and scoring 50
million rows takes at most 4 GiB a process, and the exponent of the time from 5 million rows on is at most
1.05; the sampler is made in 10 s, gives its first index in 1 s and takes 1 GiB; gains of at least 1.7
(comparison), 1.6 (preparation) and 1.4 (training) on two cores.

    python -m benchmarks.claims.scale                                    # -> benchmarks/results/scale.json
    python -m benchmarks.claims.scale --only linear --rows 5e6 1.6e7 5e7  # an hour, 40 GB of disk

Times are of a machine with two cores on which nothing else runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.lib import scale_runs as runs
from benchmarks.lib.checks import claim
from benchmarks.lib.commands import parser
from benchmarks.lib.recording import RESULTS, record, recorded, rounded

SHORT = ("--policy", "auto", "--learner", "network", "--precision", "full", "--threads", "1", "--device", "cpu")
TINY = (*SHORT, "--epochs", "3", "--steps-per-epoch", "12", "--history-length", "8", "--d-model", "16", "--layers", "1")
CELLS = ("--treatments", "none,one_to_one,auto", "--device", "cpu")
MICRO = ("--micro-batches", "4")
SAMPLER = """
import json, resource, time
import numpy as np
from balancer import AdaptiveSampler
rng, labels = np.random.default_rng(0), np.empty({rows}, np.int8)
for first in range(0, {rows}, 1 << 22):
    labels[first : first + (1 << 22)] = rng.random(min(1 << 22, {rows} - first)) < 0.01
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
before, begin = peak(), time.perf_counter()
sampler = AdaptiveSampler(labels, epochs=2, rank=5, num_replicas=16)
made, begin = time.perf_counter() - begin, time.perf_counter()
next(iter(sampler))
print(json.dumps({{"make_seconds": made, "first_index_seconds": time.perf_counter() - begin, "gibibytes": peak() - before}}))
"""
Part = dict[str, Any]


def equality(folder: Path, _: list[int]) -> Part:
    """Each command in one process, and on two nodes, killed once and continued."""
    table, store = runs.write_table(folder / "t.parquet", 20_000), folder / "store"
    runs.run("prepare", "--dataset", table, "--out", store, "--shards", 6)
    train = ("train", "--dataset", store, *TINY, *MICRO, "--deterministic")
    compare = ("compare", "--dataset", store, *CELLS, "--folds", 2, "--seeds", 3, "--epochs", 4)
    runs.run(*train, "--out", folder / "run")
    runs.run(*compare, "--out", folder / "compared")
    run = folder / "run"
    runs.run("score", run, "--input", table, "--output", folder / "whole.parquet")
    with runs.two_nodes() as address:
        where = ("--cluster", address, "--workers", 2)
        out = folder / "run-2"
        runs.run_killed(lambda: (out / "epochs.parquet").is_file() or any(out.glob("**/*.safetensors")), *train, *where, "--out", out)
        runs.run("train", "--resume", "--out", out, *where)
        cells = folder / "compared-2"
        runs.run_killed(lambda: any(cells.glob("cells/*/*.json")), *compare, *where, "--out", cells)
        kept = len(list(cells.glob("cells/*/*.json")))
        runs.run("compare", "--resume", "--out", cells, *where)
        score, parts = ("score", run, "--input", store, "--output", folder / "scores", *where), folder / "scores"
        runs.run_killed(lambda: any(parts.glob("part-*.parquet")), *score)
        finished = len(list(parts.glob("part-*.parquet")))
        runs.run(*score)
    return {
        "train": bool(runs.predictions(folder / "run").equals(runs.predictions(out))),
        "train_difference": runs.difference(runs.predictions(run), runs.predictions(out)),
        "compare": runs.compared_cells(folder / "compared") == runs.compared_cells(cells),
        "compare_cells_kept": kept,
        "score": bool(runs.scored(folder / "whole.parquet").equals(runs.scored(parts))),
        "score_shards_kept": finished,
    }


def torchrun(folder: Path, _: list[int]) -> Part:
    """A run by 1, 2 and 4 processes, against a plain process with as many micro-batches."""
    table, found = runs.write_table(folder / "t.parquet", 20_000), {}
    for name, more in (("rounded", ()), ("deterministic", ("--deterministic",))):
        flags = ("train", "--dataset", table, *TINY, *MICRO, *more)
        runs.run(*flags, "--out", folder / name)
        for size in (1, 2, 4):
            out = folder / f"{name}-{size}"
            runs.run(*flags, "--out", out, torchrun=size)
            found[f"{name}, {size}"] = {
                "difference": runs.difference(runs.predictions(folder / name), runs.predictions(out)),
                "equal": bool(runs.predictions(folder / name).equals(runs.predictions(out))),
                "weights": runs.weights(folder / name) == runs.weights(out),
            }
    return found


def kill(folder: Path, _: list[int]) -> Part:
    """Count the rows of the steps of a run with a killed process against those of a plain run."""
    table = runs.write_table(folder / "t.parquet", 20_000)
    flags = ("--dataset", table, *TINY, "--micro-batches", 2, "--deterministic")
    logs = {name: folder / name for name in ("plain", "killed")}
    for log in logs.values():
        log.mkdir()
    module = "benchmarks.lib.logged_training"
    runs.run(logs["plain"], 0, *flags, "--out", folder / "one", module=module)
    runs.run(logs["killed"], 17, *flags, "--out", folder / "two", module=module, torchrun=2, restarts=1)
    expected, first, second = (
        runs.rows_by_step(logs["plain"], 0),
        runs.rows_by_step(logs["killed"], 0),
        runs.rows_by_step(logs["killed"], 1),
    )
    # The killed epoch is drawn again, so its first try does not count.
    finished = {step: rows for step, rows in first.items() if step < min(second)} | second
    twice = sum((finished[step] - expected[step]).total() for step in finished)
    lost = sum((expected[step] - finished.get(step, type(expected[step])())).total() for step in expected)
    equal = runs.predictions(folder / "one").equals(runs.predictions(folder / "two"))
    return {"rows": sum(rows.total() for rows in expected.values()), "twice": twice, "lost": lost, "equal": bool(equal)}


def linear(folder: Path, rows: list[int]) -> Part:
    """Seconds and peak memory of writing, preparing and scoring, by number of rows; each in one process."""
    runs.write_table(folder / "t.parquet", 60_000)
    runs.run("train", "--dataset", folder / "t.parquet", *TINY, "--out", folder / "run")
    found: Part = {}
    for number in rows:
        shards, table, store, scores = max(1, number // 1_000_000), folder / "table", folder / "store", folder / "scores"
        here = {
            "simulate": runs.run("simulate", "--rows", number, "--shards", shards, "--out", table),
            "prepare": runs.run("prepare", "--dataset", table, "--out", store, "--shards", shards),
        }
        here["table_gibibytes"] = _size(table)
        subprocess.run(["rm", "-r", str(table)], check=True)
        here["score"] = runs.run("score", folder / "run", "--input", store, "--output", scores)
        here["store_gibibytes"] = _size(store)
        subprocess.run(["rm", "-r", str(store), str(scores)], check=True)
        found[str(number)] = here
        print(number, json.dumps(here), file=sys.stderr, flush=True)
    return {"rows": found}


def _size(folder: Path) -> Any:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**30


def sampler(_: Path, rows: list[int]) -> Part:
    """The sampler of one of 16 ranks, with all labels."""
    number = rows[0] if rows else 100_000_000
    done = subprocess.run([sys.executable, "-c", SAMPLER.format(rows=number)], capture_output=True, text=True, check=True)
    found: Part = json.loads(done.stdout)
    return {"rows": number} | found


def speedup(folder: Path, _: list[int]) -> Part:
    """Seconds of one process and of two, and their ratio: a comparison, and the preparation of a store."""
    large, table = folder / "large", runs.write_table(folder / "t.parquet", 60_000)
    runs.run("simulate", "--rows", 4_000_000, "--shards", 4, "--out", large)
    # Long enough that the start of the processes is a small part.
    compare = ("compare", "--dataset", table, *CELLS, "--folds", 4, "--seeds", 4, "--epochs", 100, "--steps-per-epoch", 150)
    prepare = ("prepare", "--dataset", large, "--shards", 8)
    found = {
        "compare": (runs.run(*compare, "--out", folder / "c1"), runs.run(*compare, "--out", folder / "c2", "--workers", 2)),
        "prepare": (runs.run(*prepare, "--out", folder / "s1"), runs.run(*prepare, "--out", folder / "s2", "--workers", 2)),
    }
    return {name: {"one": one, "two": two, "gain": one["seconds"] / two["seconds"]} for name, (one, two) in found.items()}


def training(folder: Path, _: list[int]) -> Part:
    """Seconds of a training in one process and in two of torchrun: of the command, and of its network."""
    table = runs.write_table(folder / "t.parquet", 60_000)
    size = ("--d-model", 64, "--layers", 2, "--history-length", 32, "--batch-size", 512)
    train = ("train", "--dataset", table, *SHORT, *MICRO, "--epochs", 6, "--steps-per-epoch", 60, *size)
    alone, together = runs.run(*train, "--out", folder / "t1"), runs.run(*train, "--out", folder / "t2", torchrun=2)
    # The command also fits trees and writes the report, in one process.
    one, two = (runs.network_seconds(folder / name) for name in ("t1", "t2"))
    return {
        "train": {"one": alone, "two": together, "gain": alone["seconds"] / together["seconds"]},
        "network": {"one": one, "two": two, "gain": one / two},
        "step": {"seconds": one / (6 * 60), "batch": 512, "parameters": runs.parameters(folder / "t1")},
    }


PARTS: dict[str, Callable[[Path, list[int]], Part]] = {
    "equality": equality,
    "torchrun": torchrun,
    "kill": kill,
    "linear": linear,
    "sampler": sampler,
    "speedup": speedup,
    "training": training,
}


def claims(found: dict[str, Part]) -> list[dict[str, Any]]:
    """The claims of this script, on the parts that were measured."""

    def each(part: str, name: str) -> float | None:
        return float(found[part][name]) if part in found else None

    trained = found.get("torchrun", {})
    loose = [case for name, case in trained.items() if name.startswith("rounded")]
    strict = [case for name, case in trained.items() if name.startswith("deterministic")]
    by_rows = found.get("linear", {}).get("rows", {})
    numbers = sorted(int(number) for number in by_rows if int(number) >= 5_000_000)
    measured = [by_rows[str(number)] for number in numbers]
    most = max((case[name]["peak_gibibytes"] for case in measured for name in ("prepare", "score")), default=None)
    large = most if numbers and numbers[-1] >= 50_000_000 else None

    def slope(name: str) -> float | None:
        return runs.exponent(numbers, [case[name]["seconds"] for case in measured]) if len(numbers) > 1 else None

    parts = {"compare": "speedup", "prepare": "speedup", "network": "training"}
    gains = {name: found[part][name]["gain"] if part in found else None for name, part in parts.items()}
    return [
        *(
            claim(f"{name} on two nodes, killed and continued: equal to the bit", each("equality", name), 1)
            for name in ("train", "compare", "score")
        ),
        claim("torchrun: largest difference of scores", max((case["difference"] for case in loose), default=None), 1e-6, above=False),
        claim("torchrun: equal weights", float(all(case["weights"] for case in loose + strict)) if trained else None, 1),
        claim("torchrun --deterministic: equal to the bit", float(all(case["equal"] for case in strict)) if trained else None, 1),
        claim("killed process: rows drawn twice", each("kill", "twice"), 0, above=False),
        claim("killed process: rows lost", each("kill", "lost"), 0, above=False),
        claim("50 million rows prepared and scored: GiB of a process", large, 4.0, above=False),
        claim("exponent of the time to prepare", slope("prepare"), 1.05, above=False),
        claim("exponent of the time to score", slope("score"), 1.05, above=False),
        claim("sampler of 10^8 labels: seconds to make", each("sampler", "make_seconds"), 10.0, above=False),
        claim("sampler of 10^8 labels: seconds to the first index", each("sampler", "first_index_seconds"), 1.0, above=False),
        claim("sampler of 10^8 labels: GiB", each("sampler", "gibibytes"), 1.0, above=False),
        claim("gain of two processes: compare", gains["compare"], 1.7),
        claim("gain of two processes: prepare", gains["prepare"], 1.6),
        claim("gain of two processes: training of the network", gains["network"], 1.4),
    ]


def main() -> int:
    """Measure the parts; returns 1 if a claim that was measured does not hold."""
    arguments = parser(__doc__)
    arguments.add_argument("--only", choices=PARTS, nargs="+", help="parts to measure; without it all")
    arguments.add_argument("--rows", type=float, nargs="+", default=[], help="numbers of rows of the parts linear and sampler")
    arguments.add_argument("--folder", type=Path, help="folder for temporary files; they are removed")
    arguments.add_argument("--out", type=Path, default=RESULTS / "scale.json", help="JSON file for the result")
    given = arguments.parse_args()
    found = {name: value for name, value in recorded(given.out).items() if name in PARTS}
    for name in given.only or PARTS:
        rows = [int(number) for number in given.rows] or ([5_000_000, 16_000_000, 50_000_000] if name == "linear" else [])
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            found[name] = PARTS[name](Path(folder), rows)
        holds = claims(found)
        record(rounded(found, 4) | {"claims": rounded(holds, 4)}, given.out)
    return int(any(each["holds"] == "not met" for each in claims(found)))


if __name__ == "__main__":
    sys.exit(main())
