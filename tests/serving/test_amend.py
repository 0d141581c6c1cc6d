"""A corrected or reversed transaction leaves the database that the right transactions would have made."""

from __future__ import annotations

import datetime as dt
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import delete, insert, select, update

from balancer.errors import InputError
from balancer.serving.audit.amend import Amender
from balancer.serving.audit.decisions import Decisions
from balancer.serving.errors import MissingError
from balancer.serving.models.registry import LoadedModel
from balancer.serving.scoring.actions import Actions
from balancer.serving.scoring.entities import Entities
from balancer.serving.scoring.origin import Origin
from balancer.serving.scoring.scorer import Scorer
from balancer.serving.storage import tables
from balancer.serving.storage.database import Database
from tests.serving.test_scoring import card
from tests.serving.tools import opened, parsed

WHO = Origin("k1", "r1")
KEPT = ("context_rows", "context_spans", "labelled", "labelled_hours", "labelled_days", "used_values")


@pytest.fixture(scope="module", params=["network_run", "tiny_run"])
def model(request: pytest.FixtureRequest) -> LoadedModel:
    run: Path = request.getfixturevalue(request.param)
    return LoadedModel.load(run, "run")


@pytest.fixture(scope="module")
def hybrid(tiny_run: Path) -> LoadedModel:
    return LoadedModel.load(tiny_run, "run")


def sent(count: int) -> list[dict[str, Any]]:
    """Transactions of two cards in order; merchants of one card are its own, so what one of them sees of a
    merchant depends on itself alone, and no row comes back to a merchant."""
    rng, begin, rows = np.random.default_rng(5), dt.datetime(2026, 1, 5), []
    for number in range(count):
        moment = begin + dt.timedelta(minutes=int(rng.integers(1, 90)) + 300 * number)
        rows.append(
            card(
                transaction_id=f"t{number}",
                card_id="c" if number % 3 else "d",
                time=moment.isoformat(),
                amount=round(float(rng.lognormal(3, 1)), 2),
                merchant_id=f"m{number}",
                merchant_category=str(rng.choice(["grocery", "travel", "online"])),
                distance_km=round(float(rng.lognormal(1, 1)), 3),
            )
        )
    return rows


def content(database: Database) -> dict[str, list[str]]:
    """All that scoring reads, without sums over no labels; entities by their names."""
    left_out = {"transactions": ("digest", "answer", "labelled"), "entities": ("id", "model", "state", "version")}

    def work(connection: Any) -> dict[str, list[str]]:
        names = dict(connection.execute(select(tables.entities.c.id, tables.entities.c.name)).all())
        found = {}
        for name in (*KEPT, "transactions", "entities"):
            table = tables.metadata.tables[name]
            rows = connection.execute(select(*(each for each in table.c if each.name not in left_out.get(name, ())))).mappings()
            lines = [{key: names[value] if key == "entity" else value for key, value in row.items()} for row in rows]
            found[name] = sorted(repr(line) for line in lines if line.get("known", 1))
        return found

    return database.read(work)


