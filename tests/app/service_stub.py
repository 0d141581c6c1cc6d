"""A small HTTP server that answers as a running service does, from fixed numbers."""

from __future__ import annotations

import http.server
import json
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date, timedelta
from typing import Any

DAY: dict[str, Any] = {
    "day": "2026-05-02",
    "model": "m",
    "transactions": 1000,
    "alert_rate": 0.02,
    "estimated_precision": {"value": 0.4, "interval": [0.3, 0.5]},
    "true_precision": {"value": None, "interval": None},
    "expected_frauds": {"value": 12.0, "interval": [5.0, 19.0]},
    "largest_drift": {"field": "amount", "index": 0.3},
    "drift": {"amount": 0.3, "score": 0.1},
    "fields_changed": ["amount"],
}
BEFORE = DAY | {"day": "2026-05-01", "alert_rate": 0.01, "largest_drift": {"field": "amount", "index": 0.1}, "fields_changed": []}
METRICS = """# HELP balancer_requests_total Requests
balancer_requests_total{method="POST",route="/v1/score",status="200"} 90.0
balancer_requests_total{method="POST",route="/v1/score",status="503"} 10.0
balancer_requests_total{method="GET",route="/metrics",status="200"} 5.0
balancer_request_seconds_bucket{le="0.001",route="/v1/score"} 0.0
balancer_request_seconds_bucket{le="0.002",route="/v1/score"} 50.0
balancer_request_seconds_bucket{le="0.01",route="/v1/score"} 100.0
balancer_request_seconds_bucket{le="+Inf",route="/v1/score"} 100.0
balancer_transactions_total 1000.0
balancer_alarms_total 20.0
no number
"""


def measured(value: float | None, low: float = 0.0, high: float = 1.0) -> dict[str, Any]:
    """A number with its interval, as the service gives it."""
    return {"value": value, "interval": None if value is None else [low, high]}


def side(name: str) -> dict[str, Any]:
    """The metrics of one of two models that are compared."""
    metrics = ("alert_rate", "average_precision", "precision", "recall", "false_alarms_per_10k")
    return {"name": name, "digest": "d", "alarms": 3} | {metric: measured(0.5) for metric in metrics}


COMPARISON: dict[str, Any] = {
    "rows": 900,
    "agreement": measured(0.98),
    "labelled": 300,
    "frauds": 20,
    "champion": side("mine"),
    "challenger": side("second"),
    "average_precision_difference": measured(0.04, 0.01, 0.07),
}
ANSWERS: dict[str, Any] = {
    "/v1/monitoring": {"days": [DAY, BEFORE], "notes": ["a note"]},
    "/v1/models": {"in_service": "mine", "challenger": "second", "canary_share": 0.05},
    "/v1/models/comparison": COMPARISON,
}


def busy(route: str) -> str:
    """The metrics of a service with some hundred thousand requests."""
    counts = {"0.001": 90_000, "0.002": 611_000, "0.005": 709_000, "0.01": 718_600, "+Inf": 719_300}
    buckets = [f'balancer_request_seconds_bucket{{le="{bound}",route="{route}"}} {count}' for bound, count in counts.items()]
    lines = [
        f'balancer_requests_total{{method="POST",route="{route}",status="200"}} 719290',
        f'balancer_requests_total{{method="POST",route="{route}",status="503"}} 10',
        "balancer_transactions_total 719290",
        "balancer_alarms_total 7912",
    ]
    return "\n".join([*lines, *buckets, ""])


def month(days: int = 30) -> dict[str, Any]:
    """The answers of a service that has decided for some weeks, with two models and late labels."""
    found = []
    for back in range(days):
        wave = math.sin(back / 3)
        for model, shift in (("mine", 0.0), ("second", 0.003)):
            labelled = back > days // 2
            found.append(
                DAY
                | {
                    "day": str(date(2026, 5, 30) - timedelta(days=back)),
                    "model": model,
                    "transactions": 24_000 + round(1_500 * wave),
                    "alert_rate": 0.011 + 0.001 * wave + shift,
                    "estimated_precision": measured(0.62 + 0.05 * wave, 0.5, 0.7),
                    "true_precision": measured(0.6 + 0.06 * wave, 0.5, 0.7) if labelled else measured(None),
                    "expected_frauds": measured(170.0 + 9 * wave, 150.0, 190.0),
                    "largest_drift": {"field": "amount", "index": 0.08 + 0.2 * math.exp(-back / 2)},
                    "drift": {"amount": 0.08 + 0.2 * math.exp(-back / 2)},
                    "fields_changed": ["amount"] if back == 0 else [],
                }
            )
    sides = {
        "champion": ("mine", 0.0110, 0.731, 0.604, 0.842, 43.0),
        "challenger": ("second", 0.0140, 0.762, 0.552, 0.871, 63.0),
    }
    compared = COMPARISON | {"rows": 34_800, "labelled": 12_400, "frauds": 214, "agreement": measured(0.994, 0.993, 0.995)}
    compared["average_precision_difference"] = measured(0.031, 0.008, 0.055)
    for role, (name, alarms, average, precision, recall, false) in sides.items():
        values = {"alert_rate": alarms, "average_precision": average, "precision": precision, "recall": recall}
        shown = {key: measured(value, value * 0.95, min(1.0, value * 1.05)) for key, value in values.items()}
        compared[role] = side(name) | shown | {"false_alarms_per_10k": measured(false, 0.9 * false, 1.1 * false)}
    return ANSWERS | {"/v1/monitoring": {"days": found, "notes": []}, "/v1/models/comparison": compared}


@contextmanager
def answering(answers: Mapping[str, Any] = ANSWERS, *, metrics: str = METRICS, key: str = "right") -> Iterator[str]:
    """Answer to requests with the key; yield the address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith("/else"):
                self.send_response(302)
                self.send_header("Location", "/v1/monitoring")
                self.end_headers()
                return
            allowed = self.headers["authorization"] == f"Bearer {key}"
            content = metrics.encode() if path == "/metrics" else json.dumps(answers.get(path, {})).encode()
            self.send_response(200 if allowed else 403)
            self.send_header("Content-Length", str(len(content) if allowed else 0))
            self.end_headers()
            self.wfile.write(content if allowed else b"")

        def log_message(self, *_: object) -> None:
            """Be quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
