"""The arrays that are evaluated: nodes that lie close together, and the paths to them for contributions.

A tree's root is followed by the two children of split 0, those of split 1, and so on. The values of a row are
first turned into integer *keys* of the same order, one column for every field and every way in which its
splits treat missing values, see `Kind`. Then a split is one comparison of integers. A value is float32, so a
threshold in float64 is replaced by the largest float32 up to it, which gives the same decisions.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from balancer.errors import UnsupportedError
from balancer.trees.model_text import MISSING_NONE, MISSING_ZERO, Tree, TreeModel

NODE = np.dtype([("threshold", np.int32), ("column", np.uint32), ("right", np.uint32), ("set", np.uint32)])
"""A node, mirror of `Node` in kernels/trees.cpp. Keys below the threshold go left, to the node before
``right``. A leaf is its own child on the right. No key is below the threshold of a leaf or of a categorical
split."""
ZERO = np.float32(1e-35)
"""LightGBM's ``kZeroThreshold``: magnitudes up to it are zero."""


class Kind(IntEnum):
    """How keys are made of the values of a field. Mirror of the enumeration in kernels/trees.cpp."""

    MISSING_RIGHT = 0
    """Numbers keep their order, and NaN goes right."""
    MISSING_LEFT = 1
    ZERO_RIGHT = 2
    """Numbers keep their order, and zero and NaN go right."""
    ZERO_LEFT = 3
    CODE = 4
    """Categorical: the number without its fraction, -1 where it is no code."""


LOW, HIGH = -(2**31), 2**31 - 1
"""Keys of missing values that go left and right."""
MOST_ON_PATH = 256
"""Maximum number of different fields between a root and a leaf for which contributions are computed."""
_MOST_NODES = 1 << 31

Array = TypeVar("Array", bound=NDArray[Any])


@dataclass(frozen=True, eq=False)
class Nodes:
    """All trees of a model, one after the other.

    Attributes:
        nodes: (N,) of `NODE`.
        values: (N,) float64, the value of a leaf, 0 for a split.
        words: (W,) uint32: per categorical set the number of its words, the words and a zero; first the empty
            set.
        roots: (T + 1,) uint32, the first node of every tree, and N.
        special: (T,) uint8, 1 if a split is categorical.
        sources: (C,) int32, the field of which every column of keys is made, in the order of the kinds.
        kinds: (kinds + 1,) int64, the first column of every `Kind`, and C.
    """

    nodes: NDArray[np.void]
    values: NDArray[np.float64]
    words: NDArray[np.uint32]
    roots: NDArray[np.uint32]
    special: NDArray[np.uint8]
    sources: NDArray[np.int32]
    kinds: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Paths:
    """What contributions need to know about the edges. An edge is named by the node at its lower end.

    Attributes:
        parent: (N,) uint32, node at the upper end.
        previous: (N,) int32, the edge above that splits the same field, or -1.
        feature: (N,) int32, column.
        share: (N,) float64, the product over all edges of this field on the path, down to this one, of the
            share of the training rows that takes the edge.
        points: (T,) int32, points of integration: half as many as different fields on the path with the most.
        rules: (R,) float64, for every number q of points, from ``q * (q - 1)`` on: q points in (0, 1) and
            their weights.
        expected: (K,) float64, the mean raw score over the training rows.
        most_nodes: number of nodes of the largest tree.
    """

    parent: NDArray[np.uint32]
    previous: NDArray[np.int32]
    feature: NDArray[np.int32]
    share: NDArray[np.float64]
    points: NDArray[np.int32]
    rules: NDArray[np.float64]
    expected: NDArray[np.float64]
    most_nodes: int


