"""The pictures of sparse attention, from its result file: speed against length, and what window and global nodes trade. It measures nothing.

python benchmarks/attention_chart.py        # -> docs/images/attention_speed.svg and docs/images/attention_sweep.svg
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import altair as alt
from recording import RESULTS, ROOT

from balancer.files import atomic_path

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7"]
"""Okabe and Ito's: told apart with any colour vision; shapes say the same again."""
SHAPES = ["circle", "square", "triangle-up", "diamond"]
GREY = "#777777"
PANELS = (
    (True, "forward", "causal, forward"),
    (True, "forward_backward", "causal, forward + backward"),
    (False, "forward", "bidirectional, forward"),
)
Chart = alt.ConcatChart | alt.VConcatChart | alt.HConcatChart


def speed_chart(part: Mapping[str, Any]) -> Chart:
    """Times faster than dense attention by length, a line a backend, a panel a direction and kind of passes; of the part ``kernels``."""
    rows = [
        {"tokens": cell["tokens"], "contender": name, "times": times, "panel": (cell["causal"], cell["passes"])}
        for cell in part["cells"]
        for name, times in cell.get("times_faster", {}).items()
    ]
    names = list(dict.fromkeys(row["contender"] for row in rows))
    tokens = sorted({row["tokens"] for row in rows})
    times = [2.0**power for power in range(-2, 8)]
    shown = [value for value in times if 0.5 * min(row["times"] for row in rows) < value < 2 * max(row["times"] for row in rows)]
    panels = []
    for causal, passes, title in PANELS:
        own = [row for row in rows if row["panel"] == (causal, passes)]
        if not own:
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
            scale=alt.Scale(type="log", base=2, domain=[min(shown), max(shown)]),
            axis=alt.Axis(values=shown, format="~g"),
        )
        lines = _lines(own, x, y, "contender:N", "backend, windows", names)
        panels.append(_with_rule(lines, 1.0, "times").properties(title=alt.TitleParams(title, frame="group"), width=230, height=220))
    joined: Chart = alt.hconcat(*panels)
    return joined


def sweep_chart(streams: Mapping[str, Any]) -> Chart:
    """Average precision by window, a line a number of global nodes, and beside it the speed of judging; a row a stream."""
    rows = []
    for data, own in streams.items():
        points = [
            {
                "window": point["window"],
                "nodes": str(point["global_nodes"]),
                "precision": point["average_precision"],
                "times": point["times_faster"],
            }
            for point in own.get("points", ())
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
            ("precision", "average precision, test", own["dense"]["average_precision"], f"{data}: average precision"),
            ("times", "transactions per second, times dense", 1.0, f"{data}: speed of judging"),
        ):
            y = alt.Y(f"{key}:Q", title=axis, scale=alt.Scale(zero=False))
            lines = _lines(points, x, y, "nodes:N", "global nodes", nodes)
            panels.append(_with_rule(lines, level, key).properties(title=alt.TitleParams(title, frame="group"), width=280, height=200))
        rows.append(alt.hconcat(*panels, bounds="flush", spacing=100))
    joined: Chart = alt.vconcat(*rows)
    return joined


def _lines(rows: list[dict[str, Any]], x: alt.X, y: alt.Y, field: str, title: str, names: list[str]) -> alt.Chart:
    """Lines with points, told apart by colour and shape."""
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
    """The lines over a dashed one that is dense attention."""
    base = alt.Chart(alt.InlineData(values=[{key: level, "label": "dense"}]))
    rule = base.mark_rule(strokeDash=[5, 4], strokeWidth=1.5, color=GREY).encode(y=f"{key}:Q")
    label = base.mark_text(align="left", dx=4, color=GREY).encode(y=f"{key}:Q", x=alt.value("width"), text="label:N")
    joined: alt.LayerChart = rule + lines + label
    return joined


def draw(results: Path, images: Path) -> list[Path]:
    """Write the pictures whose parts are in the result file; which."""
    if not results.is_file():
        print(f"{results.name} is absent: benchmarks/attention.py makes it")
        return []
    parts = json.loads(results.read_text())["parts"]
    charts: dict[str, Chart] = {}
    if "kernels" in parts and any(cell.get("times_faster") for cell in parts["kernels"]["cells"]):
        charts["attention_speed.svg"] = speed_chart(parts["kernels"])
    streams = parts.get("sweep", {}).get("streams", {})
    if any("points" in own for own in streams.values()):
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
