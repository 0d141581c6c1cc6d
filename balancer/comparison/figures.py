"""From the scores of a trained student to the figures of a cell: every policy is calibrated, thresholded and judged by the same lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from balancer.data.dataset import Dataset
from balancer.data.split import Split
from balancer.evaluation.metrics import evaluate_scores
from balancer.inference.decision import Decision, fraud_score


@dataclass(frozen=True)
class JudgedRows:
    """What the figures of a window are taken from."""

    classes: tuple[str, ...]
    """Names, the negative one first."""
    threshold_label: np.ndarray
    """(n,) class index on the threshold half of validation."""
    test_label: np.ndarray
    """(t,)."""
    test_time: np.ndarray
    """(t,) seconds."""
    test_entity: np.ndarray | None
    """(t,) code, or None without entities."""

    @classmethod
    def of(cls, dataset: Dataset) -> JudgedRows:
        """Those of a data set that was split."""
        store, held, test = dataset.store, dataset.rows(Split.THRESHOLD), dataset.rows(Split.TEST)
        entity = store.entity[test] if dataset.schema.spec.entity is not None else None
        return cls(dataset.schema.classes, store.label[held], store.label[test], store.time[test], entity)

    def figures(self, threshold_score: np.ndarray, test_score: np.ndarray) -> dict[str, Any]:
        """The keys of :func:`balancer.evaluation.metrics.evaluate_scores` for raw scores (rows, K) or (rows,): calibration and threshold come from the
        threshold half, the test rows are judged once.
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
