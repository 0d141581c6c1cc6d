"""From scores to the figures of a cell: calibration, threshold and metrics, the same for every treatment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from balancer.data.dataset import Dataset
from balancer.data.split import Split
from balancer.evaluation.metrics import evaluate_scores
from balancer.inference.decision import Decision, fraud_score


@dataclass(frozen=True)
class EvaluatedRows:
    """The labelled rows of a fold from which figures are computed."""

    classes: tuple[str, ...]
    """Names, the negative class first."""
    threshold_label: np.ndarray
    """(n,) class index of the threshold half of validation."""
    test_label: np.ndarray
    """(t,) class index of the test rows."""
    test_time: np.ndarray | None
    """(t,) seconds, or None without times."""
    test_entity: np.ndarray | None
    """(t,) code, or None without entities."""

    @classmethod
    def of(cls, dataset: Dataset) -> EvaluatedRows:
        """Those of a data set that has been split."""
        store, threshold, test = dataset.store, dataset.rows(Split.THRESHOLD), dataset.rows(Split.TEST)
        entity = store.entity[test] if dataset.schema.spec.entity is not None else None
        time = store.time[test] if dataset.schema.spec.time is not None else None
        return cls(dataset.schema.classes, store.label[threshold], store.label[test], time, entity)

    def figures(self, threshold_score: np.ndarray, test_score: np.ndarray) -> dict[str, Any]:
        """Compute the figures of raw scores.

        Calibration and threshold are fitted on the threshold half; the test rows are used once.

        Args:
            threshold_score: (n, K) or (n,) scores of the threshold half.
            test_score: (t, K) or (t,) scores of the test rows.

        Returns:
            The keys of :func:`balancer.evaluation.metrics.evaluate_scores`.
        """
        decision = Decision.fit(threshold_score, self.threshold_label)
        raw = fraud_score(test_score)
        return evaluate_scores(
            self.test_label,
            decision.calibration.transform(raw),
            threshold=decision.threshold,
            raw_score=raw,
            classes=self.classes,
            time=self.test_time,
            class_scores=decision.calibration.apply(test_score) if test_score.ndim == 2 else None,
            entity=self.test_entity,
        )
