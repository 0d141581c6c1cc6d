"""imbalanced-learn's interface to the policy: a table goes in, a resampled table comes out, for any model behind it.

    make_pipeline(AdaptiveResampler(policy="auto"), RandomForestClassifier())      # imblearn.pipeline

Special: not only how many rows of each class, but *which*. A small learner is trained in stages under the policy, with a held-out part to
tell it how that goes; by the weights it ends with, rows of the commonest class that the learner takes for another one come more often, easy
ones less. Rows are drawn by systematic resampling: each comes the whole part of its expected number of times, or once more, so a class that
is drawn evenly loses no row as long as it is not to shrink. Nothing is synthesised, so every row of the result is a row of the table, in
the container and dtypes it had.

A pipeline resamples in ``fit`` alone; what its model says is then not a probability at the shares of the table. AdaptiveClassifier
(:mod:`balancer.integrations.classifier`) corrects that, and adapts while the model itself is training: where the model is a classifier of
scikit-learn's kind, prefer it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from imblearn.base import BaseSampler
from imblearn.utils import check_target_type
from numpy.typing import NDArray
from sklearn.utils import check_consistent_length, check_random_state, get_tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from balancer.errors import InputError
from balancer.integrations.holdout import hold_out
from balancer.integrations.staged import StagedEstimator, default_learner, spread_rows, train_in_stages
from balancer.integrations.tables import is_frame, label_codes, numeric_matrix, take_rows
from balancer.sampling.core import SamplerCore
from balancer.sampling.observation import Observation
from balancer.sampling.policies import Policy
from balancer.sampling.seeding import generator
from balancer.sampling.weights import Floats, SamplingWeights

Strategy = str | float | Mapping[Any, int] | Callable[[NDArray[Any]], Mapping[Any, int]]


class AdaptiveResampler(BaseSampler):  # type: ignore[misc]  # imbalanced-learn ships no types
    """Resamples a table by a sampling policy.

    Parameters
    ----------
    policy
        ``auto`` (the learned one that comes with the package), ``constant`` (``constant:share=.2,hardness=1``), ``rule``, the folder of a
        learned policy, or an object with ``name`` and ``act``.
    estimator
        Classifier that scores rows for the policy, cloned before; None: LightGBM with 100 small trees, for which columns that are no numbers
        are coded. One of your own sees the table as it is.
    sampling_strategy
        ``auto``: rows per class as the policy wants. Otherwise the policy only decides which rows of a class: a dict of rows per class (other
        classes keep their number), a function from ``y`` to such a dict, or, of two classes, the number of rows of the rarer class divided
        by that of the other.
    epochs
        How often the policy acts.
    n_samples
        Rows of the result: a whole number, a fraction of the rows given, or None for as many.
    validation_fraction
        Share of the rows that the learner is measured on; they are drawn from like all others.
    random_state
        Of the held-out part, the learner and the draw.

    Attributes
    ----------
    sampling_strategy_
        Rows of each class in the result, a dict by class.
    sample_indices_
        (m,) drawn rows, ascending, so the order of the table (of time, say) stays.
    weights_
        :class:`~balancer.sampling.weights.SamplingWeights` the policy ended with, shares in the order of ``classes_``.
    row_weights_
        (n,) how often each row is expected in the result.
    classes_, n_features_in_, feature_names_in_
        As everywhere in scikit-learn; names only where a frame was given.
    history_
        One dict per epoch: ``stage``, ``share`` (by class), ``hardness``, ``floor``, and on validation after it ``f1`` and ``average_precision``.
    notes_
        What was done otherwise than asked, one sentence each.

    Raises
    ------
    InputError
        By ``fit`` and ``fit_resample``: a parameter out of range, one class only, a missing label, an unknown policy or class.

    >>> from sklearn.datasets import make_classification
    >>> X, y = make_classification(1000, weights=[.9], flip_y=0, random_state=0)
    >>> sampler = AdaptiveResampler("constant:share=.25", epochs=2, n_samples=.5, random_state=0)
    >>> X_new, y_new = sampler.fit_resample(X, y)
    >>> X_new.shape, sampler.sampling_strategy_
    ((500, 20), {0: 375, 1: 125})
    """

    _sampling_type = "bypass"

    def __init__(
        self,
        policy: str | Path | Policy = "auto",
        *,
        estimator: Any = None,
        sampling_strategy: Strategy = "auto",
        epochs: int = 8,
        n_samples: int | float | None = None,
        validation_fraction: float = 0.2,
        random_state: Any = None,
    ) -> None:
        super().__init__(sampling_strategy=sampling_strategy)
        self.policy = policy
        self.estimator = estimator
        self.epochs = epochs
        self.n_samples = n_samples
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    def fit(self, X: Any, y: Any, **params: Any) -> Self:
        """Learn the weights of the rows of ``X`` (n, F) with labels ``y``, without drawing any; ``params`` must be empty."""
        self._fit_resample(X, y, **params)
        return self

    def fit_resample(self, X: Any, y: Any, **params: Any) -> tuple[Any, Any]:
        """Resampled ``X`` and ``y``, in the containers and dtypes they came in (a pandas index goes along); ``params`` must be empty."""
        rows = self._fit_resample(X, y, **params)
        # scikit-learn's COO and other forms that can't be indexed come back as CSR, as from imbalanced-learn.
        table = X.tocsr() if hasattr(X, "tocsr") and X.format not in ("csr", "csc") else X
        return take_rows(table, rows), take_rows(y, rows)

    def _fit_resample(self, X: Any, y: Any, **params: Any) -> NDArray[np.int64]:
        if params:
            raise InputError(f"AdaptiveResampler takes no {', '.join(params)}; which rows count for more is the policy's to choose")
        features = self._features(X)
        classes, codes = self._labels(features, y)
        counts = np.bincount(codes)
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        held = hold_out(codes, self.validation_fraction, parts=1, shuffle=True, seed=seed, names=[str(name) for name in classes])
        learner = default_learner() if self.estimator is None else self.estimator
        train_X = take_rows(features, held.train)
        staged = StagedEstimator(learner, train_X, codes[held.train], classes, staging="auto", stages=self.epochs, passes=1, seed=seed)
        sampler = staged.make_sampler(self.policy)
        wanted = self._class_rows(np.asarray(classes), counts)
        reward = held.parts[0]
        stages = train_in_stages(staged, sampler, train_X, take_rows(features, reward), codes[reward])

        weights = sampler.weights
        row_weights = _row_weights(codes, weights, staged.score(features), sampler.num_samples)
        number = _whole_rows(weights.share, self._total(len(codes), len(classes))) if wanted is None else wanted
        mass = np.bincount(codes, row_weights, len(classes))
        expected = row_weights * (number / mass)[codes]
        drawn = [np.flatnonzero(codes == c) for c in range(len(classes))]
        rows = np.sort(np.concatenate([own[spread_rows(expected[own], generator(seed, "draw", c))] for c, own in enumerate(drawn)]))

        self.classes_ = classes
        self.sampling_strategy_ = dict(zip(classes.tolist(), number.tolist(), strict=True))
        self.weights_ = weights
        self.row_weights_ = expected
        self.history_ = [stage.figures(number, classes) for number, stage in enumerate(stages, 1)]
        self.notes_ = [*held.notes, *sampler.notes]
        self.sample_indices_ = rows
        return rows

    def _features(self, X: Any) -> Any:
        """What the learner sees."""
        table = X if is_frame(X) or hasattr(X, "tocsr") else np.asarray(X)
        if is_frame(X) or table.dtype.kind in "OUSmM":
            validate_data(self, table, reset=True, skip_check_array=True)
        else:
            tags = self.__sklearn_tags__().input_tags
            finite = "allow-nan" if tags.allow_nan else True
            table = validate_data(self, table, reset=True, accept_sparse=["csr", "csc"] if tags.sparse else False, ensure_all_finite=finite)
        return numeric_matrix(table) if self.estimator is None else table

    def _labels(self, X: Any, y: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
        if y is None:
            raise InputError("AdaptiveResampler requires y to be passed, but the target y is None")
        check_consistent_length(X, y)
        if len(np.shape(y)) == 1:
            coded = label_codes(y)  # missing labels first: scikit-learn would stumble over them
            check_classification_targets(np.asarray(y))
            return coded
        check_classification_targets(np.asarray(y))
        return label_codes(check_target_type(np.asarray(y)))

    def _total(self, rows: int, num_classes: int) -> int:
        """Rows of the result."""
        wanted = self.n_samples
        if wanted is None:
            return rows
        whole = isinstance(wanted, (int, np.integer)) and not isinstance(wanted, bool)
        if not whole and not (isinstance(wanted, (float, np.floating)) and 0 < wanted < np.inf):
            raise InputError(f"n_samples must be a whole number of rows, a fraction above 0 of the rows given, or None, not {wanted!r}")
        total = int(wanted) if whole else round(float(wanted) * rows)
        if total < num_classes:
            raise InputError(f"n_samples {wanted!r} leaves {total} rows for {num_classes} classes; give at least one row for each")
        return total

    def _class_rows(self, classes: NDArray[Any], counts: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """(K,) rows per class that ``sampling_strategy`` asks for; None: the policy's to choose."""
        strategy = self.sampling_strategy
        total = self._total(int(counts.sum()), len(classes))
        if isinstance(strategy, str):
            if strategy != "auto":
                raise InputError(f"sampling_strategy must be 'auto', a dict of rows per class, a function or a ratio, not {strategy!r}")
            return None
        if isinstance(strategy, (float, int, np.floating)) and not isinstance(strategy, bool):
            if len(classes) != 2 or not 0 < strategy <= 1:
                raise InputError(
                    f"sampling_strategy {strategy} is a ratio: it must lie in (0, 1] and needs two classes, y has {len(classes)}"
                )
            rare = float(strategy) / (1.0 + float(strategy))
            share = np.array([rare, 1 - rare]) if counts[0] < counts[1] else np.array([1 - rare, rare])
            return _whole_rows(share, total)
        if self.n_samples is not None:
            raise InputError("n_samples and rows per class in sampling_strategy contradict each other; give one of them")
        wanted = strategy(np.repeat(classes, counts)) if callable(strategy) else strategy
        if not isinstance(wanted, Mapping):
            raise InputError(
                f"sampling_strategy must be 'auto', a dict of rows per class, a function that gives one, or a ratio, not {wanted!r}"
            )
        number = counts.copy()
        for name, rows in wanted.items():
            place = np.flatnonzero(classes == name)
            if not len(place):
                raise InputError(
                    f"sampling_strategy names class {name!r}, which y does not have; it has {', '.join(map(repr, classes.tolist()))}"
                )
            if isinstance(rows, bool) or not isinstance(rows, (int, np.integer)) or rows < 1:
                raise InputError(f"sampling_strategy must give class {name!r} a whole number of rows, at least 1, not {rows!r}")
            number[place[0]] = rows
        return number

    def _more_tags(self) -> dict[str, Any]:
        return {"X_types": ["2darray", "sparse", "dataframe"], "sample_indices": True}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.sampler_tags.sample_indices = True
        learner = default_learner() if self.estimator is None else self.estimator
        if hasattr(learner, "__sklearn_tags__") and not isinstance(learner, type):
            # Drawing works on anything; what may be in a table is what the learner takes.
            inner = get_tags(learner).input_tags
            tags.input_tags.allow_nan, tags.input_tags.sparse = inner.allow_nan, inner.sparse
            tags.input_tags.string = self.estimator is None or inner.string
        return tags


