"""The score of a stored transaction that holds now: that of its latest decision.

What is special: a correction scores a transaction again, and its stored answer stays as it was sent. So
whatever shows a score beside the fields of a transaction takes it from here.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ScalarSelect, select

from balancer.serving.storage.tables import decisions, transactions

DECIDING = ("scored", "amended")
"""Kinds of decisions that give a transaction its score."""


def current_score() -> ScalarSelect[Any]:
    """The column `score` of a statement that selects from `transactions`.

    It is null for a transaction of an older version that was never corrected; its stored answer holds.
    """
    row, kept = decisions.c, transactions.c
    chosen = select(row.score).where(row.tenant == kept.tenant, row.transaction == kept.id, row.kind.in_(DECIDING))
    return chosen.order_by(row.number.desc()).limit(1).correlate(transactions).scalar_subquery()
