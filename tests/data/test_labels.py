"""Labels as people write them: words for "not known", several words for yes and no, an empty cell for no."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.data.checks import RowCheck
from balancer.data.labels import UNKNOWN_NAMES, check_label, find_classes, read_labels
from balancer.errors import InputError, MissingClassError


def read(values: list[str | None], negative: str | None = None) -> tuple[tuple[str, ...], list[str | None], tuple[str, ...]]:
    labels = read_labels(pl.Series("fraud", values), unlabelled=None, negative=negative)
    return find_classes(labels.text, negative), labels.text.to_list(), labels.notes


@given(st.sampled_from(sorted(UNKNOWN_NAMES)), st.sampled_from([("0", "1"), ("no", "yes"), ("GENUINE", "FRAUD"), ("ok", "fraud")]))
def test_words_for_not_known_beside_two_classes_are_no_class(word: str, pair: tuple[str, str]) -> None:
    classes, text, notes = read([*pair, word.upper()])
    assert classes == pair and text == [*pair, None]
    assert len(notes) == 1 and "1 row with" in notes[0] and "--unlabelled" in notes[0]


def test_a_word_for_not_known_that_may_be_a_class_is_asked_for() -> None:
    for values in (["none", "dos", "probe"], ["fraud", "unknown"], ["a", "b", "tbd"]):
        with pytest.raises(InputError, match=r"--negative, and with --unlabelled what is no label"):
            read(values)
    assert read(["none", "dos", "probe"], "none")[0] == ("none", "dos", "probe")
    assert read(["a", "b", "tbd"], "a")[0] == ("a", "b")
    with pytest.raises(MissingClassError, match="only the class '0'"):
        read(["0", "0", "unknown"])
    assert read(["-", "+"])[0] == ("-", "+")
    assert read(["0", "1", "-9", "-1"])[0] == ("0", "1") and read(["0", "1", "2"])[0] == ("0", "1", "2")
    assert read(["-1", "1"])[0] == ("-1", "1")
    assert read(["normal.", "smurf.", "neptune."])[0] == ("normal.", "neptune.", "smurf.")


def test_words_for_yes_and_no_have_one_meaning() -> None:
    classes, text, notes = read(["Y", "yes", "1", "TRUE", "N", "no", "0", "false", "N", "Y", None])
    assert classes == ("0", "1")
    assert text == ["1"] * 4 + ["0"] * 5 + ["1", None]
    assert len(notes) == 1 and "are one class" in notes[0]
    assert read(["no", "yes", "maybe so"])[1] == ["no", "yes", "maybe so"]
    assert read(["0", "1", "2"])[0] == ("0", "1", "2")
    assert read(["0", "no", "yes"], "no")[0] == ("no", "yes")
    assert read(["0", "no", "yes"], "0")[0] == ("no", "yes"), "0 means the same"
    later = check_label(pl.Series("y", ["oui", "0", "true"]), ("N", "Y"), RowCheck(3, "error"))
    assert np.array_equal(later, [1, 0, 1])


def test_an_empty_cell_may_mean_legitimate() -> None:
    with pytest.raises(MissingClassError, match=r"2 rows without a label are legitimate, give --negative empty"):
        read(["X", None, " "])
    for negative in ("", "empty", "Empty"):
        assert read(["X", None, " "], negative)[:2] == (("empty", "X"), ["X", "empty", "empty"])
    labels = read_labels(pl.Series("y", [None, "X"]), unlabelled=None, negative="", classes=("empty", "X"))
    assert np.array_equal(check_label(labels.text, ("empty", "X"), RowCheck(2, "error")), [0, 1])


def test_words_for_not_known_in_another_table_are_unlabelled() -> None:
    labels = read_labels(pl.Series("y", ["0", "pending", "1"]), unlabelled=None, negative=None, classes=("0", "1"))
    assert labels.text.to_list() == ["0", None, "1"]
    labels = read_labels(pl.Series("y", ["ok", "unknown"]), unlabelled=None, negative=None, classes=("ok", "unknown"))
    assert labels.text.to_list() == ["ok", "unknown"], "a run of an earlier version took it for a class"


@given(st.permutations(["c", "a", "b", "d"]))
def test_classes_are_listed_in_one_order(names: list[str]) -> None:
    with pytest.raises(InputError, match=r"\['a', 'b', 'c', 'd'\]"):
        read(list(names))
