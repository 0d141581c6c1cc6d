"""Training rows in shards: each rank holds the labels of its shards, and knows how many rows the others have.

The number of shards S is fixed when the data are prepared; rank r of W holds the shards r, r + W, r + 2 W,
and so on. Rows are numbered through all shards, one shard after the other. The ranks exchange the number of
rows of each class in each shard, once.

Every shard draws the same number of rows in an epoch. A row of a rarer class is drawn as often as if all rows
were in one table: a shard draws the class in proportion to its rows of it. The commonest class fills the
rest of each shard's draws, so its rows are drawn a little more often in a shard that has few others. The loss
weights of the rows take that into account (:func:`unevenness`). A shard that would have to draw more rows of
the rarer classes than it may draw at all draws those alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from balancer.errors import InputError, UnsupportedError
from balancer.sampling.labels import LabelCodes, count_labels, union_of_classes
from balancer.sampling.ranks import Group, agree, gather_texts
from balancer.sampling.row_sampler import RowSampler, is_chosen
from balancer.sampling.tilt import HardnessTilt
from balancer.sampling.weights import Floats, SamplingWeights, class_prior, class_weights


def shard_shares(share: Floats, counts: NDArray[np.int64]) -> Floats:
    """(S, K) share of each class among the draws of each shard.

    Args:
        share: (K,) shares of the classes, the commonest first.
        counts: (S, K) rows of each class in each shard; each shard has rows of class 0.

    >>> shard_shares(np.array([0.8, 0.2]), np.array([[90, 1], [90, 3]])).round(2).tolist()
    [[0.9, 0.1], [0.7, 0.3]]
    """
    result = len(counts) * np.asarray(share) * counts / np.maximum(counts.sum(axis=0), 1)
    result[:, 1:] /= np.maximum(result[:, 1:].sum(axis=1), 1.0)[:, None]
    result[:, 0] = np.maximum(1.0 - result[:, 1:].sum(axis=1), 0.0)
    return np.asarray(result)


def unevenness(share: Floats, counts: NDArray[np.int64]) -> Floats:
    """(S, K) how often a row is drawn in one table, relative to how often it is drawn in its shard.

    Args:
        share: As for :func:`shard_shares`.
        counts: As for :func:`shard_shares`.
    """
    drawn = shard_shares(share, counts)
    wanted = len(counts) * np.asarray(share) * counts / np.maximum(counts.sum(axis=0), 1)
    return np.where(drawn > 0, wanted / np.where(drawn > 0, drawn, 1.0), 1.0)


class ShardedLabels:
    """Labels of the rows of all shards, of which this rank holds some.

    Args:
        shards: Labels (n,) of each shard that this rank holds, by its number.
        num_shards: S, number of shards on all ranks together.
        group: The ranks.
        unlabelled: As for :class:`~balancer.sampling.labels.LabelCodes`.

    Raises:
        InputError: ``num_shards`` is no multiple of the number of ranks, a rank holds other shards, labels
            are wrong, or a shard has no row of the commonest class. All ranks raise it.
    """

    def __init__(self, shards: Mapping[int, ArrayLike | Sequence[str]], num_shards: int, group: Group, unlabelled: Any = None) -> None:
        self.unlabelled, self.num_shards = unlabelled, num_shards
        error, found = None, {}
        try:
            _check_shards(shards, num_shards, group)
            found = {number: count_labels(labels, unlabelled, f"labels of shard {number}") for number, labels in sorted(shards.items())}
        except InputError as problem:
            error = problem
        agree(group, error)
        self.ids = list(found)
        """Numbers of the shards of this rank, ascending."""
        own = {number: (_as_json(classes), counts.tolist(), _length(shards[number])) for number, (classes, counts) in found.items()}
        every: dict[int, Any] = {}
        for text in gather_texts(group, json.dumps(own)):
            every |= {int(number): values for number, values in json.loads(text).items()}
        names = [_from_json(every[number][0]) for number in range(num_shards)]
        self._classes = union_of_classes(names)
        if len(self._classes) < 2:
            held = f"one class only ({self._classes.tolist()[0]!r})" if len(self._classes) else "no class, every row is unlabelled"
            raise InputError(f"labels of all shards hold {held}; sampling needs at least two")
        counts = np.zeros((num_shards, len(self._classes)), dtype=np.int64)
        for number, present in enumerate(names):
            if len(present):
                counts[number, np.searchsorted(self._classes, present)] = every[number][1]
        self.order: NDArray[np.int64] = np.argsort(-counts.sum(axis=0), kind="stable")
        self.rank: NDArray[np.int64] = np.argsort(self.order)
        self.shard_counts: NDArray[np.int64] = counts[:, self.order]
        """(S, K) rows of each class in each shard, commonest class first."""
        self.counts: NDArray[np.int64] = self.shard_counts.sum(axis=0)
        self.starts: NDArray[np.int64] = np.cumsum([0, *(every[number][2] for number in range(num_shards))])
        """(S + 1,) number of the first row of each shard."""
        lacking = np.flatnonzero(self.shard_counts[:, 0] == 0)
        if len(lacking):
            common = self.classes[self.order[0]]
            raise InputError(f"shard {lacking[0]} has no row of class {common!r}, the commonest one; prepare fewer or more even shards")
        known = self._classes, counts.sum(axis=0)
        self.parts = {number: LabelCodes(shards[number], unlabelled, known) for number in self.ids}
        """Labels of each shard of this rank."""
        digests: dict[int, str] = {}
        for text in gather_texts(group, json.dumps({number: part.fingerprint for number, part in self.parts.items()})):
            digests |= {int(number): digest for number, digest in json.loads(text).items()}
        self.fingerprint = hashlib.blake2b(json.dumps([digests[n] for n in range(num_shards)]).encode(), digest_size=16).hexdigest()
        """Hexadecimal digest of classes and codes of all shards."""

    def __repr__(self) -> str:
        """Number of rows and shards, and the shards of this rank."""
        return f"ShardedLabels(rows={self.num_rows}, num_shards={self.num_shards}, held={self.ids})"

    @property
    def classes(self) -> list[Any]:
        """The K labels in sorted order, as plain Python values."""
        return list(self._classes.tolist())

    @property
    def num_rows(self) -> int:
        """N, number of rows of all shards, with and without a label."""
        return int(self.starts[-1])

    def places(self, rows: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """The shards of ``rows`` (n,): number, which of the rows, and their numbers within the shard.

        Raises:
            InputError: A row belongs to a shard of another rank.
        """
        shard = np.searchsorted(self.starts, rows, side="right") - 1
        result = []
        for number in np.unique(shard).tolist():
            chosen = np.flatnonzero(shard == number)
            if number not in self.parts:
                raise InputError(
                    f"row {rows[chosen[0]]} belongs to shard {number}, and this rank holds {_listed(self.ids)}; give rows of these shards"
                )
            result.append((number, chosen, rows[chosen] - self.starts[number]))
        return result

    def codes_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) code of each of ``rows`` (n,), -1 without a label.

        Raises:
            InputError: A row belongs to a shard of another rank.
        """
        codes = np.full(len(rows), -1, dtype=np.int64)
        for number, chosen, inside in self.places(rows):
            codes[chosen] = self.parts[number].codes[inside]
        return codes

    def encode(self, labels: ArrayLike | Sequence[str], name: str) -> NDArray[np.int64]:
        """(n,) codes of the labels of other rows; see :meth:`.LabelCodes.encode`."""
        return self.parts[self.ids[0]].encode(labels, name)