def lay_out(model: TreeModel) -> Nodes:
    """Lay out the trees of a model.

    Raises:
        UnsupportedError: It has 2**31 nodes or more.
    """
    sizes = [2 * len(tree.feature) + 1 for tree in model.trees]
    if sum(sizes) >= _MOST_NODES:
        raise UnsupportedError(f"{model.source} has too many nodes; train with fewer trees or leaves")
    features = len(model.feature_names)
    # A column of keys is named by kind * features + feature; only those that occur are made.
    names = np.unique(np.concatenate([_kinds(tree) * features + tree.feature for tree in model.trees]))
    if not len(names):
        names = np.zeros(1, np.int64)  # leaves look at column 0
    roots = np.cumsum([0, *sizes]).astype(np.uint32)
    nodes, values = np.zeros(sum(sizes), NODE), np.zeros(sum(sizes))
    words: list[NDArray[np.uint32]] = [np.zeros(2, np.uint32)]
    used = 2
    for tree, root in zip(model.trees, roots[:-1].tolist(), strict=True):
        part = slice(root, root + 2 * len(tree.feature) + 1)
        sets = np.zeros(len(tree.set_bounds), np.int64)
        for index, (low, high) in enumerate(zip(tree.set_bounds[:-1].tolist(), tree.set_bounds[1:].tolist(), strict=True)):
            sets[index] = used
            words.append(np.concatenate([[high - low], tree.set_words[low:high], [0]]).astype(np.uint32))
            used += high - low + 2
        columns = np.searchsorted(names, _kinds(tree) * features + tree.feature)
        nodes[part], values[part] = _tree_nodes(tree, root, columns, sets)
    if used >= _MOST_NODES:
        raise UnsupportedError(f"{model.source} has too many categories; train with fewer")
    return Nodes(
        nodes=_frozen(nodes),
        values=_frozen(values),
        words=_frozen(np.concatenate(words)),
        roots=_frozen(roots),
        special=_frozen(np.array([tree.categorical.any() for tree in model.trees], np.uint8)),
        sources=_frozen((names % features).astype(np.int32)),
        kinds=_frozen(np.searchsorted(names, np.arange(len(Kind) + 1) * features).astype(np.int64)),
    )


