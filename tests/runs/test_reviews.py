"""Labels of reviewers: kept, undone, and in the form that training and the service take."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from balancer.errors import CorruptFileError, InputError
from balancer.runs.reviews import Review, Reviews, label_requests, label_table, review, undo, with_labels
from balancer.serving.http.decoding import decode_labels
from balancer.serving.http.schemas import LabelRequest

CLASSES = ("0", "1")
NAMES = {"id": "transaction_id", "label": "is_fraud", "time": "when"}


def now() -> datetime:
    return datetime(2026, 5, 1, 12, tzinfo=UTC)


def test_the_latest_label_counts_and_the_last_one_can_be_undone(tmp_path: Path) -> None:
    assert Reviews.load(tmp_path).labels == {}
    for identity, label in (("a", "1"), ("b", "0"), ("a", "0")):
        review(tmp_path, identity, label, classes=CLASSES, now=now)
    found = Reviews.load(tmp_path)
    assert found.labels == {"a": "0", "b": "0"}
    assert found.latest == [Review("a", "0", "2026-05-01T12:00:00+00:00"), Review("b", "0", "2026-05-01T12:00:00+00:00")]
    assert undo(tmp_path).labels == {"a": "1", "b": "0"}
    undo(tmp_path)
    undo(tmp_path)
    assert undo(tmp_path) == Reviews() == Reviews.load(tmp_path)


def test_a_label_that_is_no_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no class of the model: give one of 0, 1"):
        review(tmp_path, "a", "fraud", classes=CLASSES)
    assert not list(tmp_path.iterdir())


def test_sessions_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    threads = [threading.Thread(target=review, args=(tmp_path, number, "1"), kwargs={"classes": CLASSES}) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(Reviews.load(tmp_path).labels) == set(range(20))


@pytest.mark.parametrize("content", ["{}", '{"reviews": [{"id": 1}]}', '{"reviews": [{"id": 1, "label": 2, "reviewed": ""}]}', "[]"])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "reviews.json").write_text(content)
    with pytest.raises(CorruptFileError, match=r"reviews\.json"):
        Reviews.load(tmp_path)


@pytest.mark.parametrize("ids", [[1, 2, 3], ["x", "y, z", "w"]])
def test_the_table_of_labels_has_the_columns_of_the_table(tmp_path: Path, ids: list[int | str]) -> None:
    for identity, label in ((ids[2], "1"), (ids[0], "0")):
        review(tmp_path, identity, label, classes=CLASSES, now=now)
    times = pl.DataFrame({"id": ids, "time": [datetime(2026, 1, day) for day in (1, 2, 3)]})
    frame = label_table(Reviews.load(tmp_path), times, names=NAMES)
    assert frame.columns == ["transaction_id", "is_fraud", "when", "reviewed"]
    assert frame["transaction_id"].to_list() == [ids[2], ids[0]]
    assert frame["is_fraud"].to_list() == ["1", "0"]
    assert frame["when"].to_list() == [datetime(2026, 1, 3), datetime(2026, 1, 1)]
    assert label_table(Reviews(), times, names=NAMES).height == 0


def test_requests_are_those_that_the_service_takes(tmp_path: Path) -> None:
    for number in range(5):
        review(tmp_path, number, "1" if number % 2 else "0", classes=CLASSES)
    review(tmp_path, "t-1", "1", classes=CLASSES)
    bodies = list(label_requests(Reviews.load(tmp_path), most=4))
    assert [len(body["labels"]) for body in bodies] == [4, 2]
    sent: dict[str, object] = {}
    for body in bodies:
        LabelRequest.model_validate(body)
        sent |= decode_labels(json.dumps(body).encode(), 1_000).labels
    assert sent == {"0": "0", "1": "1", "2": "0", "3": "1", "4": "0", "t-1": "1"}


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        ([0, 1, 0], ("0", "1"), [1, 0, 0]),
        (["no", "yes", "no"], ("no", "yes"), ["yes", "no", "no"]),
        ([False, True, False], ("false", "true"), [True, False, False]),
        ([None, 1, 0], ("0", "1"), [1, 0, 0]),
    ],
)
def test_a_table_gets_the_labels_in_its_own_type(
    tmp_path: Path, labels: list[object], classes: tuple[str, str], expected: list[object]
) -> None:
    for identity, label in ((10, classes[1]), (11, classes[0])):
        review(tmp_path, identity, label, classes=classes)
    table = pl.DataFrame({"id": [10, 11, 12], "y": labels, "amount": [1.0, 2.0, 3.0]})
    changed = with_labels(table, Reviews.load(tmp_path), identity="id", label="y")
    assert changed["y"].to_list() == expected
    assert changed.schema == table.schema
    assert changed.drop("y").equals(table.drop("y"))


def test_a_table_without_ids_is_labelled_by_row(tmp_path: Path) -> None:
    review(tmp_path, 1, "1", classes=CLASSES)
    changed = with_labels(pl.DataFrame({"y": [0, 0, 0]}), Reviews.load(tmp_path), identity=None, label="y")
    assert changed["y"].to_list() == [0, 1, 0]


def test_a_table_that_can_not_be_labelled_is_refused(tmp_path: Path) -> None:
    review(tmp_path, 1, "fraud", classes=("ok", "fraud"))
    found = Reviews.load(tmp_path)
    with pytest.raises(InputError, match="no column 'id'"):
        with_labels(pl.DataFrame({"y": [0]}), found, identity="id", label="y")
    with pytest.raises(InputError, match="no value of the column"):
        with_labels(pl.DataFrame({"id": [1], "y": [0]}), found, identity="id", label="y")