def scores(database: Database, model: LoadedModel, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Send rows one after another, also with amounts that only older versions took."""
    scorer, found = Scorer(database), {}
    for row in rows:
        most = replace(parsed(row | {"amount": min(row["amount"], 1e15)}, model), amount=float(row["amount"]))
        found[most.id] = scorer.score("t", model, [most]).answers[0]["score"]
    return found


def labelled(database: Database, model: LoadedModel, rows: list[dict[str, Any]]) -> None:
    Entities(database).label("t", model.schema, {row["transaction_id"]: str(place % 4 // 3) for place, row in enumerate(rows)})


CORRECTIONS = {
    "amount": ({"amount": 1e308}, {"amount": 21.5}),
    "no context": ({"merchant_id": None}, {"merchant_id": "m7"}),
    "all": ({"amount": -5.0, "merchant_id": "wrong", "channel": None, "distance_km": 1.0}, {"amount": 30, "merchant_id": "m7", "channel": "chip", "distance_km": "2.5"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CORRECTIONS)
def test_a_corrected_row_is_as_if_it_had_been_sent_right(database: Database, model: LoadedModel, tmp_path: Path, name: str) -> None:
    wrong, right = CORRECTIONS[name]
    rows, amender = sent(26), Amender(database, Actions())
    first, later = rows[:20], rows[20:]
    wrong_rows, right_rows = [dict(row) for row in first], [dict(row) for row in first]
    wrong_rows[7] |= wrong
    right_rows[7] |= right
    before = scores(database, model, wrong_rows)
    labelled(database, model, first[:15])
    other = opened(f"sqlite:///{tmp_path / 'right.db'}")
    expected = scores(other, model, right_rows)
    labelled(other, model, first[:15])

    answer = amender.amend("t", model, "t7", right, WHO)
    assert set(answer["changed"]) == set(right)
    assert answer["score"] == expected["t7"]
    assert content(database) == content(other)
    assert scores(database, model, later) == scores(other, model, later)
    assert content(database) == content(other)

    audit = Decisions(database).get("t", "t7")
    assert [row["kind"] for row in audit["decisions"]] == ["scored", "amended"]
    assert [row["score"] for row in audit["decisions"]] == [before["t7"], expected["t7"]]
    assert (audit["score"], audit["kind"]) == (expected["t7"], "amended")  # the fields beside it are the corrected ones
    (shown,) = (row for row in Entities(database).get("t", audit["entity"], 100)["latest"] if row["id"] == "t7")
    assert shown["score"] == expected["t7"]
    assert audit["amendments"] == audit["decisions"][1:]
    assert (audit["amendments"][0]["key"], audit["amendments"][0]["request"]) == ("k1", "r1")
    again = amender.amend("t", model, "t7", right, WHO)
    assert again == answer | {"changed": []}
    assert len(Decisions(database).get("t", "t7")["decisions"]) == 2
    other.close()


@pytest.mark.parametrize("place", [0, 7, 19])
def test_a_reversed_row_was_never_there(database: Database, model: LoadedModel, tmp_path: Path, place: int) -> None:
    rows, amender = sent(26), Amender(database, Actions())
    first, later = rows[:20], rows[20:]
    spoiled = [dict(row) for row in first]
    spoiled[place]["amount"] = 1e308
    scores(database, model, spoiled)
    labelled(database, model, first)
    other = opened(f"sqlite:///{tmp_path / 'right.db'}")
    scores(other, model, [row for row in first if row is not first[place]])
    labelled(other, model, first)

    amender.reverse("t", model, f"t{place}", WHO)
    assert content(database) == content(other)
    assert scores(database, model, later) == scores(other, model, later)
    audit = Decisions(database).get("t", f"t{place}")
    assert audit["reversed"]
    assert [row["kind"] for row in audit["decisions"]] == ["scored", "reversed"]
    with pytest.raises(MissingError, match="there is no transaction"):
        amender.reverse("t", model, f"t{place}", WHO)
    other.close()


def test_a_late_row_has_its_own_time_when_the_row_before_it_is_reversed(database: Database, hybrid: LoadedModel, tmp_path: Path) -> None:
    late = card(transaction_id="late", time="2026-01-05T09:30:00", merchant_id="m2")
    next_one = card(transaction_id="next", time="2026-01-05T12:00:00", merchant_id="m3")
    ahead = card(transaction_id="ahead", time="2026-01-05T11:00:00")
    scores(database, hybrid, [ahead, late])
    Entities(database).label("t", hybrid.schema, {"late": "1", "ahead": "1"})
    other = opened(f"sqlite:///{tmp_path / 'right.db'}")
    scores(other, hybrid, [late])
    Entities(other).label("t", hybrid.schema, {"late": "1"})
    Amender(database, Actions()).reverse("t", hybrid, "ahead", WHO)
    assert content(database) == content(other)
    assert scores(database, hybrid, [next_one]) == scores(other, hybrid, [next_one])
    for name in ("late", "next"):
        Amender(database, Actions()).reverse("t", hybrid, name, WHO)
    empty = Entities(database).get("t", "c", 5)
    assert (empty["transactions"], empty["latest"], empty["last_time"]) == (0, [], None)
    found = scores(database, hybrid, [late])
    assert found == scores(opened(f"sqlite:///{tmp_path / 'new.db'}"), hybrid, [late])
    assert [row["kind"] for row in Decisions(database).get("t", "late")["decisions"]] == ["scored", "reversed", "scored"]
    assert not Decisions(database).get("t", "late")["reversed"]
    other.close()


def test_what_a_worker_remembers_no_longer_holds(database: Database, hybrid: LoadedModel) -> None:
    scores(database, hybrid, [card(), card(transaction_id="b", time="2026-01-05T11:00:00", merchant_id="n")])
    entity = database.read(lambda connection: connection.execute(select(tables.entities)).mappings().one())
    database.write(lambda c: c.execute(insert(tables.entity_states).values(entity=entity["id"], model="m", rows=2, state=b"x")) and None)

    def versions() -> dict[str, int]:
        columns = tables.context_versions.c
        chosen = select(columns.value, columns.rows).where(columns.column == "merchant_id")
        return dict(database.read(lambda connection: connection.execute(chosen).all()))  # type: ignore[arg-type]

    before = versions()
    Amender(database, Actions()).amend("t", hybrid, "a", {"amount": 7, "merchant_id": "k"}, WHO)
    after = database.read(lambda connection: connection.execute(select(tables.entities)).mappings().one())
    assert after["version"] == entity["version"] + 1
    assert database.read(lambda connection: connection.execute(select(tables.entity_states)).all()) == []
    assert versions()["m"] > before.get("m", 0)
    assert versions()["k"] > 0
    assert versions().get("n", 0) == before.get("n", 0)


def test_rows_of_older_versions_have_no_amount(database: Database, hybrid: LoadedModel, tmp_path: Path) -> None:
    rows, other = sent(14), opened(f"sqlite:///{tmp_path / 'right.db'}")
    wrong = [dict(row) for row in rows[:10]]
    wrong[4]["amount"] = 1e308
    scores(database, hybrid, wrong)
    database.write(lambda connection: connection.execute(update(tables.transactions).values(amount=None)) and None)
    expected = scores(other, hybrid, rows[:10])
    answer = Amender(database, Actions()).amend("t", hybrid, "t4", {"amount": rows[4]["amount"]}, WHO)
    assert answer["score"] == expected["t4"]
    assert scores(database, hybrid, rows[10:12]) == scores(other, hybrid, rows[10:12])

    endless = [row | {"card_id": "e", "transaction_id": f"e{row['transaction_id']}", "amount": row["amount"] / 7} for row in rows]
    scores(database, hybrid, endless[:6])
    database.write(lambda connection: connection.execute(update(tables.transactions).values(amount=None)) and None)
    with pytest.raises(InputError, match="an older version of balancer stored without their amounts, so 'et4' can't be corrected; reverse"):
        Amender(database, Actions()).amend("t", hybrid, "et4", {"amount": 7}, WHO)
    Amender(database, Actions()).reverse("t", hybrid, "et4", WHO)
    third = opened(f"sqlite:///{tmp_path / 'third.db'}")
    scores(third, hybrid, [*rows[:12], *endless[:4], endless[5]])
    found, exact = (scores(each, hybrid, [endless[7]])["et7"] for each in (database, third))
    assert found == pytest.approx(exact, abs=1e-5)
    for each in (other, third):
        each.close()


def _long(count: int) -> list[dict[str, Any]]:
    """Transactions of one card, two days apart; a category and the highest amount come early only."""
    rng, begin = np.random.default_rng(7), dt.datetime(2026, 1, 5)
    return [
        card(
            transaction_id=f"t{place}",
            time=(begin + dt.timedelta(days=2 * place, minutes=int(rng.integers(0, 600)))).isoformat(),
            amount=900.0 if place == 2 else round(float(rng.lognormal(3, 0.5)), 2),
            merchant_id=f"m{place}",
            merchant_category="travel" if place in (1, 36) else str(rng.choice(["grocery", "online"])),
        )
        for place in range(count)
    ]


@pytest.mark.parametrize("work", ["amend", "reverse"])
def test_a_row_is_corrected_after_older_ones_were_purged(database: Database, hybrid: LoadedModel, tmp_path: Path, work: str) -> None:
    rows, whole = _long(42), opened(f"sqlite:///{tmp_path / 'whole.db'}")
    for each in (database, whole):
        scores(each, hybrid, rows[:34])
    row = tables.transactions.c
    database.write(lambda connection: connection.execute(delete(tables.transactions).where(row.position < 12)) and None)
    for each in (database, whole):
        if work == "amend":
            Amender(each, Actions()).amend("t", hybrid, "t30", {"amount": 3.0, "merchant_category": "fuel"}, WHO)
        else:
            Amender(each, Actions()).reverse("t", hybrid, "t30", WHO)
    found, expected = (content(each) for each in (database, whole))
    assert found["transactions"] == [line for line in expected["transactions"] if "'sum_cos'" in line and line in found["transactions"]]
    assert len(found["transactions"]) == len(expected["transactions"]) - 12
    assert scores(database, hybrid, rows[34:]) == scores(whole, hybrid, rows[34:])
    for call in (
        lambda: Amender(database, Actions()).amend("t", hybrid, "t16", {"amount": 3.0}, WHO),
        lambda: Amender(database, Actions()).reverse("t", hybrid, "t16", WHO),
    ):
        with pytest.raises(InputError, match="'t16' is so old that transactions which it was computed from were purged"):
            call()
    whole.close()


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        ({"time": "2026-01-05T10:00:00"}, "column 'time' says which transaction it is, or when it was, and can't be corrected: reverse"),
        ({"card_id": "d"}, "column 'card_id' says which transaction it is"),
        ({"transaction_id": "z"}, "column 'transaction_id' says which transaction it is"),
        ({"amuont": 1}, "there is no column 'amuont' to correct; did you mean 'amount'"),
        ({"is_fraud": 1}, "there is no column 'is_fraud' to correct"),
        ({"amount": "much"}, "column 'amount' is text, not a number"),
        ({"amount": None}, "column 'amount' is null"),
        ({"channel": "a\x00"}, "column 'channel' is not a printable text"),
        ({}, "corrects nothing"),
    ],
)
def test_what_cannot_be_corrected_is_said(tmp_path: Path, tiny_run: Path, raw: dict[str, Any], error: str) -> None:
    database, model = opened(f"sqlite:///{tmp_path / 'a.db'}"), LoadedModel.load(tiny_run, "run")
    scores(database, model, [card()])
    with pytest.raises(InputError, match=error):
        Amender(database, Actions()).amend("t", model, "a", raw, WHO)
    with pytest.raises(MissingError, match="there is no transaction 'a'"):
        Amender(database, Actions()).amend("other", model, "a", {"amount": 1}, WHO)


def test_corrections_reversals_labels_and_scores_at_once_lose_nothing(database: Database, hybrid: LoadedModel) -> None:
    rows, later = sent(30), sent(36)[30:]
    merchants = [row | {"merchant_id": f"m{place % 3}", "card_id": f"c{place % 4}"} for place, row in enumerate(rows)]
    scores(database, hybrid, merchants)

    def correct() -> None:
        for place in range(0, 30, 3):
            Amender(database, Actions()).amend("t", hybrid, f"t{place}", {"amount": 5.0 + place, "merchant_id": "m9"}, WHO)

    def reverse() -> None:
        for place in range(1, 30, 3):
            Amender(database, Actions()).reverse("t", hybrid, f"t{place}", WHO)

    def label() -> None:
        for place in range(30):
            Entities(database).label("t", hybrid.schema, {f"t{place}": "1", f"t{(place * 7) % 30}": "0"})

    def score() -> None:
        scores(database, hybrid, [row | {"merchant_id": f"m{place % 3}", "card_id": f"c{place % 4}"} for place, row in enumerate(later)])

    with ThreadPoolExecutor(4) as pool:
        for each in [pool.submit(work) for work in (correct, reverse, label, score)]:
            each.result()

    row, label_columns, spans = tables.transactions.c, tables.labelled.c, tables.context_spans.c
    stored = database.read(lambda c: c.execute(select(tables.transactions).order_by(row.entity, row.position)).all())
    assert len(stored) == 26
    for entity in {each.entity for each in stored}:
        own = [each for each in stored if each.entity == entity]
        assert [each.position for each in own] == list(range(len(own)))
        assert [each.time for each in own] == sorted(each.time for each in own)
    marks = database.read(lambda c: c.execute(select(label_columns.entity, label_columns.position)).all())
    assert sorted(map(tuple, marks)) == sorted((each.entity, each.position) for each in stored if each.label is not None)
    wanted = select(spans.value, spans.rows, spans.sum_level).where(spans.width == 0)
    sums = {each.value: (each.rows, each.sum_level) for each in database.read(lambda c: c.execute(wanted).all())}
    levels: dict[str, list[int]] = {}
    for each in stored:
        level = int(np.rint(np.log1p(each.amount) * 2**24))
        levels.setdefault(each.texts["merchant_id"], []).append(level)
    assert sums == {name: (len(found), sum(found)) for name, found in levels.items()}