def find_paths(model: TreeModel) -> Paths:
    """Find what contributions need.

    Raises:
        UnsupportedError: A path has more than `MOST_ON_PATH` different fields.
    """
    parents, previous, features, shares, points = [], [], [], [], []
    expected = np.zeros(model.outputs)
    root = 0
    for number, tree in enumerate(model.trees):
        splits = len(tree.feature)
        above, same, share, longest = _tree_paths(tree)
        if longest > MOST_ON_PATH:
            raise UnsupportedError(
                f"{model.source} has a path with {longest} different fields, and contributions are computed up to {MOST_ON_PATH}; "
                "train with fewer leaves or with max_depth"
            )
        parents.append(above + root)
        previous.append(np.where(same < 0, -1, same + root))
        features.append(np.concatenate([[0], np.repeat(tree.feature, 2)]))
        shares.append(share)
        points.append((longest + 1) // 2)
        counts = tree.leaf_count if splits else np.ones(1)
        expected[number % model.outputs] += float(np.sum(counts / counts.sum() * tree.leaf_value))
        root += 2 * splits + 1
    return Paths(
        parent=_frozen(np.concatenate(parents).astype(np.uint32)),
        previous=_frozen(np.concatenate(previous).astype(np.int32)),
        feature=_frozen(np.concatenate(features).astype(np.int32)),
        share=_frozen(np.concatenate(shares)),
        points=_frozen(np.array(points, np.int32)),
        rules=_frozen(_rules(max(points))),
        expected=_frozen(expected),
        most_nodes=max(2 * len(tree.feature) + 1 for tree in model.trees),
    )


def ordered(values: NDArray[np.float32]) -> NDArray[np.int32]:
    """The bits of numbers as integers of the same order."""
    bits = values.view(np.int32)
    keys: NDArray[np.int32] = bits ^ ((bits >> 31) & HIGH)
    return keys


def threshold_keys(threshold: NDArray[np.float64]) -> NDArray[np.int64]:
    """The first keys above the thresholds, for values in float32 of which magnitudes up to `ZERO` are 0."""
    with np.errstate(over="ignore", under="ignore"):
        rounded = threshold.astype(np.float32)
    too_large = rounded.astype(np.float64) > threshold
    rounded[too_large] = np.nextafter(rounded[too_large], np.float32(-np.inf))
    # Between -ZERO and ZERO there is only the value 0, and no denormal number needs to be compared.
    rounded = np.where(np.abs(threshold) > ZERO, rounded, np.where(threshold >= 0, np.float32(0), -ZERO)).astype(np.float32)
    return ordered(rounded).astype(np.int64) + 1


def _positions(tree: Tree) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Position of every split (n,) and of every leaf (n + 1,) in the tree's nodes."""
    splits = len(tree.feature)
    position = np.zeros(2 * splits + 1, np.int64)  # splits, then leaves from the last to the first, as negative indices
    position[tree.left] = 2 * np.arange(splits) + 1
    position[tree.right] = 2 * np.arange(splits) + 2
    return position[:splits], position[splits:][::-1]


def _kinds(tree: Tree) -> NDArray[np.int64]:
    """(n,) `Kind` of every split's keys."""
    zero_left = tree.threshold >= 0
    # Without a treatment of missing values NaN counts as zero.
    missing_left = np.where(tree.missing == MISSING_NONE, zero_left, tree.default_left)
    kinds = np.where(missing_left, Kind.MISSING_LEFT, Kind.MISSING_RIGHT)
    kinds = np.where((tree.missing == MISSING_ZERO) & (missing_left != zero_left), kinds + Kind.ZERO_RIGHT, kinds)
    return np.where(tree.categorical, Kind.CODE, kinds).astype(np.int64)


def _tree_nodes(tree: Tree, root: int, columns: NDArray[np.int64], sets: NDArray[np.int64]) -> tuple[NDArray[np.void], NDArray[np.float64]]:
    at_split, at_leaf = _positions(tree)
    splits = len(tree.feature)
    nodes, values = np.zeros(2 * splits + 1, NODE), np.zeros(2 * splits + 1)
    values[at_leaf] = tree.leaf_value
    nodes["right"][at_leaf] = at_leaf + root
    nodes["threshold"][at_leaf] = LOW
    nodes["right"][at_split] = root + 2 * np.arange(splits) + 2
    nodes["column"][at_split] = columns
    categorical = tree.categorical
    nodes["threshold"][at_split] = np.where(categorical, LOW, threshold_keys(tree.threshold))
    nodes["set"][at_split] = np.where(categorical, sets[np.where(categorical, tree.threshold, 0).astype(np.int64)], 0)
    return nodes, values


def _tree_paths(tree: Tree) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], int]:
    """Parent, previous edge of the same field and share of every edge, in positions of the tree's nodes, and
    the largest number of different fields on a path.
    """
    splits = len(tree.feature)
    at_split, _ = _positions(tree)
    parent, previous, share = np.zeros(2 * splits + 1, np.int64), np.full(2 * splits + 1, -1, np.int64), np.ones(2 * splits + 1)
    feature, left, right, position = (array.tolist() for array in (tree.feature, tree.left, tree.right, at_split))
    counts = [*tree.split_count.tolist(), *tree.leaf_count.tolist()[::-1]]
    last: dict[int, int] = {}  # per field the edge that split it last on the present path
    longest = 0
    # A split is entered before its left child (2), before its right child (1), and to restore `last` (0).
    stack: list[tuple[int, int, int]] = [(0, 2, -1)] if splits else []
    while stack:
        split, step, before = stack.pop()
        if step == 2:
            before = last.get(feature[split], -1)
        if step == 0:
            if before < 0:
                del last[feature[split]]
            else:
                last[feature[split]] = before
            continue
        edge = 2 * split + 1 + (2 - step)
        child = left[split] if step == 2 else right[split]
        parent[edge], previous[edge] = position[split], before
        # No training row is at a split of count 0, so any shares that add up to 1 serve there.
        own = counts[child] / counts[split] if counts[split] else 0.5
        share[edge] = own * (share[before] if before >= 0 else 1.0)
        last[feature[split]] = edge
        longest = max(longest, len(last))
        stack.append((split, step - 1, before))
        if child >= 0:
            stack.append((child, 2, -1))
    return parent, previous, share, longest


def _rules(most: int) -> NDArray[np.float64]:
    """Points and weights of the rules of Gauss and Legendre over (0, 1) with 1, 2, ..., `most` points."""
    parts = [np.zeros(0)]
    for count in range(1, most + 1):
        points, weights = np.polynomial.legendre.leggauss(count)
        parts += [(points + 1) / 2, weights / 2]
    return np.concatenate(parts)


def _frozen(array: Array) -> Array:
    array.flags.writeable = False
    return array
