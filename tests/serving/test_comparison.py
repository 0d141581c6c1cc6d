"""Champion against challenger, on the transactions that both have scored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sqlalchemy import insert

from balancer.evaluation.metrics import Ranking, alarm_metrics
from balancer.serving.models.comparison import Span, compare
from balancer.serving.storage.database import Database
from balancer.serving.storage.tables import challenger_scores, decisions, entities, transactions

ZERO = dict.fromkeys(("sum_cos", "sum_sin", "sum_level", "sum_square", "sum_amount"), 0)


def store(database: Database, scores: np.ndarray, labels: list[str | None], canary: np.ndarray) -> None:
    """Store rows that two models have scored, ten to an entity; `canary` are those of the second one."""
    stored, decided, second = [], [], []
    for number, (pair, label) in enumerate(zip(scores.tolist(), labels, strict=True)):
        entity, common = number // 10 + 1, {"tenant": f"t{number % 2}", "entity": number // 10 + 1}
        one, two = (
            {"digest": digest, "score": score, "threshold": threshold, "decision": score >= threshold}
            for digest, score, threshold in zip("AB", pair, (0.5, 0.6), strict=True)
        )
        if canary[number]:
            one, two = two, one
        stored.append(
            common
            | ZERO
            | {"position": number % 10, "id": f"r{number}", "digest": "d", "time": 0.0, "sent_time": 0.0, "fields": b"", "texts": {}}
            | {"answer": {}, "label": label, "entity": entity}
        )
        audit = {"kind": "scored", "received": float(number), "key": "", "request": "", "model": "m", "class": "0", "action": "review"}
        decided.append(common | audit | one | {"transaction": f"r{number}"})
        second.append(common | {"received": float(number), "transaction": f"r{number}"} | two)
    decided.append(decided[0] | {"kind": "amended", "score": 0.9})  # counts once

    def work(connection: Any) -> None:
        number = len(labels) // 10 + 1
        connection.execute(
            insert(entities), [{"id": each + 1, "tenant": "t", "name": str(each), "rows": 1} | ZERO for each in range(number)]
        )
        connection.execute(insert(transactions), stored)
        connection.execute(insert(decisions), decided)
        connection.execute(insert(challenger_scores), second)

    database.write(work)


def test_champion_and_challenger_are_compared_on_the_same_rows(database: Database) -> None:
    rng = np.random.default_rng(0)
    fraud = np.arange(600) % 12 == 0
    scores = np.clip(rng.random((600, 2)) * 0.6 + fraud[:, None] * np.array([0.1, 0.4]), 0, 1).round(2)
    labels = [None if number % 3 == 0 and not fraud[number] else str(int(fraud[number])) for number in range(600)]
    store(database, scores, labels, np.arange(600) % 4 == 1)
    found = compare(database, ("a", "A"), ("b", "B"), legitimate="0")
    known = np.array([label is not None for label in labels])
    alarms = scores >= [0.5, 0.6]
    assert (found["rows"], found["labelled"], found["frauds"]) == (600, int(known.sum()), 50)
    assert found["agreement"]["value"] == np.mean(alarms[:, 0] == alarms[:, 1])
    for place, name in enumerate(("champion", "challenger")):
        each, expected = found[name], alarm_metrics(fraud[known], alarms[known, place])
        assert (each["name"], each["alarms"]) == ("ab"[place], alarms[:, place].sum())
        assert each["alert_rate"]["value"] == alarms[:, place].mean()
        assert each["average_precision"]["value"] == Ranking.of(fraud[known], scores[known, place]).average_precision()
        assert (each["precision"]["value"], each["recall"]["value"]) == (expected["precision"], expected["recall"])
        assert each["false_alarms_per_10k"]["value"] == pytest.approx((expected["fpr"] or 0) * 10_000)
        for metric in ("alert_rate", "average_precision", "precision", "recall", "false_alarms_per_10k"):
            low, high = each[metric]["interval"]
            assert low <= each[metric]["value"] <= high and high > low
    part = compare(database, ("a", "A"), ("b", "B"), legitimate="0", span=Span(100, 400))
    assert (part["rows"], part["frauds"]) == (300, 25)
    low, high = found["average_precision_difference"]["interval"]
    assert 0 < low < found["average_precision_difference"]["value"] < high


def test_a_comparison_without_rows_or_labels_has_no_values(database: Database) -> None:
    empty = compare(database, ("a", "A"), ("b", "B"), legitimate="0")
    assert (empty["rows"], empty["labelled"], empty["agreement"]) == (0, 0, {"value": None, "interval": None})
    store(database, np.full((20, 2), 0.55), [None] * 20, np.zeros(20, dtype=bool))
    found = compare(database, ("a", "A"), ("b", "B"), legitimate="0")
    assert (found["rows"], found["labelled"], found["agreement"]["value"], found["champion"]["alarms"]) == (20, 0, 0.0, 20)
    assert found["champion"]["average_precision"] == {"value": None, "interval": None}
    assert compare(database, ("a", "A"), ("c", "C"), legitimate="0")["rows"] == 0
