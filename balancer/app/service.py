"""What a running service says about itself, for the page Service; without Streamlit.

What is special: the key comes from the environment alone and is sent to the configured address alone, never
to the browser and never to another host by a redirect. Every error is one sentence.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from balancer.dependencies import explained_imports
from balancer.errors import InputError
from balancer.options.database import DATABASE_VARIABLE

ADDRESS, KEY = "BALANCER_SERVICE", "BALANCER_SERVICE_KEY"
"""Environment variables with the address of the service and a key of scope operator."""
LARGE = 0.25
"""Index from which a field has changed."""
SCORING = "/v1/score"
"""Route whose latency is shown."""
QUANTILES = (0.5, 0.95, 0.99)
_SECONDS = 30.0
_WITHOUT_TRAFFIC = ("/healthz", "/readyz", "/metrics")
_UNUSUAL = 1.5
"""How many times higher or lower an alert rate is that needs attention."""
_LEAST_DAY = 500
"""Transactions of a day from which its alert rate is compared."""
ESTIMATED, TRUE = "estimated from scores", "from labels"


@dataclass(frozen=True)
class Target:
    """The configured service, or the database of one."""

    address: str = ""
    """URL of a service; empty for a database."""
    key: str = field(default="", repr=False)
    database: str = field(default="", repr=False)
    """URL of a database, which may hold a password."""

    @property
    def configured(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.address or self.database)

    @property
    def shown(self) -> str:
        """The address as it may be shown."""
        if not self.address:
            return f"the database in {DATABASE_VARIABLE}"
        user, at, host = self.address.rpartition("@")
        return f"{user.partition('://')[0]}://…@{host}" if at else self.address


def target() -> Target:
    """The service given after `--` as `--service URL`, or in the environment; else a database there."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--service", default=os.environ.get(ADDRESS, ""))
    address = str(parser.parse_known_args()[0].service).strip().rstrip("/")
    if address:
        return Target(address, os.environ.get(KEY, ""))
    return Target(database=os.environ.get(DATABASE_VARIABLE, ""))


def checked_address(address: str, flag: str) -> str:
    """Check the address of a service.

    Args:
        address: The address.
        flag: The flag or variable that it was given by.

    Raises:
        InputError: It is no http or https URL, or holds a user name.
    """
    try:
        parts = urllib.parse.urlsplit(address)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None
        _ = parts.port
    except ValueError:
        known = False
    if not known:
        raise InputError(f"{flag} is no address of a service: give one such as https://balancer.example, and the key in {KEY}")
    return address


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows nothing, so that the key is sent to no other host."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _asked(address: str, key: str, path: str) -> bytes:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    url = f"{checked_address(address, 'the address')}{path}"
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=_SECONDS) as answer:
            content: bytes = answer.read()
            return content
    except urllib.error.HTTPError as error:
        if error.code == 409:
            raise InputError(_own_words(error)) from error
        reasons = {401: "the key is missing or wrong", 403: "the key lacks the scope operator", 404: "it is of an older version"}
        why = reasons.get(error.code, f"status {error.code}")
        raise InputError(f"{address} refused ({why}): check the address, and the key in {KEY}") from error
    except (OSError, ValueError, urllib.error.URLError) as error:
        raise InputError(f"{address} does not answer as a service does: check the address, and that the service is running") from error


def _own_words(error: urllib.error.HTTPError) -> str:
    """The sentence of the service on a state in which it can't answer."""
    try:
        return str(json.load(error)["error"])
    except (ValueError, KeyError, TypeError, OSError):
        return "the service can't answer in its present state"


def ask(address: str, key: str, path: str, needed: str) -> dict[str, Any]:
    """Ask a service.

    Args:
        address: Its address.
        key: A key of scope operator, or nothing.
        path: Path and query.
        needed: A key that the answer must have.

    Raises:
        InputError: It can't be reached, or refuses; one sentence.
    """
    content = _asked(address, key, path)
    try:
        found = json.loads(content)
    except ValueError as error:
        raise InputError(f"{address} does not answer as a service does: check the address, and that the service is running") from error
    if not isinstance(found, dict) or needed not in found:
        raise InputError(f"{address} does not answer as a service does: check the address")
    return found


