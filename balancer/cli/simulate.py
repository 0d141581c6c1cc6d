"""`balancer simulate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from balancer.options.flags import parse


@dataclass(frozen=True)
class SimulateConfig:
    """Make a table of card transactions with four kinds of fraud in it, to try things on: seeded, without leaks, and none of it real."""

    out: Path
    """File to write, .parquet or .csv; replaced where it exists."""
    rows: int = 60_000
    """Transactions."""
    seed: int = 0
    """One seed, one table."""
    cards: int | None = None
    """Cardholders (default: one for each 80 rows)."""
    days: int = 120
    """Length of the stream."""
    fraud_rate: float = 0.01
    """Share of fraud among the rows."""
    labels: Literal["binary", "types"] = "binary"
    """Label column: is_fraud (0 or 1), or fraud_type with the kind of fraud."""
    json: bool = False
    """Print what was made as JSON."""


def main(arguments: Sequence[str]) -> int:
    """Parse, simulate, write, say what is in the file."""
    config = SimulateConfig(**parse(SimulateConfig, "balancer simulate", SimulateConfig.__doc__ or "", arguments))
    from balancer.data.simulation.stream import simulate, write_simulation

    frame = simulate(
        config.rows, seed=config.seed, cards=config.cards, days=config.days, fraud_rate=config.fraud_rate, labels=config.labels
    )
    write_simulation(frame, config.out)
    label = frame[frame.columns[-1]]
    fraud = int((label != ("legitimate" if config.labels == "types" else 0)).sum())
    told = {
        "out": str(config.out),
        "rows": frame.height,
        "fraud": fraud,
        "cards": frame["card_id"].n_unique(),
        "merchants": frame["merchant_id"].n_unique(),
        "columns": frame.columns,
    }
    if config.json:
        print(json.dumps(told, indent=2))
    else:
        cards, share = told["cards"], 100 * fraud / frame.height
        print(f"{frame.height:,} transactions of {cards:,} cards, {fraud:,} of them fraud ({share:.2f} %): {config.out}")
    return 0
