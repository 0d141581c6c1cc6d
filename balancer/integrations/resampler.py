"""Resample a table by a sampling policy, with the interface of imbalanced-learn, for any model.

    make_pipeline(AdaptiveResampler(policy="auto"), RandomForestClassifier())      # imblearn.pipeline

The policy decides not only how many rows of each class are drawn, but also which. A small learner is trained
for some epochs with weights from the policy, and evaluated on held-out rows. With the final weights, rows of
the most frequent class that the learner confuses with another class are drawn more often, and easy ones less
often. Rows are drawn by systematic resampling: the number of draws of a row is its expected number, rounded
down or up. So a class that is drawn evenly and does not shrink loses no row. No row is synthesized: every row
of the result is a row of the table, in the same container and with the same dtypes.

A pipeline resamples only in ``fit``, so the model's scores are no probabilities for the class shares of the
table. AdaptiveClassifier (:mod:`balancer.integrations.classifier`) corrects that, and adapts while the model
itself is trained. Prefer it if the model is a scikit-learn classifier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from imblearn.base import BaseSampler
from imblearn.utils import check_target_type
from numpy.typing import NDArray
from sklearn.utils import check_consistent_length, check_random_state, get_tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from balancer.deprecation import UNSET, renamed_argument
from balancer.errors import InputError
from balancer.integrations.holdout import hold_out
from balancer.integrations.staged import StagedEstimator, default_learner, systematic_rows
from balancer.integrations.staged_training import Rows, train_epochs
from balancer.integrations.tables import is_frame, label_codes, numeric_matrix, take_rows
from balancer.sampling.core import SamplerCore
from balancer.sampling.policies import Policy
from balancer.sampling.seeding import generator
from balancer.sampling.weights import Floats, SamplingWeights

Strategy = str | float | Mapping[Any, int] | Callable[[NDArray[Any]], Mapping[Any, int]]


class AdaptiveResampler(BaseSampler):  # type: ignore[misc]  # imbalanced-learn ships no types
    """Resample a table by a sampling policy.

    Parameters
    ----------
    policy
        ``auto`` (the best policy of the package), ``constant`` (or ``constant:share=.2,hardness=1``),
        ``rule``, the folder of a learned policy, or an object with ``name`` and ``act``.
    estimator
        Classifier that scores rows for the policy; it is cloned first. It receives the table as it was given.
        None: LightGBM with 100 small trees; columns that are no numbers are encoded for it.
    sampling_strategy
        ``auto``: the policy decides how many rows of each class are drawn. Otherwise it only decides which
        rows of a class: a dict of the number of rows by class (other classes keep their number), a function
        from ``y`` to such a dict, or, for two classes, the number of rows of the less frequent class divided
        by that of the other.
    epochs
        Number of epochs: how often the policy sets the weights.
    num_samples
        Rows of the result: a whole number, a fraction of the rows of the table, or None for the same number.
    validation_fraction
        Share of the rows that the learner is evaluated on. They can be drawn like all others.
    random_state
        Seed of the split, the learner and the draw.
    n_samples
        Deprecated name of ``num_samples``.

    Attributes
    ----------
    sampling_strategy_
        Number of rows of each class in the result, a dict by class.
    sample_indices_
        (m,) drawn rows in ascending order, so the order of the table (of time, for example) is kept.
    weights_
        Final :class:`~balancer.sampling.weights.SamplingWeights`, shares in the order of ``classes_``.
    row_weights_
        (n,) expected number of draws of each row.
    classes_, n_features_in_, feature_names_in_
        As for all scikit-learn estimators; names only if a data frame was given.
    history_
        A dict for each epoch: ``epoch``, ``share`` (by class), ``hardness``, ``floor``, and the validation
        metrics after it, ``f1`` and ``average_precision``.
    notes_
        Deviations from what was asked for, a sentence each.

    Raises
    ------
    InputError
        By ``fit`` and ``fit_resample``: a parameter is out of range, there is one class only, a label is
        missing, or the policy or a class is unknown.

    >>> from sklearn.datasets import make_classification
    >>> X, y = make_classification(1000, weights=[.9], flip_y=0, random_state=0)
    >>> sampler = AdaptiveResampler("constant:share=.25", epochs=2, num_samples=.5, random_state=0)
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
        num_samples: int | float | None = None,
        validation_fraction: float = 0.2,
        random_state: Any = None,
        n_samples: int | float | str | None = UNSET,
    ) -> None:
        super().__init__(sampling_strategy=sampling_strategy)
        self.policy = policy
        self.estimator = estimator
        self.epochs = epochs
        self.num_samples = num_samples
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.n_samples = n_samples

    def fit(self, X: Any, y: Any, **params: Any) -> Self:
        """Learn the weights of the rows of ``X`` (n, F) with labels ``y`` (n,), without returning drawn rows.

        ``params`` must be empty.
        """
        self._fit_resample(X, y, **params)
        return self

    def fit_resample(self, X: Any, y: Any, **params: Any) -> tuple[Any, Any]:
        """Resample ``X`` (n, F) and ``y`` (n,).

        ``params`` must be empty.

        Returns
        -------
        Drawn rows of ``X`` and ``y``, in the same containers and with the same dtypes; the index of a pandas
        frame is kept.
        """
        rows = self._fit_resample(X, y, **params)
        # COO and other sparse formats that can't be indexed become CSR, as in imbalanced-learn.
        table = X.tocsr() if hasattr(X, "tocsr") and X.format not in ("csr", "csc") else X
        return take_rows(table, rows), take_rows(y, rows)

    def _fit_resample(self, X: Any, y: Any, **params: Any) -> NDArray[np.int64]:
        if params:
            raise InputError(f"AdaptiveResampler takes no {', '.join(params)}, because the policy weights the rows; leave it out")
        num_samples = renamed_argument(AdaptiveResampler, "n_samples", "num_samples", self.num_samples, self.n_samples, stacklevel=3)
        features = self._features(X)
        classes, codes = self._labels(features, y)
        counts = np.bincount(codes)
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        held = hold_out(codes, self.validation_fraction, parts=1, shuffle=True, seed=seed, names=[str(name) for name in classes])
        learner = default_learner() if self.estimator is None else self.estimator
        train_X = take_rows(features, held.train)
        staged = StagedEstimator(
            learner, train_X, codes[held.train], classes, staging="auto", epochs=self.epochs, passes=1, seed=seed, compensated=False
        )
        sampler = staged.make_sampler(self.policy)
        requested = self._class_rows(np.asarray(classes), counts, num_samples)
        reward = held.parts[0]
        trained = train_epochs(staged, sampler, train_X, Rows(take_rows(features, reward), codes[reward])).epochs

        weights = sampler.weights
        row_weights = _row_weights(codes, weights, staged.score(features), sampler.num_samples)
        number = _whole_rows(weights.share, _total(num_samples, len(codes), len(classes))) if requested is None else requested
        total_weight = np.bincount(codes, row_weights, len(classes))
        expected = row_weights * (number / total_weight)[codes]
        drawn = []
        for c in range(len(classes)):
            class_rows = np.flatnonzero(codes == c)
            drawn.append(class_rows[systematic_rows(expected[class_rows], generator(seed, "draw", c))])
        rows = np.sort(np.concatenate(drawn))

        self.classes_ = classes
        self.sampling_strategy_ = dict(zip(classes.tolist(), number.tolist(), strict=True))
        self.weights_ = weights
        self.row_weights_ = expected
        self.history_ = [epoch.metrics(number, classes) for number, epoch in enumerate(trained, 1)]
        self.notes_ = [*held.notes, *sampler.notes]
        self.sample_indices_ = rows
        return rows

    def _features(self, X: Any) -> Any:
        """The table in the form that the learner receives."""
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
            coded = label_codes(y)  # reports missing labels; scikit-learn's check would call them an unknown type
            check_classification_targets(np.asarray(y))
            return coded
        check_classification_targets(np.asarray(y))
        return label_codes(check_target_type(np.asarray(y)))

    def _class_rows(self, classes: NDArray[Any], counts: NDArray[np.int64], num_samples: Any) -> NDArray[np.int64] | None:
        """Rows per class (K,) that ``sampling_strategy`` asks for; None if the policy decides."""
        strategy = self.sampling_strategy
        total = _total(num_samples, int(counts.sum()), len(classes))
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
        if num_samples is not None:
            raise InputError("num_samples and rows per class in sampling_strategy contradict each other; give one of them")
        requested = strategy(np.repeat(classes, counts)) if callable(strategy) else strategy
        if not isinstance(requested, Mapping):
            raise InputError(
                f"sampling_strategy must be 'auto', a dict of rows per class, a function that gives one, or a ratio, not {requested!r}"
            )
        number = counts.copy()
        for name, rows in requested.items():
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
            # Drawing works on any table, so the learner decides which values are allowed.
            inner = get_tags(learner).input_tags
            tags.input_tags.allow_nan, tags.input_tags.sparse = inner.allow_nan, inner.sparse
            tags.input_tags.string = self.estimator is None or inner.string
        return tags


