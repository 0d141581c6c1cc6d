"""What each part of the system did in a run, a line each: sampling, attention, precision, modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHORT_HISTORIES = "whole histories with sparse attention were no better at equal cost (docs/experiments.md)"
"""Why histories are short by default."""


def part_lines(report: Mapping[str, Any], *, timed: bool = True) -> dict[str, str]:
    """Say what each part did.

    Args:
        report: The content of `report.json`.
        timed: Whether times are included; the page of a report has none, so that equal runs give equal pages.

    Returns:
        A sentence by name of the part; empty for runs of earlier versions.
    """
    run = report["run"]
    network = run.get("network")
    if network is None:
        members = run.get("members")
        return {"modules": "boosted trees alone (--learner trees): no rows are drawn, and there is no network"} if members else {}
    return {
        "sampling": _sampling(run),
        "attention": _attention(network),
        "precision": _precision(report, timed=timed),
        "modules": _modules(network, run.get("members") or {}),
    }


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"


def _sampling(run: Mapping[str, Any]) -> str:
    policy, shares = run["policy"], run["network"]["fraud_share"]
    drawn = f"{_share(shares['first'])} of the rows drawn in the first epoch are fraud"
    if _share(shares["last"]) != _share(shares["first"]):
        drawn += f", {_share(shares['last'])} in the last"
    name = policy["name"]
    asked = "" if policy["asked"] == name else f" (asked: {policy['asked']})"
    return f"policy {name}{asked}: {drawn}; {_share(shares['table'])} of the training rows are. Scores are corrected for the difference"


def _attention(network: Mapping[str, Any]) -> str:
    length = network["history_length"]
    if length == 1:
        return "none, because each history is a single row"
    read = f"histories of up to {length:,} rows, read once" if network["form"] == "histories" else f"the last {length} rows of an entity"
    kind = str(network["attention"])
    if kind in ("sparse", "window"):
        kind += f" (window of {network['attention_window']}"
        kind += f", {network['global_nodes']} global nodes)" if network["attention"] == "sparse" else ")"
    reason = f"; {SHORT_HISTORIES}" if network["by_default"] and network["form"] == "rows" else ""
    return f"{kind} over {read}{reason}"


def _precision(report: Mapping[str, Any], *, timed: bool) -> str:
    precision = report["run"].get("precision")
    if precision is None:
        return "every layer in float32 (--precision full)"
    if "refused" in precision:
        return f"every layer in float32: {precision['refused']}"
    layers, size = precision["layers"], precision["bytes"]
    counts = ", ".join(f"{count} layers in {name.upper()}" for name, count in layers.items())
    said = f"{counts}; {size['full'] / 1000:,.0f} kB of weights became {size['planned'] / 1000:,.0f} kB"
    ms = report["timing"].get("network_ms")
    if timed and ms:
        ratios = [f"{ms['planned'][rows] / ms['full'][rows]:.2f} (batch of {rows})" for rows in ms["full"]]
        said += f", time of the network × {', '.join(ratios)}"
    full = report["baselines"].get("full")
    if full is not None and full["average_precision"] is not None:
        # Four digits: three would hide what rounding changes.
        said += f", average precision {full['average_precision']:.4f} became {report['test']['average_precision']:.4f}"
    return said


def _modules(network: Mapping[str, Any], members: Mapping[str, float]) -> str:
    trees = "boosted trees in two stages, then " if members else ""
    blocks = f"{network['num_layers']} blocks of width {network['d_model']}"
    return (
        f"{trees}embedding {network['embedding']}, {blocks}, head {network['head']}; each can be replaced or trained alone (docs/parts.md)"
    )
