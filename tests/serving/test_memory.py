"""What a worker remembers: batches, other workers, values with many rows, failures, challengers, states."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text

from balancer.data.spec import DAY
from balancer.serving.audit.amend import Amender
from balancer.serving.errors import ConflictError, MissingError
from balancer.serving.models.loaded_model import LoadedModel
from balancer.serving.operations.retention import purge
from balancer.serving.scoring import context_memory, entity_memory, model_memory
from balancer.serving.scoring.actions import Actions
from balancer.serving.scoring.entities import Entities
from balancer.serving.scoring.memory import Memory
from balancer.serving.scoring.monitoring import ScoreMonitor
from balancer.serving.scoring.origin import Origin
from balancer.serving.scoring.queue import ScoringQueue
from balancer.serving.scoring.row import Row
from balancer.serving.scoring.scorer import Job, Models, Scorer, ScoringResult
from balancer.serving.storage.database import Database, UnavailableError
from tests.serving.tools import opened, parsed

Step = tuple[str, Any]


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> LoadedModel:
    model = LoadedModel.load(tiny_run, "tiny")
    assert model.first_stage is not None
    assert model.stream is not None
    return model


def raw(number: int, rng: random.Random, time: float) -> dict[str, Any]:
    """A transaction of one of few cards and merchants, sometimes late."""
    late = rng.choice([0.0, 0.0, 0.0, 40.0, 3 * DAY])
    return {
        "transaction_id": f"t{number}",
        "card_id": f"c{rng.randrange(5)}",
        "time": time - late,
        "amount": round(rng.lognormvariate(3, 1), 2),
        "merchant_id": rng.choice(["m0", "m1", "m2", None]),
        "merchant_category": rng.choice(["grocery", "fuel", "online"]),
        "channel": rng.choice(["chip", "online"]),
        "region": rng.choice(["r0", "r1"]),
        "distance_km": rng.choice([None, 1.5, 20.0]),
    }


def scenario(model: LoadedModel, seed: int, size: int = 150) -> list[Step]:
    """Rows, some of them sent twice, with labels and an erasure in between."""
    rng, moment, steps = random.Random(seed), 1.7e9, list[Step]()
    sent: list[Row] = []
    for number in range(size):
        moment += rng.choice([0.0, 5.0, 600.0, 5 * 3600.0, 2 * DAY, 9 * DAY])
        row = rng.choice(sent) if sent and rng.random() < 0.05 else parsed(raw(number, rng, moment), model)
        sent.append(row)
        steps.append(("row", row))
        if rng.random() < 0.15:
            steps.append(("label", {rng.choice(sent).id: rng.choice(["0", "1", None]) for _ in range(4)}))
        if number == size // 2:
            steps.append(("erase", "c1"))
    return steps


def answered(
    database: Database, model: LoadedModel, steps: list[Step], scorer: Callable[[], Scorer], most: int, seed: int = 0
) -> list[Any]:
    """The answers to a scenario, with up to `most` rows of a request, and of some requests together."""
    entities, rng = Entities(database), random.Random(seed)
    answers: list[Any] = []
    waiting: list[Row] = []

    def send() -> None:
        jobs = []
        while waiting:
            size = rng.randint(1, most)
            jobs.append(Job(waiting[:size]))
            del waiting[:size]
        while jobs:
            together = rng.randint(1, most)
            for result in scorer().score_many("t", Models(model), jobs[:together]):
                assert isinstance(result, ScoringResult)
                answers.extend(result.answers)
            del jobs[:together]

    for kind, value in steps:
        if kind == "row":
            waiting.append(value)
            if len(waiting) >= most * 2:
                send()
            continue
        send()
        if kind == "label":
            entities.label("t", model.schema, value)
        else:
            try:
                entities.delete("t", value)
            except MissingError:
                answers.append("missing")
    send()
    return answers


def in_order(steps: list[Step]) -> list[Step]:
    """The steps with rows in order of time between the others, as requests sort them."""
    found: list[Step] = []
    rows: list[Step] = []
    for step in [*steps, ("end", None)]:
        if step[0] == "row":
            rows.append(step)
            continue
        found += sorted(rows, key=lambda each: each[1].sent_time)
        rows = []
        found.append(step)
    return found[:-1]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """So little may be read and remembered that the sums of the database are needed all the time."""
    monkeypatch.setattr(context_memory, "MOST_ROWS", 3)
    monkeypatch.setattr(context_memory, "_ROWS", context_memory._ROWS.rpartition(" ")[0] + " 3")
    monkeypatch.setattr(context_memory, "MOST_LABELS", 2)
    monkeypatch.setattr(context_memory, "_LABELS", context_memory._LABELS.rpartition(" ")[0] + " 3")
    monkeypatch.setattr(entity_memory, "MOST_ROWS", 3)
    monkeypatch.setattr(entity_memory, "_WINDOW", entity_memory._WINDOW.rpartition(" ")[0] + " 3")
    monkeypatch.setattr(entity_memory, "MOST_VALUES", 2)
    monkeypatch.setattr(entity_memory, "_VALUES", entity_memory._VALUES.rpartition(" ")[0] + " 3")
    monkeypatch.setattr(model_memory, "AT_ONCE", 4)
    monkeypatch.setattr(model_memory, "_PAGE", model_memory._ROWS + " LIMIT 4")


@pytest.fixture
def expected(model: LoadedModel, tmp_path: Path) -> Iterator[Callable[[list[Step]], list[Any]]]:
    """The answers row by row, by workers that remember nothing."""
    database = opened(f"sqlite:///{tmp_path / 'expected.db'}")
    yield lambda steps: answered(database, model, steps, lambda: Scorer(database), 1)
    database.close()


@pytest.mark.parametrize("seed", [1, 2])
def test_batches_give_the_answers_of_single_rows(
    database: Database, model: LoadedModel, expected: Callable[[list[Step]], list[Any]], seed: int
) -> None:
    steps = in_order(scenario(model, seed))
    one = Scorer(database)
    assert answered(database, model, steps, lambda: one, 7) == expected(steps)


def test_values_with_many_rows_are_computed_from_the_sums(
    database: Database, model: LoadedModel, expected: Callable[[list[Step]], list[Any]], request: pytest.FixtureRequest
) -> None:
    steps = in_order(scenario(model, 3))
    before = expected(steps)
    request.getfixturevalue("small")
    one = Scorer(database, limit=20_000)
    assert answered(database, model, steps, lambda: one, 5) == before


def test_workers_that_take_turns_read_what_the_other_has_added(
    url: str, database: Database, model: LoadedModel, expected: Callable[[list[Step]], list[Any]]
) -> None:
    steps = in_order(scenario(model, 4))
    other = opened(url)
    workers = [Scorer(database), Scorer(other)]
    rng = random.Random(0)
    assert answered(database, model, steps, lambda: rng.choice(workers), 3) == expected(steps)
    other.close()


def test_a_batch_that_fails_is_forgotten(
    database: Database, model: LoadedModel, expected: Callable[[list[Step]], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from balancer.serving.scoring import scorer as scoring

    steps = [step for step in in_order(scenario(model, 5, 60)) if step[0] == "row"]
    one, write = Scorer(database), scoring.write_batch
    calls = 0

    def fails(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        write(*arguments)
        if calls % 3 == 0:
            raise RuntimeError("after the rows were written, before they were committed")

    monkeypatch.setattr(scoring, "write_batch", fails)
    answers = []
    for _, row in steps:
        for _ in range(2):
            try:
                answers += one.score("t", model, [row]).answers
                break
            except RuntimeError:
                continue
    assert calls > 60
    monkeypatch.setattr(scoring, "write_batch", write)
    assert answers == expected(steps)


def test_a_request_that_contradicts_does_not_harm_the_others(database: Database, model: LoadedModel) -> None:
    rng = random.Random(0)
    rows = [parsed(raw(number, rng, 1.7e9 + number), model) for number in range(6)]
    one = Scorer(database)
    one.score("t", model, rows[:1])
    wrong = replace(rows[0], amount=1e6, digest="another")
    results = one.score_many(
        "t", Models(model), [Job(rows[1:3]), Job([rows[3], wrong]), Job([rows[4], rows[1]]), Job([wrong, rows[5]], skip=True)]
    )
    assert isinstance(results[1], ConflictError)
    for number, found in ((0, [False, False]), (2, [False, True])):
        result = results[number]
        assert isinstance(result, ScoringResult)
        assert [answer["repeated"] for answer in result.answers] == found
    skipped = results[3]
    assert isinstance(skipped, ScoringResult)
    assert "already stored with other content" in skipped.answers[0]["error"]
    assert skipped.answers[1]["id"] == "t5"
    stored = database.read(lambda connection: connection.execute(text("SELECT id FROM transactions ORDER BY id")).scalars().all())
    assert stored == ["t0", "t1", "t2", "t4", "t5"]


def test_a_challenger_scores_as_if_it_were_alone(database: Database, model: LoadedModel, other: LoadedModel, tmp_path: Path) -> None:
    steps = [row for kind, row in in_order(scenario(model, 6, 80)) if kind == "row"]
    alone = opened(f"sqlite:///{tmp_path / 'alone.db'}")
    by_other, by_model = Scorer(alone), Scorer(database)
    wanted = {row.id: by_other.score("t", other, [row]).answers[0]["score"] for row in steps}
    decided = {}
    for number, row in enumerate(steps):
        if number == 50:
            by_model = Scorer(database)  # another worker, which remembers nothing
        answer = by_model.score("t", model, [row], challenger=other, canary_share=0.5).answers[0]
        decided[row.id] = answer["model"]
        if answer["model"] == other.name:
            assert answer["score"] == wanted[row.id]
    kept = text("SELECT transaction, digest, score FROM challenger_scores".replace("transaction,", '"transaction",'))
    for name, digest, score in database.read(lambda connection: connection.execute(kept).all()):
        assert digest == (model.digest if decided[name] == other.name else other.digest)
        if digest == other.digest:
            assert score == wanted[name]
    assert set(decided.values()) == {model.name, other.name}
    assert len({(row.entity, decided[row.id]) for row in steps}) == len({row.entity for row in steps})
    alone.close()


@pytest.fixture(scope="module")
def other(second_run: Path) -> LoadedModel:
    other = LoadedModel.load(second_run, "other")
    assert other.first_stage is not None
    return other


def test_a_state_is_written_now_and_then_and_continued_by_another_worker(
    database: Database, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from balancer.serving.scoring import scorer as scoring

    for module in (scoring, model_memory):
        monkeypatch.setattr(module, "SNAPSHOT_ROWS", 5)
    rng = random.Random(0)
    rows = [replace(parsed(raw(number, rng, 1.7e9 + 5000 * number), model), entity="c") for number in range(17)]
    rows = [replace(row, time=row.sent_time) for row in sorted(rows, key=lambda each: each.sent_time)]
    one = Scorer(database)
    first = [one.score("t", model, [row]).answers[0]["score"] for row in rows[:16]]
    assert len(set(first)) > 10
    kept = database.read(lambda connection: connection.execute(text('SELECT model, "rows" FROM entity_states')).all())
    assert [tuple(each) for each in kept] == [(model.digest, 15)]
    last = one.score("u", model, rows).answers[-1]["score"]
    assert Scorer(database).score("t", model, [rows[16]]).answers[0]["score"] == last


def test_what_was_not_used_for_longest_is_forgotten() -> None:
    memory = Memory(limit=10_000)
    kept = [entity_memory.EntityMemory(number, f"c{number}", 0) for number in range(5)]
    for each in kept:
        memory.keep(("t", each.name), each)
        memory.entity("t", "c0")
    assert memory.entity("t", "c4") is kept[4]
    assert memory.entity("t", "c0") is None
    memory.forget([("t", "c4")])
    assert memory.entity("t", "c4") is None
    assert memory.context("t", "c", "x") is None


def test_threads_that_score_at_once_change_no_answer(database: Database, model: LoadedModel) -> None:
    rng = random.Random(0)
    rows = [replace(parsed(raw(number, rng, 1.7e9 + 60 * number), model), entity=f"c{number % 4}") for number in range(40)]
    one, wanted = Scorer(database), {}
    for card in range(4):
        mine = [row for row in rows if row.entity == f"c{card}"]
        wanted |= {answer["id"]: answer["late_by"] for answer in Scorer(database).score(f"alone{card}", model, mine).answers}
    found: dict[str, float] = {}

    def send(card: int) -> None:
        for row in (row for row in rows if row.entity == f"c{card}"):
            found[row.id] = one.score("t", model, [row]).answers[0]["late_by"]

    threads = [threading.Thread(target=send, args=(card,)) for card in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found.keys() == wanted.keys()
    seen = database.read(lambda connection: connection.execute(text("SELECT \"rows\" FROM entities WHERE tenant = 't'")).scalars().all())
    assert sorted(seen) == [10] * 4
    assert np.isfinite(list(found.values())).all()


def test_reasons_and_actions_are_part_of_the_answer(database: Database, model: LoadedModel) -> None:
    rng = random.Random(0)
    rows = [replace(parsed(raw(number, rng, 1.7e9 + 9000 * number), model), entity="c") for number in range(8)]
    rows.sort(key=lambda row: row.sent_time)
    declining = Scorer(database, actions=Actions(decline_above=0.0))
    job = Job(rows, explain=2, reasons=3)
    result = declining.score_many("t", Models(model), [job])[0]
    assert isinstance(result, ScoringResult)
    later = Scorer(database).score_many("u", Models(model), [Job([row], reasons=3, explain=2) for row in rows])
    for answer, alone in zip(result.answers, later, strict=True):
        assert isinstance(alone, ScoringResult)
        assert 1 <= len(answer["reasons"]) <= 3
        assert all(each["words"] and np.isfinite(each["contribution"]) for each in answer["reasons"])
        assert answer == alone.answers[0]
    assert len(result.answers[-1]["weighed_most"]) == 2
    taken = database.read(lambda connection: connection.execute(text("SELECT DISTINCT tenant, action FROM decisions")).all())
    assert ("t", "decline") in {tuple(each) for each in taken}
    assert not {action for tenant, action in taken if tenant == "u"} - {"approve", "review"}


def test_an_entity_that_was_erased_and_comes_back_is_a_new_one(url: str, database: Database, model: LoadedModel) -> None:
    """SQLite gives its id again, so a worker that remembers the old entity must see the difference."""
    rng = random.Random(0)
    old, new = (
        [replace(parsed(raw(number, rng, 1.7e9 + 9000 * number), model), entity="c") for number in range(first, first + 4)]
        for first in (0, 4)
    )
    other = opened(url)
    remembers, erases = Scorer(database), Scorer(other)
    remembers.score("t", model, old)
    Entities(other).delete("t", "c")
    erases.score("t", model, new[:3])
    erases.score("t", model, [replace(old[0], id="x", digest="x", sent_time=new[2].sent_time + 1, time=new[2].sent_time + 1)])
    last = replace(new[3], id="last", sent_time=2e9, time=2e9)
    score = remembers.score("t", model, [last]).answers[0]["score"]
    Entities(other).delete("t", "c")
    again = Scorer(other)
    again.score("t", model, [*(replace(row, id=f"again-{row.id}") for row in new[:3])])
    again.score("t", model, [replace(old[0], id="y", digest="x", sent_time=new[2].sent_time + 1, time=new[2].sent_time + 1)])
    assert again.score("t", model, [replace(last, id="z")]).answers[0]["score"] == score
    other.close()


def card_rows(model: LoadedModel, count: int, seed: int = 0, gap: float = 0.9 * DAY) -> list[Row]:
    """Rows of one card in order of time."""
    rng = random.Random(seed)
    rows = [parsed(raw(number, rng, 0.0) | {"time": 1.6e9 + gap * number}, model) for number in range(count)]
    return [replace(row, entity="c") for row in rows]


def scores_of(scorer: Scorer, model: LoadedModel, rows: list[Row], **further: Any) -> list[float]:
    return [scorer.score("t", model, [row], **further).answers[0]["score"] for row in rows]


def test_a_challenger_that_becomes_the_champion_decides_as_if_it_had_been_alone(
    url: str, database: Database, model: LoadedModel, other: LoadedModel, tmp_path: Path
) -> None:
    rows = card_rows(model, 30)
    alone = opened(f"sqlite:///{tmp_path / 'alone.db'}")
    wanted = scores_of(Scorer(alone), other, rows)
    one = Scorer(database)
    scores_of(one, model, rows[:15], challenger=other)
    assert scores_of(one, other, rows[15:20], challenger=model) == wanted[15:20]
    second = opened(url)
    assert scores_of(Scorer(second), other, rows[20:25]) == wanted[20:25]
    assert scores_of(one, other, rows[25:]) == wanted[25:]
    stored = text("SELECT id, scores, sum_score FROM transactions ORDER BY position")
    here, there = (each.read(lambda connection: connection.execute(stored).all()) for each in (database, alone))
    assert [(row.id, bytes(row.scores), row.sum_score) for row in here] == [(row.id, bytes(row.scores), row.sum_score) for row in there]
    for each in (alone, second):
        each.close()


def test_a_model_that_was_loaded_again_continues(database: Database, model: LoadedModel, other: LoadedModel, tmp_path: Path) -> None:
    """A rollback loads the files of an earlier champion again; states of the old object are not its own."""
    rows = card_rows(model, 12)
    alone = opened(f"sqlite:///{tmp_path / 'alone.db'}")
    wanted = scores_of(Scorer(alone), model, rows)
    one = Scorer(database)
    scores_of(one, model, rows[:6])
    again = LoadedModel.load(model.folder, model.name)
    assert again.digest == model.digest
    assert scores_of(one, again, rows[6:9], challenger=other) == wanted[6:9]
    assert scores_of(one, model, rows[9:], challenger=LoadedModel.load(other.folder, other.name)) == wanted[9:]
    alone.close()


def test_a_model_is_no_challenger_of_itself(database: Database, model: LoadedModel, tmp_path: Path) -> None:
    rows = card_rows(model, 6)
    alone = opened(f"sqlite:///{tmp_path / 'alone.db'}")
    wanted = scores_of(Scorer(alone), model, rows)
    assert scores_of(Scorer(database), model, rows, challenger=LoadedModel.load(model.folder, "same")) == wanted
    alone.close()


def test_trees_that_come_back_after_others_begin_their_sums_anew(
    url: str, database: Database, model: LoadedModel, other: LoadedModel, tmp_path: Path
) -> None:
    """After a purge the sums of other trees begin at the first row that is left."""
    rows = card_rows(model, 80)
    alone = opened(f"sqlite:///{tmp_path / 'alone.db'}")
    wanted = scores_of(Scorer(alone), model, rows)
    one = Scorer(database)
    scores_of(one, model, rows[:70])
    purge(database, [model, other], 45 * DAY, rows[69].time)
    scores_of(one, model, rows[70:71])
    second = opened(url)
    between = Scorer(second)
    scores_of(between, other, rows[71:72])
    scores_of(between, model, rows[72:73])
    assert scores_of(one, model, rows[73:]) == wanted[73:]
    for each in (alone, second):
        each.close()


def test_the_reasons_of_a_canary_are_those_of_the_model_alone(
    database: Database, model: LoadedModel, other: LoadedModel, tmp_path: Path
) -> None:
    rows = card_rows(model, 8)
    alone = opened(f"sqlite:///{tmp_path / 'alone.db'}")
    wanted = Scorer(alone).score_many("t", Models(other), [Job(rows, explain=3, reasons=4)])[0]
    found = Scorer(database).score_many("t", Models(model, other, 1.0), [Job([row], explain=3, reasons=4) for row in rows])
    assert isinstance(wanted, ScoringResult)
    for answer, result in zip(wanted.answers, found, strict=True):
        assert isinstance(result, ScoringResult)
        assert result.answers[0] == answer
    alone.close()


def test_a_worker_remembers_no_more_than_it_may(model: LoadedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(context_memory, "KEPT_ROWS", 20)
    monkeypatch.setattr(entity_memory, "MOST_ROWS", 10)
    monkeypatch.setattr(entity_memory, "MOST_VALUES", 5)
    database = opened(f"sqlite:///{tmp_path / 'a.db'}")
    rows = [replace(row, texts=row.texts | {"merchant_id": "m"}) for row in card_rows(model, 120, gap=600.0)]
    one, expected = Scorer(database), opened(f"sqlite:///{tmp_path / 'b.db'}")
    monkeypatch.setattr(model_memory, "SNAPSHOT_ROWS", 1000)
    found = scores_of(one, model, rows)
    context, entity = one._memory.context("t", "merchant_id", "m"), one._memory.entity("t", "c")
    assert context is not None
    assert entity is not None
    assert len(context._times) <= 40
    assert len(entity._times) <= 20
    assert entity.size > sum(memory.state.nbytes for memory in entity.models.values() if memory.state is not None) > 0
    assert found == [answer["score"] for answer in Scorer(expected).score("t", model, rows).answers]
    for each in (database, expected):
        each.close()


def test_metrics_that_fail_do_not_stop_scoring(database: Database, model: LoadedModel) -> None:
    class Broken(ScoreMonitor):
        def add(self, model: LoadedModel, result: ScoringResult) -> None:
            raise ValueError("anything")

    queue, rows = ScoringQueue(Scorer(database), Broken()), card_rows(model, 3)

    async def send() -> list[float]:
        found = [await queue.score("t", Models(model), Job([row])) for row in rows]
        return [result.answers[0]["score"] for result in found]

    assert len(asyncio.run(send())) == 3
    queue.close()
    with pytest.raises(UnavailableError, match="stops"):
        asyncio.run(send())


def test_what_was_committed_although_nobody_heard_of_it_is_no_repetition(
    database: Database, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is lost after the commit, so the work is tried again."""
    rows, tried = card_rows(model, 4), database._tried
    attempts = 0

    def loses(work: Callable[[Any], Any], *arguments: Any, **options: Any) -> Any:
        nonlocal attempts
        attempts += 1
        tried(work, *arguments, **options)
        return tried(work, *arguments, **options)

    monkeypatch.setattr(database, "_tried", loses)
    one = Scorer(database)
    answers = one.score("t", model, rows[:2]).answers
    assert [answer["repeated"] for answer in answers] == [False, False]
    assert one.score("t", model, rows[:2]).answers[0]["repeated"]
    amender = Amender(database, Actions())
    assert amender.amend("t", model, rows[0].id, {"amount": 5.0}, Origin())["changed"] == ["amount"]
    amender.reverse("t", model, rows[1].id, Origin())
    Entities(database).delete("t", "c")
    assert attempts >= 5
    with pytest.raises(MissingError):
        Entities(database).delete("t", "c")
