"""Explain a stored decision later: its reasons, and the earlier transactions that weighed.

What is special: everything is computed from what is stored, by the model that decided. Another model would
give other reasons, so it is used only if the client asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from sqlalchemy import Connection, select

from balancer.devices import torch_threads
from balancer.errors import UnsupportedError
from balancer.serving.audit.stored_inputs import StoredInputs, stored_inputs
from balancer.serving.models.loaded_model import LoadedModel
from balancer.serving.reasons.reasons import NETWORK_LEFT_OUT, explain, leaves_out
from balancer.serving.scoring.scorer import NO_NETWORK, USUAL_ROWS
from balancer.serving.storage.database import Database
from balancer.serving.storage.tables import entities, transactions

PURGED = "transactions that the network read were purged, so its part is left out"
Find = Callable[[str], LoadedModel | None]


class Explanations:
    """Explains the decisions of a database.

    Args:
        database: Where the transactions are stored.
        find: The loaded model with a digest; None if it is not loaded.
    """

    def __init__(self, database: Database, find: Find) -> None:
        self._database, self._find = database, find

    def of(self, tenant: str, audit: Mapping[str, Any], reasons: int, earlier: int, instead: LoadedModel | None) -> dict[str, Any]:
        """Explain what was decided about a transaction.

        Args:
            tenant: Whose transaction.
            audit: From `Decisions.get`.
            reasons: Most reasons.
            earlier: Most earlier transactions that weighed.
            instead: The model to explain with, if the one that decided is not loaded; None: none.

        Returns:
            `reasons` and `weighed_most`, as far as they were asked for, `explained_by` (the name of the
            model), and `note` where something can't be said.
        """
        asked: dict[str, Any] = {key: [] for key, wanted in (("reasons", reasons), ("weighed_most", earlier)) if wanted}
        if audit["reversed"]:
            return asked | {"note": "the transaction was reversed, so its fields are no longer stored"}
        model = None if audit["digest"] is None else self._find(audit["digest"])
        notes = []
        if model is None and instead is None:
            gone = (
                "an older version of balancer decided, and did not store by which files" if audit["digest"] is None else "it is not loaded"
            )
            notes.append(
                f"the model that decided, {audit['model']!r}, can't explain it ({gone}); add by=service to ask the model in service"
            )
            return asked | {"note": notes[0]}
        if model is None and instead is not None:
            model = instead
            notes.append(f"explained by the model in service, {instead.name!r}, which did not decide: its score is another one")
        if any(row["kind"] == "amended" for row in audit["amendments"]):
            notes.append("explained with the corrected values")
        assert model is not None
        used = model
        with torch_threads(1):
            found, further = self._database.read(
                lambda connection: self._explained(connection, tenant, audit["id"], used, reasons, earlier)
            )
        notes += further
        return found | {"explained_by": model.name} | ({"note": "; ".join(notes)} if notes else {})

    def _explained(
        self, connection: Connection, tenant: str, name: str, model: LoadedModel, reasons: int, earlier: int
    ) -> tuple[dict[str, Any], list[str]]:
        row = transactions.c
        place, number = connection.execute(select(row.position, row.entity).where(row.tenant == tenant, row.id == name)).one()
        entity = dict(connection.execute(select(entities).where(entities.c.id == number)).mappings().one())
        begin = place if model.stream is None else model.stream.first_needed(place)
        stored = stored_inputs(connection, entity, model, max(0, min(begin, place - USUAL_ROWS)), place)
        found, notes = dict[str, Any](), list[str]()
        is_whole = stored.rows[0].position <= begin
        if not is_whole:
            notes.append(PURGED)
        if reasons:
            last = stored.rows[-1]
            if is_whole and leaves_out(model, place - begin, thorough=True):
                notes.append(NETWORK_LEFT_OUT)
            found["reasons"] = explain(
                model,
                stored.values[-1],
                time=last.time,
                entity=entity["name"],
                texts=last.texts,
                earlier=stored.values[:-1] if is_whole else None,
                read=place - begin,
                count=reasons,
                thorough=True,
            )
        if earlier:
            found["weighed_most"], note = _weighed(model, stored, place - begin, earlier) if is_whole else ([], None)
            notes += [] if note is None else [note]
        return found, notes


def _weighed(model: LoadedModel, stored: StoredInputs, read: int, count: int) -> tuple[list[dict[str, Any]], str | None]:
    """The earlier rows with the most attention of the last one, of the `read` rows before it, or why none."""
    if model.stream is None:
        return [], NO_NETWORK
    if not read:
        return [], None
    rows = stored.rows[len(stored.rows) - 1 - read : -1]
    try:
        weight = model.stream.attended(stored.values[len(stored.values) - 1 - read :])[:-1]
    except UnsupportedError as error:
        return [], str(error)
    top = np.argsort(-weight, kind="stable")[:count]
    return [{"id": rows[one].id, "time": rows[one].time, "weight": float(weight[one])} for one in top], None
