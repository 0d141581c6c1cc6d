"""Read LightGBM's text format of a model and check it completely, so that evaluating it can't fail.

The format is that of LightGBM 4 (``version=v4``): a header of ``key=value`` lines, one block per tree, whose
lengths in bytes the header lists, and a list of parameters. It holds no code, and nothing of it is executed.
Every index is checked before it is used, and memory is a small multiple of the file's size, because no array
is longer than the numbers in the text.

What is read: the objectives ``binary`` and ``multiclass``, numeric splits with every treatment of missing
values, and categorical splits. Linear trees and averaged forests are refused: their scores are other sums.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from balancer.errors import CorruptFileError, MissingFileError

CATEGORICAL, DEFAULT_LEFT = 1, 2
"""Bits of `Tree.decision`; the two bits above them are the treatment of missing values."""
MISSING_NONE, MISSING_ZERO, MISSING_NAN = 0, 1, 2
"""Treatments of missing values: NaN counts as zero; zero and NaN take the default side; NaN takes it."""
MOST_WORDS = 1 << 26
"""Maximum number of 32-bit words of a categorical split: its codes are below 2**31."""

_WHOLE = rb"-?\d{1,10}"
_REAL = rb"-?\d+(?:\.\d*)?(?:e[+-]?\d+)?"
_LIMIT = rb"(?:" + _REAL + rb"|-?inf)"  # a split between NaN and all numbers has the threshold inf
_ANY = rb"(?:" + _REAL + rb"|-?inf|-?nan)"
_KINDS = {"whole": _WHOLE, "real": _REAL, "limit": _LIMIT, "any": _ANY}
_LINES = {kind: re.compile(rb"(?:%b(?: %b)*)?" % (one, one)) for kind, one in _KINDS.items()}
_INFO = re.compile(r"none|\[[^\[\]: ]+:[^\[\]: ]+\]|-?\d+(?::-?\d+)*")

_HEADER = (
    "version",
    "num_class",
    "num_tree_per_iteration",
    "label_index",
    "max_feature_idx",
    "objective",
    "feature_names",
    "feature_infos",
    "tree_sizes",
)
_HEADER_IGNORED = frozenset({"monotone_constraints"})
"""Keys of the header that had their effect in training."""
_TREE = (
    "num_leaves",
    "num_cat",
    "split_feature",
    "split_gain",
    "threshold",
    "decision_type",
    "left_child",
    "right_child",
    "leaf_value",
    "leaf_weight",
    "leaf_count",
    "internal_value",
    "internal_weight",
    "internal_count",
    "is_linear",
    "shrinkage",
)
_TREE_CATEGORICAL = ("cat_boundaries", "cat_threshold")


@dataclass(frozen=True, eq=False)
class Tree:
    """One tree of n splits and n + 1 leaves. A child below zero is the leaf ``-1 - child``.

    Attributes:
        feature: (n,) int64, column of the split.
        threshold: (n,) float64, not NaN. Values up to it go left; of a categorical split it is the index of
            its set.
        decision: (n,) uint8, see `CATEGORICAL`, `DEFAULT_LEFT` and `missing`.
        left: (n,) int64, child on the left; a split comes after its parent.
        right: (n,) int64.
        leaf_value: (n + 1,) float64, finite; the learning rate is included.
        leaf_count: (n + 1,) int64, training rows per leaf.
        split_count: (n,) int64, training rows per split: the sum over its leaves.
        set_bounds: (sets + 1,) int64, where the words of every categorical set begin and end.
        set_words: (words,) uint32; code c is in a set, hence goes left, if bit ``c % 32`` of its word
            ``c // 32`` is 1.
    """

    feature: NDArray[np.int64]
    threshold: NDArray[np.float64]
    decision: NDArray[np.uint8]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    leaf_value: NDArray[np.float64]
    leaf_count: NDArray[np.int64]
    split_count: NDArray[np.int64]
    set_bounds: NDArray[np.int64]
    set_words: NDArray[np.uint32]

    @property
    def categorical(self) -> NDArray[np.bool_]:
        """(n,) bool: the split is categorical."""
        found: NDArray[np.bool_] = (self.decision & CATEGORICAL) != 0
        return found

    @property
    def default_left(self) -> NDArray[np.bool_]:
        """(n,) bool: missing values go left."""
        found: NDArray[np.bool_] = (self.decision & DEFAULT_LEFT) != 0
        return found

    @property
    def missing(self) -> NDArray[np.uint8]:
        """(n,) uint8: `MISSING_NONE`, `MISSING_ZERO` or `MISSING_NAN`."""
        return self.decision >> np.uint8(2)


@dataclass(frozen=True, eq=False)
class TreeModel:
    """A checked model. Tree t adds to output ``t % outputs``.

    Attributes:
        objective: ``binary`` (raw scores are log-odds) or ``multiclass`` (they are logits of a softmax).
        outputs: raw scores per row: 1, or the number of classes.
        feature_names: names of the columns, in their order.
        trees: all trees, in the order in which they are added.
        digest: SHA-256 of the text, hexadecimal.
        source: name of the file, for error messages.
    """

    objective: str
    outputs: int
    feature_names: tuple[str, ...]
    trees: tuple[Tree, ...]
    digest: str
    source: str


class _WrongError(Exception):
    """What is wrong with the text; `parse_model` makes an error of it that names the file."""


def read_model(path: Path | str) -> TreeModel:
    """Read and check a model in LightGBM's text format.

    Raises:
        MissingFileError: The file does not exist.
        CorruptFileError: It is truncated, damaged, another kind of file, or a model that is not read here.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise MissingFileError(f"{path} is missing: the trees of a run; give a complete run folder") from None
    except OSError as error:
        raise CorruptFileError(f"{path} can't be read ({error.strerror or error}); train the run again, or restore the file") from error
    return parse_model(data, source=str(path))


