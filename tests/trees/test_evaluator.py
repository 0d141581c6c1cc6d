"""Raw scores and contributions are those of LightGBM, for every treatment of missing values, in C++ and
NumPy."""

from __future__ import annotations

import copy
import itertools
import pickle
import subprocess
import sys
from pathlib import Path

import lightgbm
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from balancer.errors import CorruptFileError, InputError, MissingFileError, UnsupportedError
from balancer.trees import Tree, TreeEnsemble, native
from balancer.trees.layout import MOST_ON_PATH
from tests.trees.models import HandTree, chain, random_values, resized, train, written

KERNELS = ["compiled", "numpy"]


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test that takes it runs with the kernel in C++ and without it."""
    if request.param == "compiled":
        if native.absence():
            pytest.skip(f"the kernel is not here: {native.absence()}")
    else:
        monkeypatch.setattr(native, "absence", lambda: "it was not built")
    return str(request.param)


def both(text: str) -> list[TreeEnsemble]:
    """The ensemble with the kernel, if it is here, and without it."""
    ensembles = [TreeEnsemble.from_text(text)]
    if not native.absence():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "absence", lambda: "it was not built")
            ensembles.append(TreeEnsemble.from_text(text))
            assert ensembles[1].note is not None
    return ensembles


def same_bits(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    return a.shape == b.shape and np.array_equal(a.view(np.int64), b.view(np.int64))


@settings(max_examples=150)
@given(
    seed=st.integers(0, 10**6),
    columns=st.sampled_from([2, 3, 7, 30]),
    categorical=st.integers(0, 2),
    classes=st.sampled_from([2, 2, 3]),
    leaves=st.sampled_from([2, 5, 31]),
    missing=st.sampled_from([{}, {"use_missing": False}, {"zero_as_missing": True}]),
    rounds=st.sampled_from([1, 3, 9, 17]),
    regularized=st.booleans(),
)
def test_scores_have_the_bits_of_lightgbm_and_contributions_are_its_own(
    seed: int, columns: int, categorical: int, classes: int, leaves: int, missing: dict[str, bool], rounds: int, regularized: bool
) -> None:
    generator = np.random.default_rng(seed)
    codes = list(range(columns - min(categorical, columns - 1), columns))
    values = random_values(generator, 400, columns, codes)
    more = {"bagging_fraction": 0.6, "bagging_freq": 1, "max_bin": 4, "boosting": "dart"} if regularized else {}
    booster = train(values, classes=classes, rounds=rounds, codes=codes, seed=seed, num_leaves=leaves, **missing, **more)
    # Codes that were never seen, fractions, negative and large numbers, too.
    given_values = np.concatenate([values[:99], random_values(generator, 38, columns)])
    given_values[99:118, codes] = generator.choice(np.array([-1, -0.5, 0.5, 95, 1e6, 2e9, 3e9, 31, 32], np.float32), (19, len(codes)))
    expected = np.asarray(booster.predict(given_values, raw_score=True, num_threads=1))
    shape = (len(given_values), columns + 1) if classes == 2 else (len(given_values), classes, columns + 1)
    parts = np.asarray(booster.predict(given_values, pred_contrib=True, num_threads=1)).reshape(shape)
    for ensemble in both(booster.model_to_string()):
        assert ensemble.num_features == columns
        assert ensemble.num_trees == booster.num_trees()
        assert ensemble.feature_names == tuple(booster.feature_name())
        for threads in (1, 3):
            assert same_bits(ensemble.raw(given_values, threads=threads), expected)
        for row in (0, 50, 110):
            assert same_bits(ensemble.raw(given_values[row : row + 1]), expected[row : row + 1])
        own = ensemble.contributions(given_values)
        np.testing.assert_allclose(own, parts, rtol=0, atol=1e-9)
        np.testing.assert_allclose(own.sum(-1), expected, rtol=0, atol=1e-9)
        assert same_bits(own, ensemble.contributions(given_values, threads=3))


def test_many_bins_and_many_rows_on_several_threads() -> None:
    generator = np.random.default_rng(5)
    values = random_values(generator, 9_000, 12)
    booster = train(values, rounds=12, max_bin=4095, num_leaves=255, min_data_in_bin=1)
    expected = booster.predict(values, raw_score=True, num_threads=1)
    for ensemble in both(booster.model_to_string()):
        for threads in (1, 2, 7, 1000):
            assert same_bits(ensemble.raw(values, threads=threads), expected)


@pytest.mark.usefixtures("kernel")
def test_trees_until_the_best_round() -> None:
    values = random_values(np.random.default_rng(1), 600, 4)
    labels = np.nan_to_num(values[:, 0]) + np.random.default_rng(2).normal(size=600) > 0.5
    data = lightgbm.Dataset(values[:400], labels[:400])
    booster = lightgbm.train(
        {"objective": "binary", "verbose": -1, "num_threads": 1, "metric": "average_precision"},
        data,
        60,
        valid_sets=[lightgbm.Dataset(values[400:], labels[400:], reference=data)],
        callbacks=[lightgbm.early_stopping(5, verbose=False)],
        keep_training_booster=True,  # else the later trees are dropped
    )
    assert 0 < booster.best_iteration < booster.num_trees()
    ensemble = TreeEnsemble.from_text(booster.model_to_string(num_iteration=booster.best_iteration))
    assert ensemble.num_trees == booster.best_iteration
    assert same_bits(ensemble.raw(values), booster.predict(values, raw_score=True, num_threads=1))
    whole = TreeEnsemble.from_text(booster.model_to_string(num_iteration=-1))
    assert whole.num_trees == booster.num_trees()
    assert whole.digest != ensemble.digest


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("classes", [2, 3])
def test_categorical_splits(classes: int) -> None:
    generator = np.random.default_rng(4)
    values = random_values(generator, 2000, 3, codes=[1, 2])
    booster = train(values, classes=classes, rounds=20, codes=[1, 2])
    ensemble = TreeEnsemble.from_text(booster.model_to_string())
    categorical = np.concatenate([tree.categorical for tree in ensemble.model.trees])
    assert 0.2 < categorical.mean() < 1
    codes = np.array(
        [*range(-3, 140), -0.5, -0.999, 0.999, 31.7, 63.5, 2**31 - 200, 2**31, 3e9, -3e9, np.inf, -np.inf, np.nan, 1e-40], np.float32
    )
    given_values = values[generator.integers(0, 2000, len(codes))]
    given_values[:, 1], given_values[:, 2] = codes, codes[::-1]
    expected = np.asarray(booster.predict(given_values, raw_score=True, num_threads=1))
    assert same_bits(ensemble.raw(given_values), expected)
    parts = np.asarray(booster.predict(given_values, pred_contrib=True, num_threads=1))
    np.testing.assert_allclose(ensemble.contributions(given_values).reshape(parts.shape), parts, rtol=0, atol=1e-9)


@pytest.mark.usefixtures("kernel")
def test_trees_of_one_leaf() -> None:
    values = random_values(np.random.default_rng(1), 50, 3)
    booster = train(values, min_data_in_leaf=40)
    ensemble = TreeEnsemble.from_text(booster.model_to_string())
    assert [len(tree.leaf_value) for tree in ensemble.model.trees] == [1]
    expected = booster.predict(values, raw_score=True)
    assert same_bits(ensemble.raw(values), expected)
    np.testing.assert_array_equal(ensemble.contributions(values), np.column_stack([np.zeros((50, 3)), expected]))


@pytest.mark.usefixtures("kernel")
def test_every_layout_of_the_values_gives_the_same_bits() -> None:
    generator = np.random.default_rng(3)
    wide = random_values(generator, 300, 12)
    view = wide[:, 4:10]
    booster = train(np.ascontiguousarray(view))
    ensemble = TreeEnsemble.from_text(booster.model_to_string())
    expected = booster.predict(np.ascontiguousarray(view), raw_score=True)
    assert ensemble._checked(view, 1) is view, "a slice of the columns is read where it is"
    assert ensemble._checked(view[::3], 1).base is wide
    assert same_bits(ensemble.raw(view), expected)
    assert same_bits(ensemble.raw(view[::3]), expected[::3])
    assert same_bits(ensemble.raw(view[::-1]), expected[::-1].copy())
    assert same_bits(ensemble.raw(np.asfortranarray(view)), expected)
    assert same_bits(ensemble.raw(np.broadcast_to(view[7], (9, 6))), np.repeat(expected[7], 9))
    unaligned = np.frombuffer(b"x" + np.ascontiguousarray(view).tobytes(), np.uint8)[1:].view(np.float32).reshape(view.shape)
    assert same_bits(ensemble.raw(unaligned), expected)
    read_only = view.copy()
    read_only.flags.writeable = False
    assert same_bits(ensemble.raw(read_only), expected)
    assert ensemble.raw(view[:0]).shape == (0,)
    assert ensemble.contributions(view[:0]).shape == (0, 7)
    np.testing.assert_array_equal(ensemble.contributions(view), ensemble.contributions(np.asfortranarray(view)))


@pytest.mark.usefixtures("kernel")
def test_the_values_are_not_changed() -> None:
    values = random_values(np.random.default_rng(3), 40, 4)
    ensemble = TreeEnsemble.from_text(train(values, zero_as_missing=True).model_to_string())
    before = values.copy()
    ensemble.raw(values)
    ensemble.contributions(values)
    assert np.array_equal(before.view(np.int32), values.view(np.int32))


@pytest.mark.usefixtures("kernel")
def test_denormal_numbers_where_they_are_flushed_to_zero() -> None:
    """A setting of torch can do so in the thread that scores."""
    tiny = np.array([[-1e-35], [-2e-35], [1e-35], [2e-35], [-1e-40], [1e-40], [0], [np.nan]], np.float32)
    for threshold in (-1.0000000180025095e-35, 1.0000000180025095e-35, -1e-40, 1e-40, -1e-300, 0.0):
        text = written([HandTree([0], [threshold], [-1], [-2], [1.0, 2.0], decision=[0])], 1)
        expected = lightgbm.Booster(model_str=text).predict(tiny, raw_score=True)
        flushing = torch.set_flush_denormal(True)
        try:
            found = TreeEnsemble.from_text(text).raw(tiny)
        finally:
            torch.set_flush_denormal(False)
        assert flushing
        assert same_bits(found, expected), threshold


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("decision", range(0, 12, 2))
@pytest.mark.parametrize("threshold", ["inf", "-inf", "1e+300", "-1e+300", "3.4028234663852886e+38", "0.10000000149011612", "0.1", "-0.1"])
def test_every_kind_of_split_at_its_limits(decision: int, threshold: str) -> None:
    largest = np.finfo(np.float32).max
    tenth = np.float32(0.1)
    around = [np.nextafter(tenth, np.float32(side)) for side in (-1, 1)]
    numbers = [np.nan, np.inf, -np.inf, 0, -0.0, largest, -largest, tenth, -tenth, *around, *(-x for x in around), 1e-36, -1e-36]
    values = np.array(numbers, np.float32)[:, None]
    text = written([HandTree([0], [float(threshold)], [-1], [-2], [1.0, 2.0], decision=[decision])], 1).replace(
        f"threshold={float(threshold)}", f"threshold={threshold}"
    )
    text = resized(text)
    expected = lightgbm.Booster(model_str=text).predict(values, raw_score=True)
    assert same_bits(TreeEnsemble.from_text(text).raw(values), expected)


@pytest.mark.usefixtures("kernel")
def test_contributions_on_a_path_through_many_fields() -> None:
    values = np.random.default_rng(0).normal(size=(5, 250)).astype(np.float32)
    values = np.concatenate([values, np.full((1, 250), -1, np.float32)])  # to the end of the path
    for splits in (30, 250, 700):
        ensemble = TreeEnsemble.from_text(written([chain(splits, 250)], 250))
        np.testing.assert_allclose(ensemble.contributions(values).sum(1), ensemble.raw(values), rtol=0, atol=1e-9)
    short = written([chain(12, 7)], 250)
    found, expected = (
        TreeEnsemble.from_text(short).contributions(values),
        lightgbm.Booster(model_str=short).predict(values, pred_contrib=True),
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("kernel")
def test_too_many_fields_on_a_path_are_refused_for_contributions_only() -> None:
    fields = MOST_ON_PATH + 1
    ensemble = TreeEnsemble.from_text(written([chain(fields, fields)], fields))
    values = np.full((2, fields), -1, np.float32)
    assert ensemble.raw(values).shape == (2,)
    with pytest.raises(UnsupportedError, match=rf"{fields} different fields.*max_depth"):
        ensemble.contributions(values)


@pytest.mark.usefixtures("kernel")
def test_contributions_where_no_training_row_went() -> None:
    """A refitted model may have leaves and splits without rows."""
    tree = HandTree(
        [0, 1, 0, 1], [0.0, 0.0, -1.0, 1.0], [1, 3, -3, -1], [2, -2, -4, -5], [1.0, 2.0, 3.0, 4.0, 5.0], leaf_count=[0, 3, 0, 4, 0]
    )
    ensemble = TreeEnsemble.from_text(written([tree], 2))
    values = np.array([[a, b] for a in (-2, -0.5, 0.5) for b in (-2, 0.5, 2)], np.float32)
    found = ensemble.contributions(values)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(1), ensemble.raw(values), rtol=0, atol=1e-12)
    assert np.all(found[:, 2] == pytest.approx((3 * 2.0 + 4 * 4.0) / 7))


@pytest.mark.usefixtures("kernel")
def test_contributions_are_shapley_values() -> None:
    """Against the definition: the mean gain of a field over all orders; unknown fields follow the shares."""
    values = random_values(np.random.default_rng(8), 300, 4)
    ensemble = TreeEnsemble.from_text(train(values, rounds=2, num_leaves=9).model_to_string())

    def expectation(row: NDArray[np.float32], known: set[int]) -> float:
        total = 0.0
        for tree in ensemble.model.trees:
            reached = {0: 1.0}
            for split in range(len(tree.feature)):
                share = reached.pop(split)
                left = goes_left(tree, split, row[tree.feature[split]])
                counts = [tree.split_count[c] if c >= 0 else tree.leaf_count[-1 - c] for c in (tree.left[split], tree.right[split])]
                own = [float(left), float(not left)] if int(tree.feature[split]) in known else [c / sum(counts) for c in counts]
                for child, part in zip((tree.left[split], tree.right[split]), own, strict=True):
                    reached[int(child)] = share * part
            total += sum(part * tree.leaf_value[-1 - leaf] for leaf, part in reached.items())
        return total

    for row in values[:6]:
        expected = np.zeros(5)
        orders = list(itertools.permutations(range(4)))
        for order in orders:
            known: set[int] = set()
            for column in order:
                before = expectation(row, known)
                known = known | {column}
                expected[column] += (expectation(row, known) - before) / len(orders)
        expected[4] = expectation(row, set())
        np.testing.assert_allclose(ensemble.contributions(row[None])[0], expected, rtol=0, atol=1e-12)


def goes_left(tree: Tree, split: int, value: np.float32) -> bool:
    """The decision of a numeric split, in the words of LightGBM's documentation."""
    threshold, missing = tree.threshold[split], tree.missing[split]
    if np.isnan(value) and missing != 2:
        value = np.float32(0)
    if abs(value) <= np.float32(1e-35):
        value = np.float32(0)
    if (missing == 1 and value == 0) or (missing == 2 and np.isnan(value)):
        return bool(tree.default_left[split])
    return bool(float(value) <= threshold)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(
    "values",
    [
        np.zeros((2, 3), np.float64),
        np.zeros((2, 4), np.float32),
        np.zeros(3, np.float32),
        np.zeros((2, 3), ">f4"),
        [[0.0, 0.0, 0.0]],
        None,
    ],
    ids=["float64", "four columns", "one axis", "other byte order", "a list", "nothing"],
)
def test_other_values_are_refused(values: object) -> None:
    ensemble = TreeEnsemble.from_text(written([chain(3, 3)], 3))
    for method in (ensemble.raw, ensemble.contributions):
        with pytest.raises(InputError, match=r"values must be a float32 array \(rows, 3\).*convert it"):
            method(values)  # type: ignore[arg-type]


