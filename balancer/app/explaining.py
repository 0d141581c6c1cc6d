"""Cached: why transactions have their scores, in words, from the table and the model of a run."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import streamlit as st

from balancer.app.browsing import Run
from balancer.app.loading import dataset, stamp, trained
from balancer.data.dataset import Dataset
from balancer.errors import InputError
from balancer.runs.run_folder import RunFolder

LARGE = 100_000_000
"""Bytes of a table from which it is read only when asked to."""
_REASONS = 5
"""Most reasons for and against fraud."""
_NETWORK = "the pattern of the earlier transactions, as the network sees it"


@dataclass(frozen=True, eq=False)
class Explained:
    """Why a transaction has its score."""

    data: Dataset
    place: int
    """Row in the store of `data`."""
    reasons: list[str]
    """What raises the score, with values and units, strongest first."""
    against: list[str]
    """What lowers it."""
    fields: pl.DataFrame
    """Every contribution, as of `Contributions.frame`."""
    bars: pl.DataFrame
    """Those of fields, without the average."""
    note: str


def table_file(run: Run) -> Path | None:
    """The file of the table that the run was trained on; None where it is gone, or a folder."""
    with contextlib.suppress(InputError, OSError):  # the page says what is missing where it is asked for
        path = RunFolder.open(run.path).find_table()
        return path if path.is_file() else None
    return None


def waits(run: Run) -> bool:
    """Whether the table of the run is so large that explanations are computed only when asked for."""
    file = table_file(run)
    return file is not None and file.stat().st_size > LARGE


def explain(run: Run, identity: Any) -> Explained:
    """Explain the score of a transaction.

    Raises:
        InputError: The table or the model can't be read, or the transaction is not in the table.
    """
    data = dataset(run)
    trained(run)
    places = (data.ids == identity).arg_true().to_list()
    if len(places) != 1:
        raise InputError(f"the table of the run has no transaction {identity}: restore the table, or train the run again")
    return Explained(data, places[0], *_found(run, places[0]))


def reasons_of(run: Run, identities: list[Any]) -> list[str | None] | None:
    """Return the strongest reason of each transaction; None until the table and the model have been read.

    Args:
        run: The run.
        identities: Ids of transactions.
    """
    if st.session_state.get("explained-run") != run.name or not st.session_state.get("deep"):
        return None
    found: list[list[str] | None] | None = None
    with contextlib.suppress(InputError):  # what can't be read is said where one transaction is explained
        data = dataset(run)
        wanted = pl.DataFrame({"id": pl.Series(identities, dtype=data.ids.dtype)})
        places = wanted.join(pl.DataFrame({"id": data.ids}).with_row_index("place"), on="id", how="left", maintain_order="left")["place"]
        found = [None if place is None else _found(run, place)[0] for place in places.to_list()]
    if found is None:
        return None
    return [None if not reasons else "; ".join(reasons[:2]) for reasons in found]


def _found(run: Run, place: int) -> tuple[list[str], list[str], pl.DataFrame, pl.DataFrame, str]:
    return _contributions(run, place, stamp(run.path / "decision.json"), stamp(run.path / "run.json"), str(run.path))


@st.cache_resource(max_entries=2_000, show_spinner=False)
def _contributions(
    _run: Run, place: int, decision: object, content: object, path: str
) -> tuple[list[str], list[str], pl.DataFrame, pl.DataFrame, str]:
    from balancer.inference.contributions import AVERAGE, OWN_PART, WORDS

    data, model = dataset(_run), trained(_run)
    found = model.contributions(data, np.array([place]))
    fields = found.frame(data).drop("row").with_columns(pl.col("words").replace({WORDS[OWN_PART]: _NETWORK}))
    (strongest,) = found.strongest(data, _REASONS)
    bars = fields.filter(pl.col("field") != AVERAGE)
    least = bars.filter(pl.col("contribution") < -_LEAST, pl.col("field") != OWN_PART).head(_AGAINST)
    against = [f"{words}: {value}" if value else words for words, value in least.select("words", "value").iter_rows()]
    reasons = [_NETWORK if text == WORDS[OWN_PART] else text for text, _ in strongest]
    return reasons, against, fields, bars, found.note()


_AGAINST, _LEAST = 2, 0.1
"""Most reasons against fraud, and the smallest contribution in log-odds that is one."""