class ShardShares:
    """What follows for all shards from the weights of an epoch; that of the last weights is kept.

    Args:
        counts: (S, K) rows of each class in each shard.
    """

    def __init__(self, counts: NDArray[np.int64]) -> None:
        self.counts = counts
        self._last: tuple[SamplingWeights, Floats, Floats, Floats] | None = None

    def of(self, weights: SamplingWeights) -> tuple[Floats, Floats, Floats]:
        """Shares of the classes (K,), their shares in each shard (S, K), and :func:`unevenness` (S, K)."""
        if self._last is None or self._last[0] is not weights:
            share = np.asarray(weights.share / weights.share.sum(), dtype=np.float64)
            self._last = weights, share, shard_shares(share, self.counts), unevenness(share, self.counts)
        return self._last[1:]


class ShardRows(RowSampler):
    """Rows of one shard, drawn so that the rarer classes are drawn as in the whole table.

    Args:
        codes: (n,) code of each row, -1 without a label.
        shares: Shares of the classes in each shard.
        shard: Number of this shard.
    """

    keeps_minority = False

    def __init__(self, codes: NDArray[np.signedinteger[Any]], shares: ShardShares, shard: int) -> None:
        self._shares, self._shard = shares, shard
        super().__init__(codes, shares.counts.shape[1], prior=class_prior(shares.counts.sum(axis=0)), is_part=True)

    def class_share(self, weights: SamplingWeights) -> Floats:
        """(K,) shares of the classes among the draws of this shard."""
        return np.asarray(self._shares.of(weights)[1][self._shard])

    def _chosen_classes(self, weights: SamplingWeights, share: Floats) -> NDArray[np.bool_]:
        return np.asarray(is_chosen(self._shares.of(weights)[0], self.prior))

    def _class_weight(self, weights: SamplingWeights, share: Floats) -> Floats:
        whole, _, uneven = self._shares.of(weights)
        return np.asarray(class_weights(whole, weights.class_importance, self.prior) * uneven[self._shard])