@pytest.mark.usefixtures("kernel")
def test_no_threads_are_refused() -> None:
    with pytest.raises(InputError, match="threads must be at least 1, given 0"):
        TreeEnsemble.from_text(written([chain(3, 3)], 3)).raw(np.zeros((2, 3), np.float32), threads=0)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "stage1.txt"
    values = random_values(np.random.default_rng(0), 100, 3)
    booster = train(values)
    booster.save_model(path)
    ensemble = TreeEnsemble.read(path)
    assert same_bits(ensemble.raw(values), booster.predict(values, raw_score=True))
    names = ["Column 0", "Column_1", "Column_2"]
    assert TreeEnsemble.read(path, digest=ensemble.digest, feature_names=names).digest == ensemble.digest
    assert TreeEnsemble.from_text(path.read_text()).digest == ensemble.digest
    with pytest.raises(CorruptFileError, match=r"stage1.txt was changed.*train the run again, or restore the file"):
        TreeEnsemble.read(path, digest="0" * 64)
    with pytest.raises(CorruptFileError, match=r"stage1.txt holds trees for other fields \(field 1 is 'Column_1' instead of 'amount'\)"):
        TreeEnsemble.read(path, feature_names=["Column_0", "amount", "Column_2"])
    with pytest.raises(CorruptFileError, match=r"3 fields instead of 2\); train the run again, or restore the file"):
        TreeEnsemble.read(path, feature_names=["Column_0", "Column_1"])
    with pytest.raises(MissingFileError, match=r"other.txt is missing"):
        TreeEnsemble.read(tmp_path / "other.txt")
    with pytest.raises(CorruptFileError, match=r"can't be read.*restore the file"):
        TreeEnsemble.read(tmp_path)


