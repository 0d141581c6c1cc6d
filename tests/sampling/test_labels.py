"""LabelCodes: every kind of label against numpy.unique, and errors that name the problem."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from balancer.errors import InputError
from balancer.sampling import labels as module
from balancer.sampling.labels import LabelCodes, code_type, count_codes


@given(st.lists(st.integers(-3, 3) | st.none(), min_size=2, max_size=40), st.integers(1, 5))
def test_equals_numpy_unique(values: list[int | None], chunk: int) -> None:
    known = np.array([v for v in values if v is not None])
    if len(set(known.tolist())) < 2:
        with pytest.raises(InputError, match=r"one class only|every row is unlabelled"):
            LabelCodes(values)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        coded = LabelCodes(values)
    classes, counts = np.unique(known, return_counts=True)
    assert coded.classes == classes.tolist()
    assert (np.diff(coded.counts) <= 0).all()
    np.testing.assert_array_equal(coded.counts[coded.rank], counts)
    assert [None if c < 0 else coded.classes[coded.order[c]] for c in coded.codes] == values
    np.testing.assert_array_equal(coded.encode(values, "y"), coded.codes)
    np.testing.assert_array_equal(count_codes(coded.codes, len(classes)), coded.counts)


@pytest.mark.parametrize(
    ("labels", "unlabelled", "classes", "codes"),
    [
        (["ok", "ok", "fraud", None], None, ["fraud", "ok"], [0, 0, 1, -1]),
        (np.array(["ok", "ok", "fraud", "?"]), "?", ["fraud", "ok"], [0, 0, 1, -1]),
        (np.array(["ok", "ok", "fraud", float("nan")], dtype=object), None, ["fraud", "ok"], [0, 0, 1, -1]),
        (np.array([b"ok", b"ok", b"fraud"]), None, [b"fraud", b"ok"], [0, 0, 1]),
        (np.array([0, 0, 1, -1], dtype=np.int8), -1, [0, 1], [0, 0, 1, -1]),
        (np.array([0, 0, 1, -1]), None, [-1, 0, 1], [0, 0, 2, 1]),
        (np.array([-5, -7, -7]), None, [-7, -5], [1, 0, 0]),
        (np.array([True, False, False]), None, [False, True], [1, 0, 0]),
        (np.array([0.0, 0.0, 1.0, np.nan]), None, [0, 1], [0, 0, 1, -1]),
        (np.array([2**63 + 1, 3, 3], dtype=np.uint64), None, [3, 2**63 + 1], [1, 0, 0]),
        (np.array(["a", "b", "b"]), 3, ["a", "b"], [1, 0, 0]),  # a marker of another kind marks nothing
    ],
)
def test_kinds_of_labels(labels: Any, unlabelled: Any, classes: list[Any], codes: list[int]) -> None:
    coded = LabelCodes(labels, unlabelled)
    assert coded.classes == classes
    assert [type(c) for c in coded.classes] == [type(c) for c in classes]
    assert coded.codes.tolist() == codes
    assert coded.codes.dtype == np.int8


def test_pandas_and_polars_columns() -> None:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    for column in (
        pandas.Series([0, 0, 1, None], dtype="Int64"),
        pandas.Series([0, 0, 1, None]),
        polars.Series([0, 0, 1, None]),
    ):
        assert LabelCodes(column).codes.tolist() == [0, 0, 1, -1]
    for column in (pandas.Series(["ok", "ok", "fraud", None]), polars.Series(["ok", "ok", "fraud", None])):
        assert LabelCodes(column).codes.tolist() == [0, 0, 1, -1]


@pytest.mark.parametrize(
    "labels",
    [
        [[0], [0], [1]],
        np.array([[0.0], [0.0], [1.0]]),
        torch.tensor([[0], [0], [1]]),
        torch.tensor([0, 0, 1], dtype=torch.int8),
        torch.tensor([0.0, 0.0, 1.0], dtype=torch.bfloat16),
        torch.tensor([0.0, 0.0, 1.0], requires_grad=True),
        [torch.tensor(0), torch.tensor(0), torch.tensor(1)],
        np.array([0, 0, 1], dtype=np.float16),
        (0, 0, 1),
        range(2),
    ],
)
def test_columns_and_tensors(labels: Any) -> None:
    coded = LabelCodes(labels)
    assert coded.classes == [0, 1]
    assert coded.codes.tolist() == ([0, 1] if isinstance(labels, range) else [0, 0, 1])
    assert coded.encode(labels, "y").tolist() == coded.codes.tolist()


@pytest.mark.parametrize("kind", ["bool", "int8", "uint8", "int64", "uint64", "float32"])
@given(st.data())
def test_counting_equals_sorting(kind: str, data: st.DataObject) -> None:
    low, high = (0, 1) if kind == "bool" else (0, 200) if kind.startswith("u") else (-100, 100)
    scale = data.draw(st.sampled_from([1, 2**20])) if kind in ("int64", "uint64") else 1  # a wide range is sorted
    values = np.array(data.draw(st.lists(st.integers(low, high), min_size=2, max_size=40))) * scale
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", data.draw(st.integers(1, 50)))
        if len(set(values.tolist())) < 2:
            with pytest.raises(InputError, match="one class only"):
                LabelCodes(values.astype(kind))
            return
        coded = LabelCodes(values.astype(kind))
        classes, index, counts = np.unique(values.astype(kind), return_inverse=True, return_counts=True)
    assert coded.classes == classes.tolist()
    np.testing.assert_array_equal(coded.codes, coded.rank[index])
    np.testing.assert_array_equal(coded.counts[coded.rank], counts)


def test_a_range_that_becomes_wide_is_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 2)
    values = np.array([5, 5, 7, 5, 10**12, 7, -(10**9), 5, 2**62, 8])
    coded = LabelCodes(values)
    classes, counts = np.unique(values, return_counts=True)
    assert coded.classes == classes.tolist()
    np.testing.assert_array_equal(coded.counts[coded.rank], counts)
    assert [coded.classes[coded.order[c]] for c in coded.codes] == values.tolist()


def test_labels_show_their_counts() -> None:
    assert repr(LabelCodes(["ok", "ok", "fraud", None])) == "LabelCodes(rows=4, counts={'fraud': 1, 'ok': 2})"
    assert repr(LabelCodes(np.arange(12))).endswith("9: 1, ... 12 classes})")


def test_ties_go_by_the_order_of_the_labels() -> None:
    assert LabelCodes(["b", "c", "a", "a", "b", "c"]).order.tolist() == [0, 1, 2]


def test_fingerprint_is_of_labels_and_order() -> None:
    one = LabelCodes(["ok", "ok", "fraud"]).fingerprint
    assert one == LabelCodes(np.array(["ok", "ok", "fraud"])).fingerprint
    others = [
        LabelCodes(other).fingerprint for other in (["ok", "fraud", "ok"], ["ok", "ok", "theft"], [0, 0, 1], ["ok", "ok", "fraud", None])
    ]
    assert len({one, *others}) == 5


def test_many_classes_take_wider_codes() -> None:
    assert [code_type(k) for k in (2, 127, 128, 40_000)] == [np.int8, np.int8, np.int16, np.int32]
    coded = LabelCodes(np.arange(300))
    assert coded.codes.dtype == np.int16
    assert coded.codes.tolist() == list(range(300))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "non-empty vector"),
        ([[0, 1]], "non-empty vector"),
        (["a"] * 4, "one class only"),
        ([None, None], "every row is unlabelled"),
        (["a", 1], "a mix of numbers and text"),
        (np.array([0.5, 1.0]), "integers or strings"),
        (np.array([np.inf, 1.0]), "integers or strings"),
        (np.array(["2020-01-01", "2020-01-02"], dtype="datetime64[D]"), "integers or strings"),
        ([[0], [1, 2], [0]], r"a row with several classes \(\[0\]\); give one class a row"),
        ([{0}, {1, 2}], "a row with several classes"),
        ([np.array([0, 1]), np.array([1])], "a row with several classes"),
        (np.eye(3), r"not of shape \(3, 3\); give one class a row \(argmax"),
        (np.zeros((2, 2, 2)), "not of shape"),
        (5, "not of shape"),
        ("fraud", "not of shape"),
        ([object(), object()], "integers or strings"),
        ([1 + 2j, 1 + 2j], "integers or strings"),
        ([torch.tensor([0, 1]), torch.tensor([1])], "a row with several classes"),
    ],
)
def test_refuses_labels(labels: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LabelCodes(labels)


def test_refuses_a_mix_across_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 1)
    with pytest.raises(InputError, match="mix of numbers and text"):
        LabelCodes(["a", 1])


@pytest.mark.parametrize(
    ("labels", "message"),
    [(["theft"], "class 'theft' of y_true .*'fraud', 'ok'"), ([0, 1], "y_true holds numbers"), ([["ok", "ok"]], "not of shape")],
)
def test_refuses_what_training_has_not(labels: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LabelCodes(["ok", "ok", "fraud"]).encode(labels, "y_true")
