"""The tables that the benchmarks read: the sample, and two public streams of card transactions.

The public streams are not part of the repository. They are looked for in
``../shared/data/NAME/transactions.parquet``, seen from the root of the checkout. Their dataset specs are in
``benchmarks/lib/datasets``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.lib.recording import ROOT

SHARED = ROOT.parent / "shared" / "data"
SPECS = Path(__file__).parent / "datasets"


@dataclass(frozen=True)
class Stream:
    """A table of transactions."""

    table: Path
    """Parquet file."""
    spec: Path | None
    """TOML file with the roles of the columns, or None if the names of the columns are enough."""
    budget: str
    """Training budget that ``balancer train`` gets in the benchmark of the main job."""


SAMPLE = ROOT / "balancer" / "data_samples" / "transactions.parquet"
PUBLIC = ("handbook", "sparkov")
STREAMS = {"sample": Stream(SAMPLE, None, "quick")} | {
    name: Stream(SHARED / name / "transactions.parquet", SPECS / f"{name}.toml", "standard") for name in PUBLIC
}


def missing(name: str) -> str | None:
    """Why the stream ``name`` can't be read, or None if its table is there."""
    if STREAMS[name].table.is_file():
        return None
    return f"{name}/transactions.parquet is not there: these public streams are fetched apart from the repository"
