"""Tables of docs/scale.md: the claims, and what a billion rows cost on 16 machines with a GPU each."""

from __future__ import annotations

from typing import Any

from benchmarks.report.tables import load, table

ROWS, MACHINES = 10**9, 16
EPOCHS, STEPS, BATCH = 20, 5_000, 4_096
"""Assumed length of the training."""
GPU_OF_CORE = 30.0
"""Assumed: training rows a second on a GPU, relative to one core of the machine that was measured."""
FORWARD = 1 / 3
"""Assumed: cost of a row that is scored, relative to one that is trained on."""
REWARD_SHARE = 0.1
"""Part of the rows on which an epoch is evaluated."""
NETWORK_BYTES = 1.25e9
"""Assumed: bytes a second between machines (10 Gbit/s)."""
SUM_BYTES = 8
"""Bytes of a gradient that is exchanged (float64)."""


def scale_claims() -> str:
    """The claims of the benchmark, and whether they hold."""
    rows = [
        [each["claim"], f"{each['figure']:.4g}" if "figure" in each else "", f"{each['limit']:g}" if "limit" in each else "", each["holds"]]
        for each in load("scale")["claims"]
    ]
    return table(["claim", "measured", "limit", ""], rows)


def scale_costs() -> str:
    """Each term of a billion rows on 16 machines: measured a row, and what follows."""
    content = load("scale")
    return table(["term", "measured", f"10^9 rows, {MACHINES} machines", "assumed"], [*_data(content), *_training(content)])


def _data(content: dict[str, Any]) -> list[list[str]]:
    """Preparing, storing and scoring, from the largest table."""
    by_rows = content.get("linear", {}).get("rows", {})
    if not by_rows:
        return [["preparing, store, scoring", "not measured", "", ""]]
    number = max(by_rows, key=int)
    case, millions = by_rows[number], int(number) / 1e6
    rows = []
    for name, title in (("prepare", "prepare"), ("score", "score, a small network")):
        each = case[name]["seconds"] / millions
        hours = each * ROWS / 1e6 / MACHINES / 3600
        rows.append([title, f"{each:.3g} s a million rows in one process", f"{hours:.2g} h", "one process a machine"])
    size = case["store_gibibytes"] / millions
    rows.append(["store", f"{size:.3g} GiB a million rows", f"{size * ROWS / 1e6:.0f} GiB", "shared storage"])
    return rows


def _training(content: dict[str, Any]) -> list[list[str]]:
    """The sampler, the steps, their gradients, and the rows on which epochs are evaluated."""
    rows = []
    if "sampler" in content:
        held = content["sampler"]["gibibytes"] * 2**30 / content["sampler"]["rows"]
        whole = held * ROWS / 2**30
        rows.append(
            [
                "sampler",
                f"{held:.2g} bytes a row",
                f"{whole:.2g} GiB a process, {whole / MACHINES:.1g} with shards",
                "labels as int8 besides",
            ]
        )
    step = content.get("training", {}).get("step")
    if step is None:
        return [*rows, ["training", "not measured", "", ""]]
    each = step["seconds"] / step["batch"]
    fast = MACHINES * GPU_OF_CORE
    drawn = EPOCHS * STEPS * BATCH
    rows.append(
        [
            "training steps",
            f"{1e6 * each:.3g} µs a row on one core",
            f"{each * drawn / fast / 3600:.2g} h",
            f"{EPOCHS} epochs of {STEPS:,} steps of {BATCH:,} rows; a GPU is as fast as {GPU_OF_CORE:g} cores",
        ]
    )
    exchanged = 2 * SUM_BYTES * step["parameters"] * EPOCHS * STEPS / NETWORK_BYTES
    rows.append(["gradients", f"{step['parameters']:,} parameters", f"{exchanged / 3600:.2g} h", "10 Gbit/s, twice 8 bytes a parameter"])
    evaluated = each * FORWARD * REWARD_SHARE * ROWS * EPOCHS / fast
    rows.append(
        [
            "evaluation of epochs",
            "",
            f"{evaluated / 3600:.2g} h",
            f"{REWARD_SHARE:.0%} of the rows, at a third of the cost of a training row",
        ]
    )
    return rows