def days_of(where: Target, days: int, run: Path | None) -> dict[str, Any]:
    """The answer of `GET /v1/monitoring`, from the service or computed from its database.

    Args:
        where: The service or database.
        days: Number of days.
        run: Run against whose training rows the drift of decisions in a database is measured.

    Raises:
        InputError: It can't be reached, or refuses.
    """
    if where.address:
        return ask(where.address, where.key, f"/v1/monitoring?days={days}", "days")
    with explained_imports("the database of a service", "balancer[serve]"):
        from balancer.serving.models.loaded_model import LoadedModel
        from balancer.serving.operations.migration import open_database, used
        from balancer.serving.operations.monitoring import Monitoring

        models = [] if run is None else [LoadedModel.load(run, run.name)]
        with used(open_database(where.database, patience=5.0)) as database:
            return Monitoring(database, lambda: models).by_day(days)


@dataclass(frozen=True)
class Metrics:
    """The metrics of a service, as its `/metrics` shows them, since it was started."""

    values: Mapping[str, Sequence[tuple[Mapping[str, str], float]]]
    """Samples by name: labels and value."""

    def total(self, name: str, **labels: str) -> float:
        """Sum of the samples that have these labels; 0 without any."""
        return sum(value for has, value in self.values.get(name, ()) if labels.items() <= has.items())

    def requests(self, *, failed: bool = False) -> float:
        """Requests besides those of health and metrics; with `failed` those with a status of 500 and more."""
        counted = self.values.get("balancer_requests_total", ())
        return sum(
            value
            for has, value in counted
            if has.get("route") not in _WITHOUT_TRAFFIC and (not failed or has.get("status", "").startswith("5"))
        )

    def latency(self, quantile: float, route: str = SCORING) -> float | None:
        """Seconds within which a share of the requests of a route was answered; None without requests.

        Between the bounds of the histogram, requests are taken as evenly spread.
        """
        buckets = sorted(
            (math.inf if has["le"] == "+Inf" else float(has["le"]), value)
            for has, value in self.values.get("balancer_request_seconds_bucket", ())
            if has.get("route") == route and "le" in has
        )
        if not buckets or not buckets[-1][1]:
            return None
        wanted, low, below = quantile * buckets[-1][1], 0.0, 0.0
        for bound, count in buckets:
            if count >= wanted:
                return low if math.isinf(bound) else low + (bound - low) * (wanted - below) / max(1e-12, count - below)
            low, below = bound, count
        return low

    def routes(self) -> pl.DataFrame:
        """Requests, errors and latency by route; columns `route, requests, errors, 50 %, 95 %, 99 %` (ms)."""
        names = sorted({has["route"] for has, _ in self.values.get("balancer_requests_total", ()) if "route" in has})
        rows = []
        for name in names:
            errors = sum(v for has, v in self.values["balancer_requests_total"] if has["route"] == name and has["status"].startswith("5"))
            found = {f"{100 * each:.0f} %": _milliseconds(self.latency(each, name)) for each in QUANTILES}
            rows.append({"route": name, "requests": int(self.total("balancer_requests_total", route=name)), "errors": int(errors)} | found)
        columns = {"route": pl.String, "requests": pl.Int64, "errors": pl.Int64}
        return pl.DataFrame(rows, schema=columns | {f"{100 * each:.0f} %": pl.Float64 for each in QUANTILES})


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds


def read_metrics(where: Target) -> Metrics:
    """Read `GET /metrics`.

    Raises:
        InputError: The service can't be reached, or refuses.
    """
    return parse_metrics(_asked(where.address, where.key, "/metrics").decode("utf-8", "replace"))


def parse_metrics(text: str) -> Metrics:
    """Parse the text format of Prometheus, as far as the service writes it; other lines are left out."""
    values: dict[str, list[tuple[dict[str, str], float]]] = {}
    for line in text.splitlines():
        name, _, rest = line.partition(" ") if "{" not in line else (line[: line.index("{")], "", line[line.index("{") :])
        labels: dict[str, str] = {}
        if rest.startswith("{") and "} " in rest:
            inside, _, rest = rest[1:].rpartition("} ")
            for part in inside.split('",'):
                key, _, value = part.partition('="')
                labels[key.strip().lstrip(",")] = value.removesuffix('"')
        try:
            values.setdefault(name, []).append((labels, float(rest.split()[0])))
        except (ValueError, IndexError):
            continue
    return Metrics(values)


