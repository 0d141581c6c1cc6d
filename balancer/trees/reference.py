"""The evaluator in NumPy: the meaning of the arrays of `balancer.trees.layout`, and what is used where no C++
compiler was. The raw scores have the same bits as those of the kernel; the time is many times as long.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from balancer.trees.layout import HIGH, LOW, ZERO, Kind, Nodes, Paths, ordered

_ROWS = 256
"""Rows of which contributions are computed at a time, which bounds the memory."""


def raw(nodes: Nodes, outputs: int, values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Compute raw scores (n, K) of values (n, F)."""
    keys = _keys(nodes, values)
    rows = np.arange(len(values))
    out = np.zeros((len(values), outputs))
    for tree, root in enumerate(nodes.roots[:-1].tolist()):
        at = np.full(len(values), root, np.int64)
        while True:
            node = nodes.nodes[at]
            following = node["right"].astype(np.int64) - _goes_left(nodes, node, keys[rows, node["column"]])
            if np.array_equal(following, at):
                break
            at = following
        with np.errstate(over="ignore", invalid="ignore"):  # as in the kernel
            out[:, tree % outputs] += nodes.values[at]
    return out


def contributions(nodes: Nodes, paths: Paths, outputs: int, values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Compute contributions (n, K, F + 1) of values (n, F). The method is explained in kernels/trees.cpp."""
    out = np.zeros((len(values), outputs, values.shape[1] + 1))
    out[:, :, -1] = paths.expected
    for first in range(0, len(values), _ROWS):
        keys = _keys(nodes, values[first : first + _ROWS])
        for tree, (root, end) in enumerate(zip(nodes.roots[:-1].tolist(), nodes.roots[1:].tolist(), strict=True)):
            if end - root > 1:
                _explain(nodes, paths, root, end, int(paths.points[tree]), keys, out[first : first + _ROWS, tree % outputs])
    return out


def _explain(
    nodes: Nodes,
    paths: Paths,
    root: int,
    end: int,
    q: int,
    keys: NDArray[np.int64],
    out: NDArray[np.float64],
) -> None:
    """Add the contributions of one tree to `out` (n, F + 1)."""
    point, weight = paths.rules[q * (q - 1) : q * q], paths.rules[q * q : q * (q + 1)]
    rows, size = len(keys), end - root
    one = np.ones((size, rows))
    product, inverse, total = np.ones((size, rows, q)), np.ones((size, rows, q)), np.zeros((size, rows, q))
    parent = paths.parent[root:end].astype(np.int64) - root
    previous = np.where(paths.previous[root:end] < 0, -1, paths.previous[root:end] - root)
    feature, share = paths.feature[root:end], paths.share[root:end]
    for i in range(1, size):
        node = nodes.nodes[root + parent[i]]
        one[i] = node["right"].astype(np.int64) - _goes_left(nodes, node, keys[:, node["column"]]) == root + i
        if previous[i] >= 0:
            one[i] *= one[previous[i]]
        factor = share[i] * (1 - point) + one[i][:, None] * point
        inverse[i] = np.divide(1, factor, out=np.zeros_like(factor), where=factor > 0)
        product[i] = product[parent[i]] * factor * (inverse[previous[i]] if previous[i] >= 0 else 1)
    for i in range(size - 1, 0, -1):
        if nodes.nodes["right"][root + i] == root + i:
            total[i] = nodes.values[root + i] * product[i]
        total[parent[i]] += total[i]
        gain = (one[i] - share[i])[:, None] * inverse[i]
        if previous[i] >= 0:
            gain = gain - (one[previous[i]] - share[previous[i]])[:, None] * inverse[previous[i]]
        out[:, feature[i]] += (weight * total[i] * gain).sum(1)


def _keys(nodes: Nodes, values: NDArray[np.float32]) -> NDArray[np.int64]:
    """(n, C) keys of values (n, F)."""
    clean = np.where(np.abs(values) <= ZERO, np.float32(0), values)
    keys = np.empty((len(values), len(nodes.sources)), np.int64)
    for kind in Kind:
        part = slice(nodes.kinds[kind], nodes.kinds[kind + 1])
        value = clean[:, nodes.sources[part]]
        if kind == Kind.CODE:
            coded = (value > -1) & (value < 2.0**31)
            keys[:, part] = np.where(coded, np.trunc(np.where(coded, value, 0)), -1)
            continue
        missing = np.isnan(value)
        if kind in (Kind.ZERO_RIGHT, Kind.ZERO_LEFT):
            missing |= value == 0
        keys[:, part] = np.where(missing, LOW if kind in (Kind.MISSING_LEFT, Kind.ZERO_LEFT) else HIGH, ordered(value))
    return keys


def _goes_left(nodes: Nodes, node: NDArray[np.void] | np.void, key: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n,): the key goes left at its node."""
    begin = node["set"].astype(np.int64)
    count = nodes.words[begin].astype(np.int64)
    word = nodes.words[begin + 1 + np.where(key < 0, count, np.minimum(key // 32, count))]
    goes: NDArray[np.bool_] = (key < node["threshold"]) | (word >> (key % 32).astype(np.uint32) & 1 != 0)
    return goes
