"""Rows of a class, drawn by their errors: how much is drawn by them, and where their weights are cut.

Scores are known only for sub-sampled pools of rows. If unscored rows had the mean weight of the scored ones,
nearly all draws of a large table would ignore hardness for most of the training. So the scored rows get the
fraction ``q = max(scored / rows, min(1, scored / draws))`` of the hard draws: as many draws as there are
scored rows to choose from, and at least what the mean weight would give them.

No row is expected more than :data:`MAX_HARD_DRAWS` times in an epoch by its hardness, or as often as the
average row of its class where that is more: larger weights are cut. Otherwise the few hardest rows of a small
table would be drawn hundreds of times and memorised, together with the rows that look like them.

The scored rows are sorted by their errors once per refresh (:class:`SortedErrors`), and their weights are
summed once per hardness (:class:`HardTable`). Other shares, another floor or another number of draws cost
nothing per row: a binary search in these sums finds where the weights are cut.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.sampling.groups import index_type
from balancer.sampling.weights import ERROR_OFFSET, Floats

MAX_HARD_DRAWS = 2.0
"""How often hardness may draw a row in an epoch, at most, in expectation."""
NEWTON_STEPS = 8
"""Steps of Newton's method, which finds where weights are cut; nearly always fewer are needed.

Cutting weights lowers their sum and so the limit itself; the method approaches that limit from above."""
TINY = 1e-300
"""Least sum of weights that is divided by."""


def scored_part(scored: int, rows: int, draws: int | NDArray[np.integer[Any]]) -> Any:
    """Fraction of the hard draws that goes to the scored rows; see the module's docstring."""
    return np.maximum(scored / max(rows, 1), np.minimum(1.0, scored / np.maximum(draws, 1)))


def largest_probability(scored: int, draws: Any) -> Any:
    """Largest probability of a scored row in a hard draw.

    With it no row is expected more than :data:`MAX_HARD_DRAWS` times among ``draws``, or more often than the
    average row where that is more.
    """
    return np.maximum(MAX_HARD_DRAWS / np.maximum(draws, 1.0), 1.0 / max(scored, 1))


class SortedErrors:
    """The scored rows of a class, sorted by their errors: everything that depends on the scores alone."""

    def __init__(self, error: NDArray[np.float32]) -> None:
        scored = np.flatnonzero(~np.isnan(error))
        index = index_type(len(error))
        order = np.argsort(error[scored], kind="stable")  # stable: the same order on every machine
        self.place = scored[order].astype(index)
        """(s,) positions among the rows of the class, the easiest row first."""
        self.error = error[scored][order]
        self._gap = (scored - np.arange(len(scored))).astype(index)
        self.rows = len(error)

    @property
    def unscored(self) -> int:
        """Number of rows without a score."""
        return self.rows - len(self.place)

    def unscored_places(self, number: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions of the unscored rows ``number`` (n,), counted from 0.

        They are found from the gaps between the scored rows, so no list of them is kept.
        """
        return number + np.searchsorted(self._gap, number.astype(self._gap.dtype), side="right")


class HardTable:
    """Cumulative weights of the scored rows of a class at one hardness."""

    def __init__(self, scored: SortedErrors, hardness: float) -> None:
        self._scored, self.hardness = scored, hardness
        self._weight = np.power(scored.error + np.float32(ERROR_OFFSET), np.float32(hardness))
        self._cumulative = np.cumsum(self._weight, dtype=np.float64)
        self._last: tuple[int, tuple[float, int, float]] | None = None

    def _cut(self, draws: int) -> tuple[float, int, float]:
        """Where weights are cut at ``draws`` draws of the class.

        Returns:
            Fraction of the hard draws for scored rows, number of rows that keep their weight, weight of the
            others.
        """
        if self._last is None or self._last[0] != draws:
            self._last = draws, self._found_cut(draws)
        return self._last[1]

    def _found_cut(self, draws: int) -> tuple[float, int, float]:
        count = len(self._weight)
        part = float(scored_part(count, self._scored.rows, draws))
        if not count:
            return part, 0, 0.0
        most = float(largest_probability(count, part * draws))
        if most * count <= 1.0:  # no room for hardness: all scored rows alike
            return part, 0, float(self._cumulative[-1] / count)
        limit, under = most * self._cumulative[-1], count
        for _ in range(NEWTON_STEPS):
            under = int(np.searchsorted(self._weight, np.float32(limit), side="right"))
            limit = most * (self._cumulative[under - 1] if under else 0.0) / (1.0 - most * (count - under))
        return part, int(np.searchsorted(self._weight, np.float32(limit), side="right")), float(limit)

    def places(self, within: Floats, rescaled: Floats, draws: int) -> NDArray[np.int64]:
        """Positions (n,) for uniform random numbers.

        Args:
            within: (n,) selects the row.
            rescaled: (n,) uniform numbers, rescaled to [0, 1); they decide between scored and unscored rows.
            draws: Draws of the class in the epoch.
        """
        part, under, limit = self._cut(draws)
        result = np.empty(len(within), dtype=np.int64)
        hard = rescaled < part
        count = len(self._weight)
        if hard.any():
            kept = self._cumulative[under - 1] if under else 0.0
            target = within[hard] * (kept + limit * (count - under))
            found = np.searchsorted(self._cumulative[:under], target, side="right")
            beyond = found >= under
            if under < count:
                found[beyond] += ((target[beyond] - kept) / limit).astype(np.int64)
            result[hard] = self._scored.place[np.minimum(found, count - 1)]
        if not hard.all():
            unscored = max(self._scored.unscored, 1)
            number = np.minimum((within[~hard] * unscored).astype(np.int64), unscored - 1)
            result[~hard] = self._scored.unscored_places(number)
        return result

    def probabilities(self, draws: int) -> tuple[Floats, float]:
        """Probability in a hard draw of each scored row (s,), the easiest first, and of an unscored one."""
        part, under, limit = self._cut(draws)
        weight = self._weight.astype(np.float64)
        weight[under:] = limit
        return part * weight / max(weight.sum(), TINY), (1.0 - part) / max(self._scored.unscored, 1)

    def terms(self, draws: int) -> tuple[float, float, float, float]:
        """What gives the probability of any row in a draw by hardness.

        Returns:
            Factor, lowest and highest weight of a scored row, whose probability is the factor times its
            weight within these bounds; probability of an unscored row.
        """
        part, under, limit = self._cut(draws)
        total = (self._cumulative[under - 1] if under else 0.0) + limit * (len(self._weight) - under)
        return part / max(total, TINY), 0.0 if under else limit, limit, (1.0 - part) / max(self._scored.unscored, 1)

    @property
    def place(self) -> NDArray[Any]:
        """(s,) positions of the scored rows among those of the class."""
        return self._scored.place