def parse_model(data: bytes | str, *, source: str = "the text of the trees") -> TreeModel:
    """Check a model in LightGBM's text format, as ``Booster.model_to_string`` returns it.

    Args:
        data: the text, or its UTF-8 bytes.
        source: name of the file, for error messages.

    Raises:
        CorruptFileError: It is truncated, damaged, not such a text, or a model that is not read here.
    """
    try:
        return _parse(data.encode() if isinstance(data, str) else data, source)
    except (_WrongError, UnicodeError) as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeError) else error
        raise CorruptFileError(
            f"{source} does not hold trees that can be used ({reason}); train the run again, or restore the file"
        ) from None


def _parse(data: bytes, source: str) -> TreeModel:
    head, separator, _ = data.partition(b"\n\n")
    lines = head.decode().split("\n")
    if not separator or lines[0] != "tree":
        _refuse("it is not a complete model in LightGBM's text format")
    header = _pairs(lines[1:], "the header", required=_HEADER, others=_HEADER_IGNORED)
    if header["version"] != "v4":
        _refuse(f"its version is {header['version'][:20]!r}, and only v4 is read")
    outputs, objective = _objective(header)
    names = tuple(header["feature_names"].split(" "))
    infos = header["feature_infos"].split(" ")
    if not all(names) or len(set(names)) != len(names):
        _refuse("two fields have the same name, or one has none")
    if len(names) != _whole(header["max_feature_idx"], "max_feature_idx") + 1 or len(infos) != len(names):
        _refuse("max_feature_idx, feature_names and feature_infos differ in their number of fields")
    if not all(map(_INFO.fullmatch, infos)):
        _refuse("feature_infos is damaged")
    _whole(header["label_index"], "label_index")

    trees, at = [], len(head) + len(separator)
    sizes = _wholes(header["tree_sizes"].encode(), "tree_sizes")
    if not sizes.size or sizes.size % outputs:
        _refuse(f"it has {sizes.size} trees, and needs a multiple of {outputs}, at least one round")
    for index, size in enumerate(sizes.tolist()):
        block = data[at : at + max(size, 0)]
        if len(block) != size or not block.startswith(b"Tree=%d\n" % index) or not block.endswith(b"\n\n\n"):
            _refuse(f"tree {index} is not where tree_sizes says")
        trees.append(_tree(block[block.index(b"\n") + 1 : -3], index, len(names)))
        at += size
    _check_end(data[at:])
    return TreeModel(objective, outputs, names, tuple(trees), hashlib.sha256(data).hexdigest(), source)