def _row_weights(codes: NDArray[np.int64], weights: SamplingWeights, score: Floats, num_samples: int) -> Floats:
    """Expected draws (n,) of all rows, also the held-out ones, with mean 1."""
    sampler = SamplerCore(codes, policy=weights, epochs=1, num_samples=num_samples)
    sampler.update(codes, score, rows=np.arange(len(codes)), row_score=score)
    return sampler.row_weights()


def _total(num_samples: Any, rows: int, num_classes: int) -> int:
    """Number of rows of the result, for a table of ``rows`` rows."""
    if num_samples is None:
        return rows
    whole = isinstance(num_samples, (int, np.integer)) and not isinstance(num_samples, bool)
    if not whole and not (isinstance(num_samples, (float, np.floating)) and 0 < num_samples < np.inf):
        raise InputError(
            f"num_samples must be a whole number of rows, a fraction above 0 of the table's rows, or None, not {num_samples!r}"
        )
    total = int(num_samples) if whole else round(float(num_samples) * rows)
    if total < num_classes:
        raise InputError(f"num_samples {num_samples!r} leaves {total} rows for {num_classes} classes; give at least one row for each")
    return total


def _whole_rows(share: Floats, total: int) -> NDArray[np.int64]:
    """Round ``share * total`` (K,) to whole numbers of at least 1 that sum to ``total``.

    The method is that of largest remainders.
    """
    exact = share * total
    rows = np.floor(exact).astype(np.int64)
    rows[np.argsort(rows - exact, kind="stable")[: total - int(rows.sum())]] += 1
    while rows.min() < 1:
        rows[rows.argmax()] -= 1
        rows[rows.argmin()] += 1
    return rows
