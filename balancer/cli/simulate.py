"""``balancer simulate``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from balancer.cli.early import check_written_table
from balancer.names import counted
from balancer.options.flags import Flag, read_flags


@dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """Simulate a table of card transactions with four kinds of fraud, for trials and tests."""

    out: Annotated[Path, Flag("File to write, .parquet or .csv; with --shards a folder.", metavar="FILE")]
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
    shards: Annotated[
        int | None,
        Flag("Write a folder of this many Parquet files, a range of cards each, with one file in memory at a time.", default="one file"),
    ] = None
    json: Annotated[bool, "Print the summary as JSON."] = False


def main(arguments: Sequence[str]) -> int:
    """Simulate a table, write it and print a summary; returns the exit code."""
    config = read_flags(SimulateConfig, "balancer simulate", arguments)
    if config.shards is None:
        check_written_table(config.out, "--out", overwrite=config.overwrite)
    from balancer.data.simulation.sharded import totals_of, write_shards
    from balancer.data.simulation.stream import simulate, write_simulation

    options: dict[str, Any] = {name: getattr(config, name) for name in ("seed", "cards", "days", "fraud_rate", "labels")}
    if config.shards is None:
        frame = simulate(config.rows, **options)
        write_simulation(frame, config.out)
        found = totals_of(frame)
    else:
        found = write_shards(config.out, config.rows, config.shards, overwrite=config.overwrite, **options)
    summary = {"out": str(config.out)} | vars(found) | {"columns": list(found.columns)}
    if config.json:
        print(json.dumps(summary, indent=2))
    else:
        share = 100 * found.fraud / found.rows
        cards = counted(found.cards, "card")
        print(f"{counted(found.rows, 'transaction')} of {cards}, {found.fraud:,} of them fraud ({share:.2f} %): {config.out}")
    return 0
