"""Target-aware piecewise-linear encoding of numbers, with step indicators.

In experiments this was the most important part of the model. The bin edges of each field are the thresholds
of a decision tree fitted on the training rows (Gorishniy et al. 2022, "On Embeddings for Numerical Features
in Tabular Deep Learning", section 3.2.2). Step indicators are added to the piecewise-linear values of that
paper, so that the model can separate a rare tail (an amount above 220) exactly at its edge instead of along a
slope.

The encoding is not computed literally. Written out, the encoding of a row has F fields x E bins x 2 numbers,
nearly all of them 0 or 1, and is multiplied by a matrix to give d channels. For a value in bin b of its field
that product is

    sum of slope[j] over j < b  +  sum of step[j] over j <= b  +  fraction * slope[b]

so with cumulative sums of the weights it takes two look-ups per field. The parameters, and thus the
optimizer's updates, are those of the linear map. The look-ups and their gradient take a quarter of its time
on a CPU and a tenth of its memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ROW_LIMIT = 300_000
"""Above this number of rows the trees are fitted on a weighted subsample."""
CELL_LIMIT = 2_000
"""Number of quantiles per class that limit where a tree may split a field with more values than this."""
LARGEST = 1e37
"""Limit of the edges, so that differences of float32 values stay finite."""


def fit_edges(
    values: NDArray[np.float32], label: NDArray[np.integer[Any]], *, max_leaves: int = 24, seed: int
) -> list[NDArray[np.float32]]:
    """Compute the bin edges of each numeric field.

    They are the smallest value, the thresholds of a decision tree, and the largest value. A field that does
    not separate the classes gets its quantiles; a constant field gets a single bin.

    Args:
        values: (R, F), the training rows; NaN and infinite values are ignored.
        label: (R,) class index, 0 = negative; negative labels are unlabelled and ignored.
        max_leaves: maximum number of bins per field.
        seed: random seed of the subsample above `ROW_LIMIT` rows.

    Returns:
        F arrays of float32, strictly increasing, of length 2 to max_leaves + 1.

    Raises:
        ValueError: The shapes do not match.
    """
    if values.ndim != 2 or label.shape != values.shape[:1]:
        raise ValueError(f"values must be (R, F) and label (R,), given {values.shape} and {label.shape}")
    rows, weight = _sample_rows(label, seed)
    target = label[rows]
    return [_field_edges(values[rows, field].astype(np.float32), target, weight, max_leaves) for field in range(values.shape[1])]


def _sample_rows(label: NDArray[np.integer[Any]], seed: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Select labelled rows and their weights, at most `ROW_LIMIT` rows.

    Classes that fit into an equal share of the limit are used completely; larger classes are subsampled, and
    each of their rows represents several.
    """
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(label == value) for value in np.unique(label[label >= 0])]
    groups.sort(key=len)  # the rows that small classes leave unused go to the larger ones
    rows: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    weight: list[NDArray[np.float64]] = [np.empty(0)]
    left = ROW_LIMIT
    for position, group in enumerate(groups):
        count = min(len(group), left // (len(groups) - position))
        rows.append(group if count == len(group) else np.sort(rng.choice(group, count, replace=False)))
        weight.append(np.full(count, len(group) / count))
        left -= count
    return np.concatenate(rows), np.concatenate(weight)


def _field_edges(
    value: NDArray[np.float32], label: NDArray[np.integer[Any]], weight: NDArray[np.float64], max_leaves: int
) -> NDArray[np.float32]:
    finite = np.isfinite(value)
    value, label, weight = np.clip(value[finite], -LARGEST, LARGEST), label[finite], weight[finite]
    if not len(value):
        return np.array([0, 1], np.float32)
    low, high = value.min(), value.max()
    if low == high:
        return np.array([low, low + max(np.float32(1), abs(low))], np.float32)
    thresholds = _tree_thresholds(value, label, weight, max_leaves)
    if not len(thresholds):
        thresholds = np.quantile(value, np.linspace(0, 1, min(max_leaves, 8) + 1)[1:-1])
    # After rounding down, x > edge holds for exactly those float32 x for which x > threshold holds.
    inner = thresholds.astype(np.float32)
    inner = np.unique(np.where(inner > thresholds, np.nextafter(inner, np.float32(-np.inf)), inner))
    inner = inner[inner < high]
    if len(inner) and inner[0] <= low:
        low = np.nextafter(inner[0], np.float32(-np.inf))
    return np.concatenate([[low], inner, [high]]).astype(np.float32)


def _tree_thresholds(
    value: NDArray[np.float32], label: NDArray[np.integer[Any]], weight: NDArray[np.float64], max_leaves: int
) -> NDArray[np.float64]:
    from sklearn.tree import DecisionTreeClassifier  # takes a second to import and is needed only to build a model

    if max_leaves < 2:
        return np.empty(0)
    cells = _count_cells(value, label, weight)
    # A leaf of a few rows isolates noise; on a large table a leaf of 50 can still be a rare fraud pattern.
    total = weight.sum()
    smallest = min(np.clip(total // 2_000, 5, 50) / total, 0.5)
    tree = DecisionTreeClassifier(criterion="entropy", max_leaf_nodes=max_leaves, min_weight_fraction_leaf=smallest, random_state=0)
    cell, which = np.nonzero(cells.weight)
    nodes = tree.fit(cell[:, None], which, sample_weight=cells.weight[cell, which]).tree_
    left = np.sort(nodes.threshold[nodes.children_left >= 0]).astype(np.int64)  # the tree splits between two cell numbers
    return (cells.largest[left].astype(np.float64) + cells.smallest[left + 1]) / 2


class _Cells(NamedTuple):
    """Neighbouring values of a field merged into M cells."""

    smallest: NDArray[np.float32]
    """(M,) smallest value of each cell, increasing."""
    largest: NDArray[np.float32]
    """(M,) largest value of each cell."""
    weight: NDArray[np.float64]
    """(M, K) weighted number of rows of each class."""


def _count_cells(value: NDArray[np.float32], label: NDArray[np.integer[Any]], weight: NDArray[np.float64]) -> _Cells:
    """Merge neighbouring values into cells.

    A tree is then fitted on thousands of counts instead of hundreds of thousands of rows. A field with few
    values keeps all of them. Otherwise cells begin and end at quantiles of each class, so that they are as
    fine as the rows of a rare class where that class lies.
    """
    order = np.argsort(value, kind="stable")
    value, weight = value[order], weight[order]
    which = np.unique(label[order], return_inverse=True)[1]
    starts = np.flatnonzero(np.concatenate([[True], value[1:] != value[:-1]]))
    if len(starts) > CELL_LIMIT:
        boundaries = [np.array([0])]
        for members in (np.flatnonzero(which == index) for index in range(which.max() + 1)):
            picked = members[np.linspace(0, len(members) - 1, min(len(members), CELL_LIMIT)).astype(np.int64)]
            run = np.searchsorted(starts, picked, side="right")
            boundaries += [run - 1, np.minimum(run, len(starts) - 1)]  # a boundary before the picked value and one after it
        starts = starts[np.unique(np.concatenate(boundaries))]
    cell = np.zeros(len(value), np.int64)
    cell[starts[1:]] = 1
    classes = int(which.max()) + 1
    counts = np.bincount(cell.cumsum() * classes + which, weight, minlength=len(starts) * classes).astype(np.float64)
    return _Cells(value[starts], value[np.append(starts[1:], len(value)) - 1], counts.reshape(-1, classes))


class Bins(nn.Module):
    """Assign numbers to the bins of their fields.

    Args:
        edges: at least two strictly increasing numbers per field.
    """

    lower: Tensor
    width: Tensor
    search: Tensor
    first_cell: Tensor

    def __init__(self, edges: Sequence[Sequence[float] | NDArray[np.float32]]) -> None:
        super().__init__()
        bins = max(len(field) for field in edges) - 1
        lower = torch.full((len(edges), bins), torch.inf)
        upper = torch.full((len(edges), bins), torch.inf)
        for field, values in enumerate(edges):
            edge = torch.as_tensor(values, dtype=torch.float32)
            lower[field, : len(edge) - 1], upper[field, : len(edge) - 1] = edge[:-1], edge[1:]
        self.levels = (bins - 1).bit_length()
        # Bin b contains lower[b] < x <= lower[b + 1]. The search counts the inner edges below x, padded by
        # infinity to a power of two.
        search = torch.full((len(edges), 1 << self.levels), torch.inf)
        search[:, : bins - 1] = lower[:, 1:]
        self.register_buffer("search", search.flatten(), persistent=False)
        self.register_buffer("lower", lower.flatten(), persistent=False)
        # The width of padded edges is NaN and never read. The minimum keeps 0 / width finite for differences
        # that underflow.
        self.register_buffer("width", (upper - lower).clamp(min=torch.finfo(torch.float32).tiny).flatten(), persistent=False)
        self.register_buffer("first_cell", torch.arange(len(edges), dtype=torch.int32), persistent=False)
        self.fields, self.bins = len(edges), bins

    @torch.no_grad()
    def forward(self, values: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Find the bin of each number and the position within the bin.

        Args:
            values: (R, F) numbers; NaN is missing.
            present: (R, F) bool, False where a field counts as missing.

        Returns:
            The cell (R, F) int32, which is the field's first cell plus the bin; 1 if present or 0 if missing
            (R, F); and the fraction of the bin below the value (R, F), from 0 to 1, 0 if missing.
        """
        present = present & ~values.isnan()
        cell = self._find_cell(values)
        flat = cell.flatten()
        lower, width = (bounds.index_select(0, flat).view_as(values) for bounds in (self.lower, self.width))
        fraction = ((values - lower) / width).clamp_(0, 1).masked_fill_(~present, 0)
        return cell, present.to(fraction.dtype), fraction

    def _find_cell(self, values: Tensor) -> Tensor:
        """Find the cells (R, F) int32 by a branch-free binary search, all values in the same steps."""
        size = 1 << self.levels
        found = (self.first_cell * size).expand(values.shape).flatten()
        flat = values.flatten()
        for level in reversed(range(self.levels)):
            half = 1 << level
            found = found + (self.search.index_select(0, found + (half - 1)) < flat).to(torch.int32) * half
        return found.view_as(values) + self.first_cell * (self.bins - size)


class PiecewiseLinearEncoder(nn.Module):
    """Encode numeric fields as d channels by piecewise-linear values and steps, and a linear map.

    The results are summed over fields. The value of bin j is `clamp((x - edge[j]) / (edge[j + 1] - edge[j]),
    0, 1)` and its step is `x > edge[j]`; the step of bin 0 is 1 for every present value. Hence a missing
    value (NaN) contributes nothing and differs from a small value, and 1e12 is encoded like the largest
    training value.

    Args:
        edges: at least two strictly increasing numbers per field.
        d_model: number of output channels.
    """

    def __init__(self, edges: Sequence[Sequence[float] | NDArray[np.float32]], d_model: int) -> None:
        super().__init__()
        self.places = Bins(edges)
        fields, bins = self.places.fields, self.places.bins
        bound = (2 * fields * bins) ** -0.5
        self.slope = nn.Parameter(torch.empty(fields, bins, d_model).uniform_(-bound, bound))
        self.step = nn.Parameter(torch.empty(fields, bins, d_model).uniform_(-bound, bound))

    def table(self) -> Tensor:
        """Compute the look-up table (2 T, d), T = F x bins.

        The first T rows are the sums over all bins up to each cell, the last T rows the slopes. The encoding
        of a row is a weighted sum of 2 F entries.
        """
        below = self.slope.cumsum(1) - self.slope + self.step.cumsum(1)
        return torch.cat([below.flatten(0, 1), self.slope.flatten(0, 1)])

    def per_field(self, values: Tensor, present: Tensor) -> Tensor:
        """Encode like :meth:`forward`, but without the sum over fields: (R, F, d_model)."""
        cell, is_present, fraction = self.places(values, present)
        table, below = self.table(), cell.to(torch.int64)
        each: Tensor = F.embedding(below, table) * is_present[..., None] + F.embedding(below + len(table) // 2, table) * fraction[..., None]
        return each

    def forward(self, values: Tensor, present: Tensor) -> Tensor:
        """Encode and project.

        Args:
            values: (R, F) numbers; NaN is missing.
            present: (R, F) bool, False where a field counts as missing.

        Returns:
            (R, d_model).
        """
        cell, is_present, fraction = self.places(values, present)
        table = self.table()
        if torch.is_grad_enabled() and table.device.type == "cpu":
            looked_up: Tensor = _TableLookup.apply(table, cell, is_present, fraction)  # type: ignore[no-untyped-call]
            return looked_up
        return _look_up(table, cell, is_present, fraction)


def _look_up(table: Tensor, cell: Tensor, present: Tensor, fraction: Tensor) -> Tensor:
    """Sum over fields of `present * table[cell] + fraction * table[T + cell]`, (R, d).

    The table is (2 T, d).
    """
    index = torch.cat([cell, cell + len(table) // 2], 1)
    return F.embedding_bag(index, table, mode="sum", per_sample_weights=torch.cat([present, fraction], 1))


class _TableLookup(torch.autograd.Function):
    """`_look_up` with a gradient that is fast on a CPU.

    Entries are sorted by cell, and the gradient of each cell is one sum of rows. torch's own backward pass of
    embedding_bag uses scatter and takes ten times as long on a CPU. It remains in use on CUDA, where it is
    the faster one.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, cell: Tensor, present: Tensor, fraction: Tensor) -> Tensor:
        ctx.save_for_backward(cell, present, fraction)
        ctx.cells = len(table) // 2
        return _look_up(table, cell, present, fraction)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        cell, present, fraction = ctx.saved_tensors
        key = cell.flatten()
        # Half the bytes need half the passes of the radix sort.
        narrow = key.to(torch.int16) if ctx.cells <= torch.iinfo(torch.int16).max else key
        order = narrow.sort(stable=True).indices
        counts = torch.bincount(key, minlength=ctx.cells)
        offsets = counts.cumsum(0) - counts
        row = order // cell.shape[1]
        gradient = gradient.contiguous()
        sums = [
            F.embedding_bag(row, gradient, offsets, mode="sum", per_sample_weights=share.flatten().index_select(0, order))
            for share in (present, fraction)
        ]
        return torch.cat(sums), None, None, None