class ShardedRows:
    """Rows of all shards; those of this rank's shards can be drawn.

    Args:
        labels: Labels of the rows.
    """

    keeps_minority = False
    has_age = False

    def __init__(self, labels: ShardedLabels) -> None:
        self._labels = labels
        self.counts = labels.counts
        self._shares = ShardShares(labels.shard_counts)
        self.parts = {number: ShardRows(part.codes, self._shares, number) for number, part in labels.parts.items()}
        """Rows of each shard of this rank."""
        self._terms: Floats | None = None  # (6, K) of the tilt, mean over all shards; None where hardness does not act
        self._scored = False  # whether any rank has scores

    @property
    def prior(self) -> Floats:
        """(K,) class prior of the rows of all shards."""
        return class_prior(self.counts)

    def class_share(self, weights: SamplingWeights) -> Floats:
        """(K,) shares of the classes, normalised."""
        return self._shares.of(weights)[0]

    def probabilities(self, weights: SamplingWeights, draws: int, *, keep_minority: bool = False) -> Floats:
        """Refused: no rank has all rows.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError("weights of all rows need all labels on one process; with shards use sample_weight(rows)")

    def loss_weights(self, rows: NDArray[np.integer[Any]], weights: SamplingWeights, draws: int, *, keep_minority: bool = False) -> Floats:
        """(n,) loss weight of drawn ``rows`` (n,) of this rank; see :meth:`.RowSampler.loss_weights`."""
        result = np.zeros(len(rows))
        for number, chosen, inside in self._labels.places(np.asarray(rows, dtype=np.int64)):
            result[chosen] = self.parts[number].loss_weights(inside, weights, draws // self._labels.num_shards)
        return result

    def refresh(self, rows: NDArray[np.integer[Any]], scores: NDArray[np.floating[Any]]) -> None:
        """Store the scores (n, K) of some rows (n,) of this rank's shards."""
        self._scored = True
        for number, chosen, inside in self._labels.places(np.asarray(rows, dtype=np.int64)):
            self.parts[number].refresh(inside, scores[chosen])

    def share_tilt(self, group: Group, weights: SamplingWeights, draws: int) -> None:
        """Agree with the other ranks on the tilt of the next epoch: the mean over the shards' draws.

        Args:
            group: The ranks.
            weights: The weights that rows are drawn with.
            draws: Rows drawn in the epoch, on all ranks together.
        """
        if not self._scored:
            return
        num_shards, rows = self._labels.num_shards, []
        for number, part in self.parts.items():
            tilt = part.tilt(weights, draws // num_shards, counted=True)
            if tilt is not None:
                rows.append(np.concatenate([[number], tilt.terms.ravel()]))
        shape = 1 + 6 * len(self.counts)
        every = np.concatenate(group.gather(np.array(rows, dtype=np.float64).reshape(len(rows), shape)))
        if not len(every):
            self._terms = None
            return
        every = every[np.argsort(every[:, 0])]  # the order of the sum is the same for any number of ranks
        terms = every[:, 1:].reshape(len(every), 6, len(self.counts))
        share = self._shares.of(weights)[1][every[:, 0].astype(np.int64)][:, None, :]
        known = ~np.isnan(terms)
        total = np.where(known, share, 0.0).sum(axis=0)
        mean = np.where(known, share * np.nan_to_num(terms), 0.0).sum(axis=0) / np.where(total > 0, total, 1.0)
        self._terms = np.where(total > 0, mean, np.nan)

    def tilt(self, weights: SamplingWeights, draws: int, *, counted: bool) -> HardnessTilt | None:
        """What hardness does to a model that is trained on an epoch, as the ranks have agreed."""
        if self._terms is None:
            return None
        terms = self._terms.copy()
        if not counted:
            terms[5] = np.where(np.isnan(terms[5]), np.nan, 1.0)
        return HardnessTilt(weights.hardness, weights.floor, weights.hardness_importance if counted else 0.0, terms)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Stored scores of this rank's shards.

        Returns:
            ``counts`` (S, K); ``shards`` (s,) numbers of the shards; ``ends`` (s,) where the scores of each
            end in ``scored`` and ``error``, which are as in :meth:`.RowSampler.state_dict`; ``terms`` (6, K),
            of length 0 without hardness; ``is_scored`` (1,) whether any rank has scores.
        """
        states = [part.state_dict() for part in self.parts.values()]
        return {
            "counts": self._labels.shard_counts.copy(),
            "shards": np.array(list(self.parts), dtype=np.int64),
            "ends": np.cumsum([len(state["scored"]) for state in states]).astype(np.int64),
            "scored": np.concatenate([state["scored"].astype(np.int64) for state in states]),
            "error": np.concatenate([state["error"] for state in states]),
            "terms": np.zeros((0, len(self.counts))) if self._terms is None else self._terms,
            "is_scored": np.array([self._scored]),
        }

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Restore the scores of :meth:`state_dict`; scores of other ranks' shards are passed over.

        Raises:
            InputError: It was saved for other rows, or lacks a shard of this rank. Nothing has changed then.
        """
        missing = [name for name in ("counts", "shards", "ends", "scored", "error", "terms", "is_scored") if name not in state]
        if missing:
            raise InputError(f"saved sampler state has no {missing[0]!r}; it is not that of a sampler of shards")
        if not np.array_equal(np.asarray(state["counts"]), self._labels.shard_counts):
            raise InputError("saved sampler state is for other shards; continue with the shards that the run was started on")
        is_scored, held = bool(np.asarray(state["is_scored"])[0]), np.asarray(state["shards"]).tolist()
        lacking = [number for number in self.parts if number not in held]
        if is_scored and lacking:
            raise InputError(
                f"saved state holds the scores of {_listed(held)}, this rank needs shard {lacking[0]}; save it on all ranks by "
                "state_dict(gather=True)"
            )
        ends = [0, *np.asarray(state["ends"]).tolist()]
        scored, error, terms = (np.asarray(state[name]) for name in ("scored", "error", "terms"))
        before = {number: part.state_dict() for number, part in self.parts.items()}
        try:
            for place, number in enumerate(held):
                if number in self.parts:
                    there = slice(ends[place], ends[place + 1])
                    own = {"counts": self.parts[number].counts, "scored": scored[there], "error": error[there]}
                    self.parts[number].load_state_dict(own)
        except InputError:
            for number, saved in before.items():
                self.parts[number].load_state_dict(saved)
            raise
        self._scored = is_scored
        self._terms = terms.astype(np.float64) if len(terms) else None


def merged_states(states: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """One state of :meth:`ShardedRows.state_dict` from those of all ranks, by shard."""
    found: dict[int, tuple[NDArray[Any], NDArray[Any]]] = {}
    for state in states:
        starts = [0, *state["ends"].tolist()]
        for place, number in enumerate(state["shards"].tolist()):
            there = slice(starts[place], starts[place + 1])
            found[number] = state["scored"][there], state["error"][there]
    ordered = sorted(found.items())
    return dict(states[0]) | {
        "shards": np.array([number for number, _ in ordered], dtype=np.int64),
        "ends": np.cumsum([len(scored) for _, (scored, _) in ordered]).astype(np.int64),
        "scored": np.concatenate([scored for _, (scored, _) in ordered]),
        "error": np.concatenate([error for _, (_, error) in ordered]),
    }


def _check_shards(shards: Mapping[int, Any], num_shards: int, group: Group) -> None:
    """Refuse shards that are not those of this rank."""
    if num_shards % group.size:
        fits = [size for size in range(1, num_shards + 1) if num_shards % size == 0]
        raise InputError(f"num_shards is {num_shards}, which {group.size} ranks can't share evenly; use {_listed(fits, 'ranks')}")
    wanted = list(range(group.rank, num_shards, group.size))
    if not isinstance(shards, Mapping) or sorted(shards) != wanted:
        given = _listed(sorted(shards)) if isinstance(shards, Mapping) else type(shards).__name__
        raise InputError(
            f"rank {group.rank} of {group.size} must hold {_listed(wanted)} of {num_shards}, not {given}; give shards={{number: labels}} "
            "with the numbers rank, rank + num_replicas, and so on"
        )


def _listed(numbers: Sequence[int], name: str = "shards") -> str:
    shown = ", ".join(map(str, numbers[:10]))
    return f"{name} {shown}{', ...' if len(numbers) > 10 else ''}"


def _length(labels: Any) -> int:
    return len(labels)


def _as_json(classes: NDArray[Any]) -> list[Any]:
    """Classes as values that JSON can hold; bytes are marked."""
    if classes.dtype.kind == "S":
        return [{"bytes": name.decode("latin-1")} for name in classes.tolist()]
    return list(classes.tolist())


def _from_json(values: list[Any]) -> NDArray[Any]:
    names = [value["bytes"].encode("latin-1") if isinstance(value, dict) else value for value in values]
    return np.asarray(names) if names else np.empty(0, dtype=np.int64)
