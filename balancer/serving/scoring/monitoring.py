"""Monitor the scores of a worker: counts, share of alarms, drift against the training rows."""

from __future__ import annotations

import threading

from balancer.evaluation.drift import HALF_LIFE, LiveDrift
from balancer.serving import metrics
from balancer.serving.models.registry import LoadedModel
from balancer.serving.scoring.scorer import ScoringResult

EVERY = 100
"""Rows between two computations of the drift."""


class ScoreMonitor:
    """Updates the metrics of a worker; share of alarms and drift restart with each model."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._digest = ""
        self._drift: LiveDrift | None = None
        self._alarms, self._weight, self._rows = 0.0, 0.0, 0

    def add(self, model: LoadedModel, result: ScoringResult) -> None:
        """Count the transactions of a request; repeated ones are counted separately."""
        with self._lock:
            if model.digest != self._digest:
                self._digest, self._drift = model.digest, None if model.reference is None else LiveDrift(model.reference)
                self._alarms = self._weight = 0.0
            answers = [answer for answer in result.answers if "error" not in answer]
            metrics.REPEATED.inc(sum(answer["repeated"] for answer in answers))
            for answer in answers:
                values = result.values.get(answer["id"])
                if values is None or answer["repeated"]:
                    continue
                metrics.TRANSACTIONS.inc()
                metrics.SCORES.observe(answer["score"])
                metrics.ALARMS.inc(answer["decision"])
                metrics.LATE.inc(answer["late_by"] > 0)
                decay = 0.5 ** (1 / HALF_LIFE)
                self._alarms, self._weight = decay * self._alarms + answer["decision"], decay * self._weight + 1
                metrics.ALERT_RATE.set(self._alarms / self._weight)
                self._rows += 1
                if self._drift is not None:
                    self._drift.add(values, answer["score"])
                    if self._rows % EVERY == 0:
                        for name, index in self._drift.indices().items():
                            metrics.DRIFT.labels(name).set(index)
