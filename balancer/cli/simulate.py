"""``balancer simulate``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from balancer.cli.early import check_written_table
from balancer.names import counted
from balancer.options.flags import Flag, read_flags


@dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """Simulate a table of card transactions with four kinds of fraud, for trials and tests."""

    out: Annotated[Path, Flag("File to write, .parquet or .csv.", metavar="FILE")]
    overwrite: Annotated[bool, "Replace --out if it exists."] = False
    rows: Annotated[int, "Number of transactions."] = 60_000
    seed: Annotated[int, "Random seed; the same seed gives the same table."] = 0
    cards: Annotated[int | None, Flag("Number of cardholders.", default="one per 80 rows")] = None
    days: Annotated[int, "Number of days that the table covers."] = 120
    fraud_rate: Annotated[float, "Share of fraudulent rows."] = 0.01
    labels: Annotated[
        Literal["binary", "types"],
        "Label column: is_fraud (0 or 1), or fraud_type with the kind of fraud.",
    ] = "binary"
    json: Annotated[bool, "Print the summary as JSON."] = False


def main(arguments: Sequence[str]) -> int:
    """Simulate a table, write it and print a summary; returns the exit code."""
    config = read_flags(SimulateConfig, "balancer simulate", arguments)
    check_written_table(config.out, "--out", overwrite=config.overwrite)
    from balancer.data.simulation.stream import simulate, write_simulation

    frame = simulate(
        config.rows, seed=config.seed, cards=config.cards, days=config.days, fraud_rate=config.fraud_rate, labels=config.labels
    )
    write_simulation(frame, config.out)
    label = frame[frame.columns[-1]]
    fraud = int((label != ("legitimate" if config.labels == "types" else 0)).sum())
    cards = frame["card_id"].n_unique()
    summary = {
        "out": str(config.out),
        "rows": frame.height,
        "fraud": fraud,
        "cards": cards,
        "merchants": frame["merchant_id"].n_unique(),
        "columns": frame.columns,
    }
    if config.json:
        print(json.dumps(summary, indent=2))
    else:
        share = 100 * fraud / frame.height
        print(f"{counted(frame.height, 'transaction')} of {counted(cards, 'card')}, {fraud:,} of them fraud ({share:.2f} %): {config.out}")
    return 0