def _objective(header: dict[str, str]) -> tuple[int, str]:
    """Number of raw scores per row, and name of the objective."""
    outputs = _whole(header["num_class"], "num_class")
    expected = "binary sigmoid:1" if outputs == 1 else f"multiclass num_class:{outputs}"
    if outputs < 1 or _whole(header["num_tree_per_iteration"], "num_tree_per_iteration") != outputs or header["objective"] != expected:
        _refuse(
            f"its objective is {header['objective'][:60]!r} with {outputs} classes, and only 'binary sigmoid:1' and 'multiclass' are read"
        )
    return outputs, expected.partition(" ")[0]


def _tree(block: bytes, index: int, features: int) -> Tree:
    """Check the lines of one tree."""
    where = f"tree {index}"
    try:
        lines = block.decode("ascii").split("\n")
    except UnicodeError:
        _refuse(f"{where} is damaged")
    if "is_linear=1" in lines:
        _refuse(f"{where} is a linear tree, which is not read")
    values = {key: value.encode() for key, value in _pairs(lines, where, required=_TREE, others=frozenset(_TREE_CATEGORICAL)).items()}
    leaves, sets = (_whole(values[key].decode(), f"{key} of {where}") for key in ("num_leaves", "num_cat"))
    if values["is_linear"] != b"0":
        _refuse(f"is_linear of {where} is damaged")
    if leaves < 1 or sets < 0 or (sets > 0) != (_TREE_CATEGORICAL[0] in values) or (sets > 0) != (_TREE_CATEGORICAL[1] in values):
        _refuse(f"num_leaves or num_cat of {where} is wrong")
    splits = leaves - 1

    def numbers(key: str, count: int, kind: str) -> NDArray[np.float64]:
        text = values[key]
        if not _LINES[kind].fullmatch(text):
            _refuse(f"{key} of {where} is damaged")
        tokens = text.split(b" ") if text else []
        if len(tokens) != count:
            _refuse(f"{key} of {where} has {len(tokens)} numbers instead of {count}")
        return np.array(list(map(float, tokens)), dtype=np.float64)

    def indices(key: str, count: int, low: int, high: int) -> NDArray[np.int64]:
        found = numbers(key, count, "whole").astype(np.int64)  # at most ten digits, which float64 holds exactly
        if count and not (low <= found.min() and found.max() <= high):
            _refuse(f"{key} of {where} has a number outside [{low}, {high}]")
        return found

    # These numbers are not used, but a wrong number of them shows damage. A tree of one leaf has no weight.
    for key, count in (("split_gain", splits), ("internal_value", splits), ("internal_weight", splits)):
        numbers(key, count, "any")
    if splits or values["leaf_weight"]:
        numbers("leaf_weight", leaves, "any")
    numbers("shrinkage", 1, "real")

    most = 2**31 - 1
    tree = Tree(
        feature=indices("split_feature", splits, 0, features - 1),
        threshold=numbers("threshold", splits, "limit"),
        decision=indices("decision_type", splits, 0, (MISSING_NAN << 2) + 3).astype(np.uint8),
        left=indices("left_child", splits, -leaves, splits - 1),
        right=indices("right_child", splits, -leaves, splits - 1),
        leaf_value=numbers("leaf_value", leaves, "real"),
        leaf_count=indices("leaf_count", leaves, 0, most),
        split_count=indices("internal_count", splits, 0, most),
        set_bounds=_wholes(values["cat_boundaries"], where) if sets else np.zeros(1, np.int64),
        set_words=_words(values["cat_threshold"], where) if sets else np.zeros(0, np.uint32),
    )
    _check_tree(tree, sets, where)
    for array in vars(tree).values():
        array.flags.writeable = False
    return tree


