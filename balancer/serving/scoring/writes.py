"""Write a scored batch to the database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from balancer.serving.scoring.context_past import spans_of
from balancer.serving.scoring.entity_memory import STATISTICS, EntityMemory
from balancer.serving.storage.driver import Change, Driver

TRANSACTIONS = {
    "entity": "whole",
    "position": "whole",
    "tenant": "text",
    "id": "text",
    "digest": "text",
    "time": "float",
    "sent_time": "float",
    "sum_cos": "whole",
    "sum_sin": "whole",
    "sum_level": "whole",
    "sum_square": "whole",
    "sum_amount": "float",
    "fields": "bytes",
    "scores": "bytes",
    "sum_score": "whole",
    "texts": "json",
    "answer": "json",
    "amount": "float",
}
DECISIONS = {
    "entity": "whole",
    "tenant": "text",
    "transaction": "text",
    "kind": "text",
    "received": "float",
    "key": "text",
    "request": "text",
    "model": "text",
    "digest": "text",
    "score": "float",
    "threshold": "float",
    "decision": "flag",
    "class": "text",
    "action": "text",
}
CHALLENGER = {
    "tenant": "text",
    "transaction": "text",
    "digest": "text",
    "entity": "whole",
    "received": "float",
    "score": "float",
    "threshold": "float",
    "decision": "flag",
}
_CONTEXT = {"tenant": "text", "column": "text", "value": "text"}
_USED = {
    "entity": "whole",
    "column": "text",
    "value": "text",
    "used": "whole",
    "last_time": "float",
    "sum_level": "whole",
    "sum_square": "whole",
}
_CONTEXT_ROWS = _CONTEXT | {"time": "float", "entity": "whole", "position": "whole", "level": "whole", "square": "whole"}
_SPANS = _CONTEXT | {"width": "whole", "number": "whole", "rows": "whole", "sum_level": "whole", "sum_square": "whole"}
_STATES = {"entity": "whole", "model": "text", "rows": "whole", "state": "bytes"}

_USE = (
    'ON CONFLICT (entity, "column", value) DO UPDATE SET used = excluded.used, last_time = excluded.last_time, '
    "sum_level = excluded.sum_level, sum_square = excluded.sum_square"
)
_ADD = (
    'ON CONFLICT (tenant, "column", value, width, number) DO UPDATE SET "rows" = context_spans."rows" + excluded."rows", '
    "sum_level = context_spans.sum_level + excluded.sum_level, sum_square = context_spans.sum_square + excluded.sum_square"
)
_REPLACE = 'ON CONFLICT (entity) DO UPDATE SET model = excluded.model, "rows" = excluded."rows", state = excluded.state'

ContextRow = tuple[str, str, float, int, int, int, int]
"""Column, value, time, entity, position, level and square of a row; the last two in fixed point."""

_ENCODE = msgspec.json.Encoder().encode


def write_batch(
    driver: Driver,
    tenant: str,
    entities: Sequence[EntityMemory],
    stored: Sequence[tuple[Any, ...]],
    decided: Sequence[tuple[Any, ...]],
    challenged: Sequence[tuple[Any, ...]],
    contexts: Sequence[ContextRow],
    states: Sequence[tuple[int, str, int, bytes]],
) -> None:
    """Write a batch.

    Args:
        driver: A transaction that writes.
        tenant: Whose rows.
        entities: The entities that have new rows.
        stored: Values of `TRANSACTIONS` by row.
        decided: Values of `DECISIONS` by row.
        challenged: Values of `CHALLENGER` by row.
        contexts: The rows by context value.
        states: Entity, model, rows and bytes of the states to store.
    """
    used = [
        (entity.id, *key, each.used, each.last_time, each.level, each.square) for entity in entities for key, each in entity.changed.items()
    ]
    spans: dict[tuple[str, str, int, int], list[int]] = {}
    for column, value, time, _, _, level, square in contexts:
        for width, number in spans_of(time):
            total = spans.setdefault((column, value, width, number), [0, 0, 0])
            total[0] += 1
            total[1] += level
            total[2] += square
    driver.write(
        Change("transactions", TRANSACTIONS, stored),
        Change("used_values", _USED, used, _USE),
        Change("context_rows", _CONTEXT_ROWS, [(tenant, *row) for row in contexts]),
        Change("context_spans", _SPANS, [(tenant, *key, *total) for key, total in spans.items()], _ADD),
        Change("decisions", DECISIONS, decided),
        Change("challenger_scores", CHALLENGER, challenged),
        Change("entity_states", _STATES, states, _REPLACE),
        Change("entities", STATISTICS, [entity.statistics() for entity in entities], key="id"),
    )


def as_json(value: Mapping[str, Any]) -> str:
    """The text of a JSON column."""
    return _ENCODE(value).decode()
