"""Damaged and foreign files give one error that names the file and what to do, and never a crash."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from balancer.errors import CorruptFileError
from balancer.trees import TreeEnsemble
from balancer.trees.model_text import parse_model, read_model
from tests.trees.models import HandTree, chain, random_values, resized, train, written

VALUES = random_values(np.random.default_rng(0), 200, 4, codes=[3])
FULL = train(VALUES, rounds=2, num_leaves=4, codes=[3], zero_as_missing=True).model_to_string()
BEGIN, _, _END = FULL.partition("[boosting")
TEXT = BEGIN + "[boosting: gbdt]\n\nend of parameters\n\npandas_categorical:null\n"
"""A model of two trees with categorical splits; of its long list of parameters one line is left."""


def scores(text: str | bytes) -> NDArray[np.float64]:
    ensemble = TreeEnsemble.from_text(text)
    assert ensemble.contributions(VALUES[:8, : ensemble.num_features]).shape == (8, ensemble.num_features + 1)
    return ensemble.raw(VALUES[:, : ensemble.num_features])


def test_what_is_read() -> None:
    model = parse_model(FULL)
    assert (model.objective, model.outputs, model.feature_names) == ("binary", 1, ("Column_0", "Column_1", "Column_2", "Column_3"))
    assert any(tree.categorical.any() for tree in model.trees)
    assert {int(kind) for tree in model.trees for kind in tree.missing[~tree.categorical]} == {1}
    assert np.array_equal(scores(FULL), scores(TEXT))


def test_every_truncated_text_is_refused() -> None:
    data = TEXT.encode()
    whole = scores(data)
    complete = data.index(b"end of parameters\n") + len(b"end of parameters\n")
    for length in range(len(data)):
        if length == complete:  # only the categories of pandas are missing
            assert np.array_equal(scores(data[:length]), whole)
            continue
        with pytest.raises(CorruptFileError, match="train the run again, or restore the file"):
            parse_model(data[:length])


def test_no_changed_byte_crashes() -> None:
    generator = np.random.default_rng(0)
    data = bytearray(TEXT.encode())
    alphabet = np.frombuffer(b"0123456789-+.e =\n\x00\xffinfa[]:", np.uint8)
    refused = 0
    for _ in range(4000):
        damaged = bytearray(data)
        for _ in range(int(generator.integers(1, 4))):
            place = int(generator.integers(0, len(damaged)))
            action = generator.integers(0, 4)
            if action == 0:
                del damaged[place : place + int(generator.integers(1, 30))]
            elif action == 1:
                damaged[place:place] = bytes(generator.choice(alphabet, int(generator.integers(1, 4))))
            else:
                damaged[place] = int(generator.choice(alphabet) if action == 2 else generator.integers(0, 256))
        try:
            assert len(scores(bytes(damaged))) == len(VALUES)
        except CorruptFileError:
            refused += 1
    assert refused > 2000


def test_no_changed_number_crashes() -> None:
    """The lengths of the trees are right here, so that the checks behind them are reached."""
    generator = np.random.default_rng(1)
    head, trees = TEXT[: TEXT.index("Tree=0")], TEXT[TEXT.index("Tree=0") : TEXT.index("end of trees")]
    places = [match.span() for match in re.finditer(r"-?\d+(\.\d+)?(e[+-]\d+)?", trees)]
    others = ["0", "1", "-1", "-2", "2", "3", "4", "7", "255", "1e+308", "-1e+308", "4294967295", "-2147483648", "nan", "inf", "1.5", ""]
    refused = 0
    for _ in range(3000):
        begin, end = places[int(generator.integers(len(places)))]
        changed = trees[:begin] + str(generator.choice(others)) + trees[end:]
        try:
            assert len(scores(resized(head + changed + TEXT[TEXT.index("end of trees") :]))) == len(VALUES)
        except CorruptFileError:
            refused += 1
    assert 1000 < refused < 3000


SMALL = written([HandTree([0, 1, 0], [0.5, 0.25, -1.0], [1, -1, -3], [2, -2, -4], [1.0, 2.0, 3.0, 4.0])], 2)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("left_child=1 -1 -3", "left_child=0 -1 -3", "its own ancestor"),
        ("left_child=1 -1 -3\nright_child=2 -2 -4", "left_child=2 -1 1\nright_child=-3 -2 -4", "its own ancestor"),
        ("left_child=1 -1 -3", "left_child=2 -1 -3", "no parent, or more than one"),
        ("left_child=1 -1 -3", "left_child=1 -2 -3", "no parent, or more than one"),
        ("left_child=1 -1 -3", "left_child=1 -1 -9", r"left_child of tree 0 has a number outside \[-4, 2\]"),
        ("left_child=1 -1 -3", "left_child=3 -1 -3", "outside"),
        ("left_child=1 -1 -3", "left_child=1 -1", "has 2 numbers instead of 3"),
        ("left_child=1 -1 -3", "left_child=1 -1 -3.5", "left_child of tree 0 is damaged"),
        ("left_child=1 -1 -3", "left_child=1  -1 -3", "left_child of tree 0 is damaged"),
        ("split_feature=0 1 0", "split_feature=0 2 0", r"outside \[0, 1\]"),
        ("split_feature=0 1 0", "split_feature=0 -1 0", "outside"),
        ("split_feature=0 1 0", "split_feature=0 99999999999999 0", "damaged"),
        ("leaf_value=1.0 2.0", "leaf_value=nan 2.0", "leaf_value of tree 0 is damaged"),
        ("leaf_value=1.0 2.0", "leaf_value=inf 2.0", "leaf_value of tree 0 is damaged"),
        ("leaf_value=1.0 2.0", "leaf_value=1e999 2.0", "a leaf of tree 0 is not finite"),
        ("leaf_value=1.0 2.0", "leaf_value=1_0 2.0", "damaged"),
        ("leaf_value=1.0 2.0", "leaf_value=٣ 2.0", "tree 0 is damaged"),
        ("threshold=0.5", "threshold=nan", "threshold of tree 0 is damaged"),
        ("decision_type=2 2 2", "decision_type=2 16 2", "outside"),
        ("decision_type=2 2 2", "decision_type=2 12 2", "outside"),
        ("decision_type=2 2 2", "decision_type=2 3 2", "a categorical split of tree 0 has no set"),
        ("num_cat=0", "num_cat=1", "num_leaves or num_cat of tree 0 is wrong"),
        ("num_cat=0", "num_cat=1\ncat_boundaries=0 1\ncat_threshold=5", "has no set"),
        ("num_cat=0\n", "", "tree 0 lacks num_cat"),
        ("num_leaves=4", "num_leaves=2000000000", "instead of 1999999999"),
        ("num_leaves=4", "num_leaves=0", "num_leaves or num_cat"),
        ("num_leaves=4", "num_leaves=4\nnum_leaves=4", "a double line"),
        ("num_leaves=4", "num_leaves=4\nextra=4", "an unknown or a double line 'extra=4'"),
        ("internal_count=4", "internal_count=5", "the counts of rows of tree 0 do not add up"),
        ("is_linear=0", "is_linear=1", "a linear tree"),
        ("version=v4", "version=v3", "only v4"),
        ("max_feature_idx=1", "max_feature_idx=2", "differ in their number of fields"),
        ("feature_names=f0 f1", "feature_names=f0 f0", "two fields have the same name"),
        ("feature_infos=[-9:9] [-9:9]", "feature_infos=[-9:9] 9:", "feature_infos is damaged"),
        ("objective=binary sigmoid:1", "objective=regression", "only 'binary sigmoid:1' and 'multiclass' are read"),
        ("objective=binary sigmoid:1", "objective=binary sigmoid:2", "only 'binary sigmoid:1'"),
        ("num_class=1", "num_class=3", "only 'binary"),
        ("label_index=0", "label_index=0\naverage_output", "averages its trees"),
        ("Tree=0", "Tree=1", "tree 0 is not where tree_sizes says"),
        ("end of trees\n", "end of trees\n\nTree=1\n", "it ends before its parameters"),
        ("pandas_categorical:null", "pandas_categorical:nul", "its end is damaged"),
        ("pandas_categorical:null", "pandas_categorical:null]", "its end is damaged"),
    ],
)
def test_wrong_numbers_are_refused_with_the_reason(old: str, new: str, reason: str) -> None:
    assert SMALL.count(old) == 1
    assert len(parse_model(SMALL).trees) == 1
    with pytest.raises(CorruptFileError, match=reason):
        parse_model(resized(SMALL.replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (r"cat_boundaries=0 \d+", "cat_boundaries=0 70000", "cat_boundaries of tree 0 is wrong"),
        (r"cat_boundaries=0 (\d+)", r"cat_boundaries=\1 0", "cat_boundaries of tree 0 is wrong"),
        (r"cat_boundaries=0 (\d+)", r"cat_boundaries=0 \1 \1", "cat_boundaries of tree 0 is wrong"),
        (r"cat_threshold=\d+", "cat_threshold=-1", "cat_threshold of tree 0 is damaged"),
        (r"cat_threshold=\d+", "cat_threshold=4294967296", "cat_threshold of tree 0 is damaged"),
        (r"cat_threshold=\d+", "cat_threshold=x", "cat_threshold of tree 0 is damaged"),
        (r"threshold=0\n", "threshold=1\n", "no set, or shares one"),
        (r"threshold=0\n", "threshold=0.5\n", "no set, or shares one"),
    ],
)
def test_wrong_categorical_sets_are_refused(old: str, new: str, reason: str) -> None:
    stump = train(VALUES[:, 3:], rounds=1, num_leaves=2, codes=[0]).model_to_string()
    assert re.search(old, stump)
    with pytest.raises(CorruptFileError, match=reason):
        parse_model(resized(re.sub(old, new, stump, count=1)))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"tree",
        b"tree\n\n",
        b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00",
        b"{}",
        b"PK\x03\x04" + bytes(200),
        b"tree\nversion=v4\n\xff\xfe\n\n",
        b"a,b\n1,2\n" * 50,
        bytes(10_000),
    ],
    ids=["empty", "damaged at once", "no header", "pickle", "JSON", "zip", "not UTF-8", "CSV", "zeros"],
)
def test_foreign_files_are_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "stage2.txt"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError) as caught:
        read_model(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith("train the run again, or restore the file")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", [{"linear_tree": True}, {"boosting": "rf", "bagging_fraction": 0.5, "bagging_freq": 1}])
def test_models_that_score_otherwise_are_refused(settings: dict[str, object]) -> None:
    values = np.nan_to_num(VALUES, posinf=1, neginf=-1).clip(-9, 9)
    text = train(values, rounds=2, **settings).model_to_string()
    with pytest.raises(CorruptFileError, match=r"linear tree|averages its trees"):
        parse_model(text)


def test_memory_is_bounded_by_the_file() -> None:
    text = resized(SMALL.replace("num_leaves=4", "num_leaves=2147483647").replace("num_cat=0", "num_cat=2147483647"))
    large = written([chain(20_000, 3)], 3)
    for data in (text, resized(text.replace("num_cat=2147483647", "num_cat=0")), large):
        tracemalloc.start()
        try:
            if data is large:
                assert len(parse_model(data).trees[0].feature) == 20_000
            else:
                with pytest.raises(CorruptFileError):
                    parse_model(data)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 100_000 + 40 * len(data)
