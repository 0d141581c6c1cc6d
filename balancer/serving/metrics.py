"""Prometheus metrics. With several workers they are summed (`PROMETHEUS_MULTIPROC_DIR`)."""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

_SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
_SCORES = (0.01, 0.05, *(tenth / 10 for tenth in range(1, 10)), 0.95, 0.99, 1.0)

_REGISTRY = CollectorRegistry()
REQUESTS = Counter("balancer_requests", "Requests by method, route and status", ("method", "route", "status"), registry=_REGISTRY)
REQUEST_SECONDS = Histogram(
    "balancer_request_seconds", "Time from the request to its answer", ("route",), buckets=_SECONDS, registry=_REGISTRY
)
SCORES = Histogram("balancer_score", "Scores of transactions", buckets=_SCORES, registry=_REGISTRY)
ALARMS = Counter("balancer_alarms", "Transactions with an alarm", registry=_REGISTRY)
TRANSACTIONS = Counter("balancer_transactions", "Transactions scored, without repeated ones", registry=_REGISTRY)
REPEATED = Counter("balancer_repeated_transactions", "Transactions that were already stored", registry=_REGISTRY)
LATE = Counter("balancer_late_transactions", "Transactions that arrived after a later one of their entity", registry=_REGISTRY)
LABELS = Counter("balancer_labels", "Labels stored", registry=_REGISTRY)
CONNECTIONS = Gauge("balancer_connections", "Open connections of all workers", registry=_REGISTRY, multiprocess_mode="livesum")
CLOSED_CONNECTIONS = Counter(
    "balancer_closed_connections", "Connections that were closed or refused because of a limit, by reason", ("reason",), registry=_REGISTRY
)
QUEUE_SECONDS = Histogram("balancer_queue_seconds", "Time from the queue of a worker to its batch", buckets=_SECONDS, registry=_REGISTRY)
DATABASE_SECONDS = Histogram(
    "balancer_database_seconds",
    "Time of a transaction of the database, with its repetitions",
    ("kind",),
    buckets=_SECONDS,
    registry=_REGISTRY,
)
BATCH_ROWS = Histogram(
    "balancer_batch_rows",
    "Transactions that were scored and committed together",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 1024),
    registry=_REGISTRY,
)
ALERT_RATE = Gauge("balancer_alert_rate", "Share of alarms among the latest transactions", registry=_REGISTRY, multiprocess_mode="livemax")
DRIFT = Gauge(
    "balancer_drift_psi",
    "Population stability index of a field or of the score, against the training rows; the largest value of the workers",
    ("field",),
    registry=_REGISTRY,
    multiprocess_mode="livemax",
)
DAY_ALERT_RATE = Gauge(
    "balancer_day_alert_rate",
    "Share of alarms on the latest day (UTC) with enough transactions",
    registry=_REGISTRY,
    multiprocess_mode="livemostrecent",
)
DAY_EXPECTED_FRAUDS = Gauge(
    "balancer_day_expected_frauds",
    "Frauds of that day that calibrated scores let expect",
    registry=_REGISTRY,
    multiprocess_mode="livemostrecent",
)
DAY_PRECISION = Gauge(
    "balancer_day_estimated_precision",
    "Precision of the alarms of that day, estimated from calibrated scores",
    registry=_REGISTRY,
    multiprocess_mode="livemostrecent",
)
DAY_DRIFT = Gauge(
    "balancer_day_largest_drift_psi",
    "Largest population stability index of a field or of the score on that day",
    registry=_REGISTRY,
    multiprocess_mode="livemostrecent",
)


def render_metrics() -> bytes:
    """Render the metrics in the text format of Prometheus."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return bytes(generate_latest(_REGISTRY))
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return bytes(generate_latest(registry))
