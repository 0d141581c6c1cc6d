"""What a worker sees go by, told to the metrics: scores, alarms, drift against the training rows."""

from __future__ import annotations

import threading

from balancer.evaluation.drift import HALF_LIFE, LiveDrift
from balancer.serving import metrics
from balancer.serving.scoring.registry import LoadedModel
from balancer.serving.scoring.scorer import Judged

EVERY = 100
"""Rows between two computations of the index."""


class Watch:
    """One per worker; begins anew with each model."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._digest = ""
        self._live: LiveDrift | None = None
        self._alarms, self._weight, self._rows = 0.0, 0.0, 0

    def saw(self, model: LoadedModel, judged: Judged) -> None:
        """Count the transactions that were judged, repetitions apart."""
        with self._lock:
            if model.digest != self._digest:
                self._digest, self._live = model.digest, None if model.reference is None else LiveDrift(model.reference)
                self._alarms = self._weight = 0.0
            metrics.REPEATED.inc(sum(answer["repeated"] for answer in judged.answers))
            for answer in judged.answers:
                values = judged.values.get(answer["id"])
                if values is None or answer["repeated"]:
                    continue
                metrics.TRANSACTIONS.inc()
                metrics.SCORES.observe(answer["score"])
                metrics.ALARMS.inc(answer["decision"])
                metrics.LATE.inc(answer["late_by"] > 0)
                fade = 0.5 ** (1 / HALF_LIFE)
                self._alarms, self._weight = fade * self._alarms + answer["decision"], fade * self._weight + 1
                metrics.ALERT_RATE.set(self._alarms / self._weight)
                self._rows += 1
                if self._live is not None:
                    self._live.add(values, answer["score"])
                    if self._rows % EVERY == 0:
                        for name, index in self._live.indices().items():
                            metrics.DRIFT.labels(name).set(index)