@dataclass(frozen=True)
class _Fixed:
    """A policy that gives the weights that another one ended with."""

    weights: SamplingWeights
    name: str = "fixed"

    def act(self, observation: Observation) -> SamplingWeights:  # answers to the interface
        return self.weights


def _row_weights(codes: NDArray[np.int64], weights: SamplingWeights, score: Floats, num_samples: int) -> Floats:
    """(n,) expected draws of all rows, held-out ones too, with mean 1."""
    # Policies speak of the commonest class first, ties in the order of the classes; `weights` are in the order of the classes.
    order = np.argsort(-np.bincount(codes), kind="stable")
    fixed = _Fixed(SamplingWeights(weights.share[order], weights.hardness, weights.floor))
    sampler = SamplerCore(codes, policy=fixed, epochs=1, num_samples=num_samples)
    sampler.update(codes, score, rows=np.arange(len(codes)), row_score=score)
    return sampler.row_weights()


def _whole_rows(share: Floats, total: int) -> NDArray[np.int64]:
    """(K,) whole numbers of rows, at least one each, that sum to ``total``, as close to ``share`` as can be (largest remainders)."""
    exact = share * total
    rows = np.floor(exact).astype(np.int64)
    rows[np.argsort(rows - exact, kind="stable")[: total - int(rows.sum())]] += 1
    while rows.min() < 1:
        rows[rows.argmax()] -= 1
        rows[rows.argmin()] += 1
    return rows
