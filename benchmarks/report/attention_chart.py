"""Charts of sparse attention: speed by length, and the effect of window and global nodes.

python -m benchmarks.report.attention_chart     # -> docs/images/attention_speed.svg, attention_sweep.svg
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import altair as alt

from balancer.files import atomic_path
from benchmarks.lib.recording import RESULTS, ROOT, recorded

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7"]
"""Colours of Okabe and Ito, distinguishable with any colour vision; shapes repeat the distinction."""
SHAPES = ["circle", "square", "triangle-up", "diamond"]
GREY = "#777777"
PANELS = (
    (True, "forward", "causal, forward"),
    (True, "forward_backward", "causal, forward + backward"),
    (False, "forward", "bidirectional, forward"),
)
Chart = alt.ConcatChart | alt.VConcatChart | alt.HConcatChart


def speed_chart(part: Mapping[str, Any]) -> Chart:
    """Chart of the part ``kernels``: how many times faster than dense attention by length.

    There is one line for each backend, and one panel for each direction and kind of passes.
    """
    rows = [
        {"tokens": cell["tokens"], "contender": name, "times": times, "panel": (cell["causal"], cell["passes"])}
        for cell in part["cells"]
        for name, times in cell.get("times_faster", {}).items()
    ]
    names = list(dict.fromkeys(row["contender"] for row in rows))
    tokens = sorted({row["tokens"] for row in rows})
    times = [2.0**power for power in range(-2, 8)]
    ticks = [value for value in times if 0.5 * min(row["times"] for row in rows) < value < 2 * max(row["times"] for row in rows)]
    panels = []
    for causal, passes, title in PANELS:
        shown = [row for row in rows if row["panel"] == (causal, passes)]
        if not shown:
            continue
        x = alt.X(
            "tokens:Q",
            title="tokens",
            scale=alt.Scale(type="log", base=2),
            axis=alt.Axis(values=tokens, format=",d", labelAngle=-45, labelFlush=False),
        )
        y = alt.Y(
            "times:Q",
            title="times faster than dense",
            scale=alt.Scale(type="log", base=2, domain=[min(ticks), max(ticks)]),
            axis=alt.Axis(values=ticks, format="~g"),
        )
        lines = _lines(shown, x, y, "contender:N", "backend, windows", names)
        panels.append(_with_rule(lines, 1.0, "times").properties(title=alt.TitleParams(title, frame="group"), width=230, height=220))
    joined: Chart = alt.hconcat(*panels)
    return joined


def sweep_chart(streams: Mapping[str, Any]) -> Chart:
    """Chart of the part ``sweep``: average precision and speed of scoring by window.

    There is one row for each stream, and one line for each number of global nodes.
    """
    rows = []
    for data, sweep in streams.items():
        points = [
            {
                "window": point["window"],
                "nodes": str(point["global_nodes"]),
                "precision": point["average_precision"],
                "times": point["times_faster"],
            }
            for point in sweep.get("points", ())
        ]
        if not points:
            continue
        windows = sorted({point["window"] for point in points})
        nodes = sorted({point["nodes"] for point in points}, key=int)
        x = alt.X(
            "window:Q",
            title="window, tokens",
            scale=alt.Scale(type="log", base=2),
            axis=alt.Axis(values=windows, format="d", labelFlush=False),
        )
        panels = []
        for key, axis, level, title in (
            ("precision", "average precision, test", sweep["dense"]["average_precision"], f"{data}: average precision"),
            ("times", "transactions per second, times dense", 1.0, f"{data}: speed of scoring"),
        ):
            y = alt.Y(f"{key}:Q", title=axis, scale=alt.Scale(zero=False))
            lines = _lines(points, x, y, "nodes:N", "global nodes", nodes)
            panels.append(_with_rule(lines, level, key).properties(title=alt.TitleParams(title, frame="group"), width=280, height=200))
        rows.append(alt.hconcat(*panels, bounds="flush", spacing=100))
    joined: Chart = alt.vconcat(*rows)
    return joined


def _lines(rows: list[dict[str, Any]], x: alt.X, y: alt.Y, field: str, title: str, names: list[str]) -> alt.Chart:
    """Lines with points that differ in colour and shape."""
    legend = alt.Legend(title=title, symbolStrokeWidth=2)
    chart: alt.Chart = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=55, filled=True, opacity=1))
        .encode(
            x=x,
            y=y,
            color=alt.Color(field, sort=names, scale=alt.Scale(domain=names, range=COLOURS[: len(names)]), legend=legend),
            shape=alt.Shape(field, sort=names, scale=alt.Scale(domain=names, range=SHAPES[: len(names)]), legend=legend),
        )
    )
    return chart


def _with_rule(lines: alt.Chart, level: float, key: str) -> alt.LayerChart:
    """The lines above a dashed line for dense attention."""
    base = alt.Chart(alt.InlineData(values=[{key: level, "label": "dense"}]))
    rule = base.mark_rule(strokeDash=[5, 4], strokeWidth=1.5, color=GREY).encode(y=f"{key}:Q")
    label = base.mark_text(align="left", dx=4, color=GREY).encode(y=f"{key}:Q", x=alt.value("width"), text="label:N")
    joined: alt.LayerChart = rule + lines + label
    return joined


def draw(results: Path, images: Path) -> list[Path]:
    """Write the charts whose parts are in the file ``results`` into the folder ``images``.

    Returns:
        The files that were written.
    """
    if not results.is_file():
        print(f"{results.name} is missing: python -m benchmarks.claims.attention makes it")
        return []
    parts = recorded(results)["parts"]
    charts: dict[str, Chart] = {}
    if "kernels" in parts and any(cell.get("times_faster") for cell in parts["kernels"]["cells"]):
        charts["attention_speed.svg"] = speed_chart(parts["kernels"])
    streams = parts.get("sweep", {}).get("streams", {})
    if any("points" in sweep for sweep in streams.values()):
        charts["attention_sweep.svg"] = sweep_chart(streams)
    images.mkdir(parents=True, exist_ok=True)
    for name, chart in charts.items():
        with atomic_path(images / name) as temporary:
            chart.save(str(temporary), format="svg")
    return [images / name for name in charts]


def main() -> None:
    draw(RESULTS / "attention.json", ROOT / "docs" / "images")


if __name__ == "__main__":
    main()