def frame_of(found: Mapping[str, Any]) -> pl.DataFrame:
    """The days as a table, one row for each day and model, earliest first."""
    rows = [
        {
            "day": each["day"],
            "model": each["model"],
            "transactions": each["transactions"],
            "alert rate": each["alert_rate"],
            ESTIMATED: each["estimated_precision"]["value"],
            TRUE: each["true_precision"]["value"],
            "frauds expected": each["expected_frauds"]["value"],
            "largest drift": None if each["largest_drift"] is None else each["largest_drift"]["index"],
            "field": None if each["largest_drift"] is None else each["largest_drift"]["field"],
        }
        for each in found["days"]
    ]
    numbers = dict.fromkeys(("alert rate", ESTIMATED, TRUE, "frauds expected", "largest drift"), pl.Float64)
    frame = pl.DataFrame(rows, schema_overrides=numbers | {"field": pl.String})
    return frame.with_columns(pl.col("day").str.to_date()).sort("day", "model")


def early_warnings(found: Mapping[str, Any]) -> list[str]:
    """What needs attention on the latest day: fields that have changed, and an unusual share of alarms.

    Args:
        found: The answer of `GET /v1/monitoring`.
    """
    days = found["days"]
    if not days:
        return []
    latest = days[0]["day"]
    said = []
    for each in (day for day in days if day["day"] == latest):
        drift = each.get("drift") or {}
        changed = [f"{name} (index {drift[name]:.2f})" if name in drift else name for name in each.get("fields_changed", [])]
        if changed:
            few = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
            said.append(f"On {latest}, fields of {each['model']} differ from its training rows (index above {LARGE}): {few}.")
        before = sorted(
            day["alert_rate"]
            for day in days
            if day["model"] == each["model"] and day["day"] != latest and day["transactions"] >= _LEAST_DAY
        )
        if not before or each["transactions"] < _LEAST_DAY:
            continue
        usual = before[len(before) // 2]
        if usual and not 1 / _UNUSUAL <= each["alert_rate"] / usual <= _UNUSUAL:
            said.append(
                f"On {latest}, {each['model']} raised an alarm for {100 * each['alert_rate']:.2f} % of the transactions; the median of the "
                f"days before is {100 * usual:.2f} %."
            )
    return said


def comparison_verdict(found: Mapping[str, Any]) -> tuple[str, str]:
    """Champion against challenger in one sentence.

    Returns:
        `better`, `worse` or `unclear` for the challenger, and the sentence.
    """
    champion, challenger = found["champion"]["name"], found["challenger"]["name"]
    difference = found["average_precision_difference"]
    value, interval = difference["value"], difference["interval"]
    labels = f"{found['labelled']:,} labelled transactions with {found['frauds']:,} frauds"
    if value is None or interval is None:
        return (
            "unclear",
            f"There is no verdict on {challenger} against {champion} yet: it needs frauds among the labels, and there are {labels}.",
        )
    low, high = interval
    said = f"{value:+.3f} average precision, 95 % interval {low:+.3f} to {high:+.3f}, on {labels}"
    if low <= 0 <= high:
        return "unclear", f"There is no clear difference between the challenger {challenger} and the champion {champion}: {said}."
    outcome = "better" if value > 0 else "worse"
    return outcome, f"The challenger {challenger} is {outcome} than the champion {champion}: {said}."


def comparison_rows(found: Mapping[str, Any]) -> pl.DataFrame:
    """Champion and challenger side by side, each number with its 95 % interval as text."""
    measures = {
        "share of alarms": ("alert_rate", 100.0, " %"),
        "average precision": ("average_precision", 1.0, ""),
        "precision of alarms": ("precision", 100.0, " %"),
        "frauds caught": ("recall", 100.0, " %"),
        "false alarms per 10,000 legitimate": ("false_alarms_per_10k", 1.0, ""),
    }
    columns = {f"{role} ({found[role]['name']})": found[role] for role in ("champion", "challenger")}
    rows = [
        {"measure": title} | {column: _measured(metrics[key], scale, unit) for column, metrics in columns.items()}
        for title, (key, scale, unit) in measures.items()
    ]
    return pl.DataFrame(rows)


def _measured(each: Mapping[str, Any], scale: float, unit: str) -> str:
    if each["value"] is None:
        return "–"
    decimals = 3 if scale == 1.0 and each["value"] <= 1 else 1
    text = f"{scale * each['value']:,.{decimals}f}{unit}"
    if each["interval"] is None:
        return text
    low, high = (f"{scale * end:,.{decimals}f}" for end in each["interval"])
    return f"{text} ({low} to {high})"