@pytest.mark.usefixtures("kernel")
def test_copies_and_other_processes() -> None:
    values = random_values(np.random.default_rng(0), 100, 3)
    ensemble = TreeEnsemble.from_text(train(values).model_to_string())
    expected = ensemble.raw(values)
    for other in (copy.deepcopy(ensemble), pickle.loads(pickle.dumps(ensemble))):
        assert same_bits(other.raw(values), expected)
        assert other.digest == ensemble.digest


def test_it_can_not_be_changed() -> None:
    ensemble = TreeEnsemble.from_text(written([chain(3, 3)], 3))
    ensemble.contributions(np.zeros((1, 3), np.float32))
    for holder in (ensemble.model.trees[0], ensemble._nodes, ensemble._paths):
        for name, array in vars(holder).items():
            assert not isinstance(array, np.ndarray) or not array.flags.writeable, name
    with pytest.raises(AttributeError):
        ensemble.digest = "x"  # type: ignore[misc]


def test_without_a_compiler_a_note_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    text = written([chain(3, 3)], 3)
    if not native.absence():
        assert TreeEnsemble.from_text(text).note is None
    monkeypatch.setattr(native, "absence", lambda: "it was not built: install a C++ compiler")
    assert "slowly" in str(TreeEnsemble.from_text(text).note)
    assert "install a C++ compiler" in str(TreeEnsemble.from_text(text).note)


def test_a_library_of_another_version_is_told() -> None:
    class Other:
        def __getattr__(self, name: str) -> object:
            function = type("Function", (), {"__call__": lambda self, *_: 7})()
            setattr(self, name, function)
            return function

    assert "another version" in str(native._declare(Other(), "_native_trees.so"))  # type: ignore[arg-type]


def test_it_needs_neither_lightgbm_nor_torch() -> None:
    code = (
        "import sys, numpy; from balancer.trees import TreeEnsemble\n"
        "ensemble = TreeEnsemble.from_text(sys.stdin.read())\n"
        "ensemble.contributions(numpy.zeros((2, 3), numpy.float32))\n"
        "print(sorted({'lightgbm', 'torch', 'sklearn', 'polars', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=written([chain(3, 3)], 3), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
