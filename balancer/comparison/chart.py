"""The chart of a comparison: a dot with its 95 % interval for every metric and treatment."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balancer.comparison.statistics import FALSE_ALARMS, METRICS
from balancer.files import atomic_path

if TYPE_CHECKING:
    import altair as alt

PANELS = ("average_precision", "f1", f"{FALSE_ALARMS}_0.60", f"{FALSE_ALARMS}_0.70", "ece")
BETTER, WORSE, NOISE = "#0072B2", "#D55E00", "#777777"
"""Colours of Okabe and Ito, which can be distinguished with any colour vision."""


def chart_rows(content: Mapping[str, Any], metric: str) -> list[dict[str, Any]]:
    """One row per treatment: ``treatment, difference, low, high, verdict``.

    Differences in false alarms are changes in percent.
    """
    rows = []
    ratio = METRICS[metric].recall is not None
    for treatment, metrics in content["paired"].items():
        if metric not in metrics:
            continue
        found = metrics[metric]
        value, low, high = (
            (_percent(found, end) for end in ("", "_low", "_high")) if ratio else (found["difference"], found["low"], found["high"])
        )
        verdict = "within noise"  # also where there is no interval
        if low is None or high is None:
            low = high = value
        elif low > 0 or high < 0:
            verdict = "better" if (low > 0) == METRICS[metric].higher_is_better else "worse"
        rows.append({"treatment": treatment, "difference": value, "low": low, "high": high, "verdict": verdict})
    return rows


def _percent(found: Mapping[str, Any], end: str) -> float | None:
    """A ratio as a change in percent."""
    ratio = found[f"ratio{end}"]
    return None if ratio is None else 100 * (float(ratio) - 1)


def comparison_chart(content: Mapping[str, Any], *, columns: int = 3, titled: bool = True) -> alt.ConcatChart:
    """Draw the chart of a comparison; treatments are sorted by average precision.

    Args:
        content: Document of :func:`balancer.comparison.summary.document`.
        columns: Panels per row.
        titled: Whether the summary is the title.
    """
    import altair as alt

    averages = content["means"]
    order = sorted(content["paired"], key=lambda name: -averages[name].get("average_precision", -1.0))
    panels = []
    for metric in PANELS:
        rows = chart_rows(content, metric)
        if not rows:
            continue
        about = METRICS[metric]
        unit = "change in %" if about.recall is not None else "difference"
        direction = "right is better" if about.higher_is_better else "left is better"
        axis = alt.X("low:Q", title=f"{unit} to {content['reference']} ({direction})", scale=alt.Scale(zero=False))
        base = alt.Chart(alt.InlineData(values=rows)).encode(
            y=alt.Y("treatment:N", sort=order, title="treatment"),
            color=alt.Color(
                "verdict:N",
                title="95 % interval",
                scale=alt.Scale(domain=["better", "worse", "within noise"], range=[BETTER, WORSE, NOISE]),
            ),
        )
        lines = base.mark_rule(strokeWidth=2).encode(x=axis, x2="high:Q")
        dots = base.mark_point(filled=True, size=60, opacity=1).encode(x="difference:Q")
        zero = alt.Chart(alt.InlineData(values=[{"zero": 0.0}])).mark_rule(strokeDash=[4, 4], color="#999999").encode(x="zero:Q")
        panels.append((zero + lines + dots).properties(title=about.title, width=230, height=22 * len(order)))
    joined: alt.ConcatChart = alt.concat(*panels, columns=columns)
    if titled:
        joined = joined.properties(title=alt.TitleParams(textwrap.wrap(content["sentence"], 120), anchor="start", fontWeight="normal"))
    return joined


def write_chart(content: Mapping[str, Any], file: Path) -> None:
    """Write the chart as .svg, or as an .html file that needs no network."""
    chart = comparison_chart(content)
    with atomic_path(file) as temporary:
        if file.suffix == ".svg":
            chart.save(str(temporary), format="svg")
        else:
            chart.save(str(temporary), format="html", inline=True)