def _check_tree(tree: Tree, sets: int, where: str) -> None:
    """Refuse infinite leaves, splits that are not one tree, wrong categorical sets and wrong counts."""
    if not np.isfinite(tree.leaf_value).all():
        _refuse(f"a leaf of {where} is not finite")
    splits, leaves = len(tree.feature), len(tree.leaf_value)
    # A split is made after its parent. With one parent for every split but the first, all hang under split 0.
    children = np.concatenate([tree.left, tree.right])
    if (np.where(children >= 0, children, splits) <= np.tile(np.arange(splits), 2)).any():
        _refuse(f"a split of {where} is its own ancestor")
    if not np.array_equal(np.sort(children), np.concatenate([np.arange(-leaves, 0), np.arange(1, splits)]) if splits else children):
        _refuse(f"a split or leaf of {where} has no parent, or more than one")

    bounds = tree.set_bounds
    if len(bounds) != sets + 1 or bounds[0] != 0 or bounds[-1] != len(tree.set_words) or (np.diff(bounds) < 0).any():
        _refuse(f"cat_boundaries of {where} is wrong")
    if (np.diff(bounds) > MOST_WORDS).any():
        _refuse(f"a categorical split of {where} has codes above 2**31")
    if not np.array_equal(np.sort(tree.threshold[tree.categorical]), np.arange(sets)):
        _refuse(f"a categorical split of {where} has no set, or shares one")

    counts = np.concatenate([tree.split_count, tree.leaf_count[::-1]])  # indexed by a child, also below zero
    if (tree.split_count != counts[tree.left] + counts[tree.right]).any() or (splits and not tree.split_count[0]):
        _refuse(f"the counts of rows of {where} do not add up")


def _check_end(tail: bytes) -> None:
    """Refuse a text that ends early: parameters follow, and from Python the categories of pandas."""
    text = tail.decode()
    begin, middle, end = "end of trees\n\nfeature_importances:\n", "\nparameters:\n", "\nend of parameters\n"
    _, found, rest = text.partition(middle)
    _, complete, rest = rest.partition(end)
    if not (text.startswith(begin) and found and complete):
        _refuse("it ends before its parameters")
    if rest:
        prefix = "\npandas_categorical:"
        try:
            if not (rest.startswith(prefix) and rest.endswith("\n")):
                _refuse("its end is damaged")
            json.loads(rest[len(prefix) :])
        except (ValueError, RecursionError):
            _refuse("its end is damaged")


def _pairs(lines: list[str], where: str, *, required: tuple[str, ...], others: frozenset[str]) -> dict[str, str]:
    """The lines ``key=value`` as a dictionary; refuse unknown, double and missing keys."""
    found: dict[str, str] = {}
    for line in lines:
        key, equals, value = line.partition("=")
        if key == "average_output":
            _refuse("it averages its trees (a random forest), which is not read")
        if not equals or key in found or not (key in others or key in required):
            _refuse(f"{where} has an unknown or a double line {line[:30]!r}")
        found[key] = value
    missing = [key for key in required if key not in found]
    if missing:
        _refuse(f"{where} lacks {missing[0]}")
    return found


def _whole(text: str, what: str) -> int:
    numbers = _wholes(text.encode(), what)
    if len(numbers) != 1:
        _refuse(f"{what} is damaged")
    return int(numbers[0])


def _wholes(text: bytes, what: str) -> NDArray[np.int64]:
    if not _LINES["whole"].fullmatch(text):
        _refuse(f"{what[:40]} is damaged")
    return np.array(list(map(int, text.split(b" "))) if text else [], dtype=np.int64)


def _words(text: bytes, where: str) -> NDArray[np.uint32]:
    words = _wholes(text, f"cat_threshold of {where}")
    if (words < 0).any() or (words >= 2**32).any():
        _refuse(f"cat_threshold of {where} is damaged")
    return words.astype(np.uint32)


def _refuse(reason: str) -> NoReturn:
    raise _WrongError(reason)
