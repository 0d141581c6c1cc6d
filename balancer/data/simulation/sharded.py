"""Simulate a stream in blocks of cards, and write them as the files of a table, in bounded memory.

What is special: a block is a simulation of its own, with its cards, merchants and random numbers. The blocks
follow from the number of rows alone, so the rows and their order do not depend on the number of files.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from balancer.data.simulation.stream import FEWEST_FRAUDS, check_simulation, simulate
from balancer.errors import InputError
from balancer.files import atomic_path, check_writable_folder
from balancer.names import counted

BLOCK_ROWS = 100_000
"""Rows of a block, about; a table with fewer rows has one block."""


@dataclass(frozen=True)
class Totals:
    """What was written."""

    rows: int
    fraud: int
    cards: int
    merchants: int
    columns: tuple[str, ...]

    def plus(self, other: Totals) -> Totals:
        """The totals of both; no card or merchant is in both."""
        counts = (self.rows + other.rows, self.fraud + other.fraud, self.cards + other.cards, self.merchants + other.merchants)
        return Totals(*counts, other.columns)


def totals_of(frame: pl.DataFrame) -> Totals:
    """The totals of a simulated table."""
    label = frame[frame.columns[-1]]
    fraud = int((label != ("legitimate" if label.dtype == pl.String else 0)).sum())
    return Totals(frame.height, fraud, frame["card_id"].n_unique(), frame["merchant_id"].n_unique(), tuple(frame.columns))


def write_shards(
    folder: Path, rows: int, shards: int, *, overwrite: bool = False, progress: Callable[[int], None] = lambda done: None, **options: Any
) -> Totals:
    """Simulate card payments and write them as Parquet files, a range of cards each.

    One file is in memory at a time. Payments of a block are sorted by time; those of different blocks are
    not, and neither cards nor merchants are in two blocks.

    Args:
        folder: The folder to write. It must not exist, or be empty.
        rows: Exact number of rows. The share of frauds is exact up to rounding in each block.
        shards: Number of files, at most the number of blocks.
        overwrite: Whether an existing folder is replaced, if it has nothing but such files.
        progress: Called with the number of files that are written.
        options: As for :func:`balancer.data.simulation.stream.simulate`.

    Raises:
        InputError: An argument is out of range, or the folder has other files.
        UnwritableFileError: The files can't be written.
    """
    blocks = blocks_of(rows, options.get("fraud_rate", 0.01))
    if not 1 <= shards <= len(blocks):
        raise InputError(f"--shards is {shards}: give a number from 1 to {len(blocks)}, or more --rows; a block of cards is not cut")
    cards = options.pop("cards", None)
    seed = options.pop("seed", 0)
    if cards is not None and cards < len(blocks):
        raise InputError(f"--cards is {cards}: give at least one for each of {counted(len(blocks), 'block')} of rows")
    check_simulation(rows, seed, cards, **options)
    _clear(folder, overwrite=overwrite)
    first_row = np.concatenate(([0], np.cumsum(blocks)))
    first_card = np.linspace(0, cards or 0, len(blocks) + 1).astype(np.int64)
    found = Totals(0, 0, 0, 0, ())
    for shard in range(shards):
        frames = []
        for block in range(len(blocks) * shard // shards, len(blocks) * (shard + 1) // shards):
            own = None if cards is None else int(first_card[block + 1] - first_card[block])
            frame = simulate(blocks[block], seed=_block_seed(seed, block), cards=own, **options)
            found = found.plus(totals_of(frame))
            frames.append(_renumbered(frame, int(first_row[block]), block))
        with atomic_path(folder / f"part-{shard:05d}.parquet") as temporary:
            pl.concat(frames).write_parquet(temporary, compression="zstd", row_group_size=BLOCK_ROWS)
        progress(shard + 1)
    return found


def blocks_of(rows: int, fraud_rate: float) -> list[int]:
    """Rows of each block: about `BLOCK_ROWS`, and more where a block would have too few frauds."""
    most = int(max(rows, 0) * fraud_rate / (FEWEST_FRAUDS + 1)) if 0 < fraud_rate < 1 else 1
    number = max(1, min(round(rows / BLOCK_ROWS), most))
    ends = [rows * place // number for place in range(number + 1)]
    return [end - begin for begin, end in pairwise(ends)]


def _block_seed(seed: int, block: int) -> int:
    """The seed of a block, which does not depend on how many there are."""
    return int(np.random.SeedSequence([seed, block]).generate_state(1, np.uint64)[0])


def _renumbered(frame: pl.DataFrame, first_row: int, block: int) -> pl.DataFrame:
    """A block with ids that no other block has."""
    prefix = f"{block:05d}"
    return frame.with_columns(
        pl.col("transaction_id") + first_row,
        *(pl.concat_str(pl.col(name).str.head(1), pl.lit(prefix), pl.col(name).str.slice(1)) for name in ("card_id", "merchant_id")),
    )


def _clear(folder: Path, *, overwrite: bool) -> None:
    """Make an empty folder.

    Raises:
        InputError: It exists and may not be replaced, or has other files.
    """
    if folder.is_file():
        raise InputError(f"--out {folder} is a file: name a folder for the files of --shards")
    check_writable_folder(folder, "--out")
    held = sorted(folder.iterdir()) if folder.is_dir() else []
    if held and not overwrite:
        raise InputError(f"--out {folder} is not empty: name another folder, or add --overwrite to replace it")
    other = next((path for path in held if not (path.name.startswith("part-") and path.suffix == ".parquet")), None)
    if other is not None:
        raise InputError(f"--out {folder} has {other.name}, which balancer simulate did not write: name another folder")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
