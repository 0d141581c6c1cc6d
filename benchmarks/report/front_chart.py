"""The picture of the README: false alarms of one classifier under four ways of sampling, at equal recall.

python -m benchmarks.report.front_chart     # -> docs/images/front.svg
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import altair as alt

from balancer.files import atomic_path
from benchmarks.lib.recording import RESULTS, ROOT, recorded

STREAMS = {"handbook-classifier": "handbook", "sparkov-classifier": "sparkov"}
TREATMENTS = {
    "auto": "balancer, auto",
    "none": "no sampling",
    "one_to_one": "1:1 over-sampling",
    "class_weight": "class weights",
}
RECALL = "0.60"
OURS, OTHERS = "#0072B2", "#9aa5b1"


def rows(parts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A bar for each stream and treatment: false alarms per 10,000 transactions at the recall."""
    found = []
    for part, stream in STREAMS.items():
        for name, title in TREATMENTS.items():
            alarms = parts[part]["means"][name][f"false_alarms_per_10k_at_recall_{RECALL}"]
            found.append({"stream": stream, "treatment": title, "alarms": alarms, "label": f"{alarms:.3g}"})
    return found


def chart(bars: list[dict[str, Any]]) -> alt.HConcatChart:
    """One panel for each stream, the bars in the order of the treatments."""
    panels = []
    for stream in STREAMS.values():
        base = alt.Chart(alt.InlineData(values=[bar for bar in bars if bar["stream"] == stream])).encode(
            y=alt.Y("treatment:N", sort=list(TREATMENTS.values()), title=None, axis=alt.Axis(ticks=False, domain=False, labelLimit=200)),
            x=alt.X("alarms:Q", title=None, axis=None),
        )
        colour = alt.condition(f"datum.treatment == '{TREATMENTS['auto']}'", alt.value(OURS), alt.value(OTHERS))
        layers = base.mark_bar(height=18).encode(color=colour) + base.mark_text(align="left", dx=4).encode(text="label:N")
        panels.append(layers.properties(title=alt.TitleParams(stream, anchor="start"), width=230, height=110))
    joined: alt.HConcatChart = alt.hconcat(*panels, spacing=40).properties(
        title=alt.TitleParams(
            "False alarms per 10,000 transactions when 60 % of the frauds are caught", anchor="start", fontSize=15, offset=12
        )
    )
    configured: alt.HConcatChart = (
        joined.configure(background="white", padding={"left": 24, "right": 12, "top": 12, "bottom": 12})
        .configure_view(stroke=None)
        .configure_axis(labelFontSize=12)
    )
    return configured


def draw(results: Path, images: Path) -> Path:
    """Write ``front.svg`` from the file ``results`` into the folder ``images``."""
    images.mkdir(parents=True, exist_ok=True)
    with atomic_path(images / "front.svg") as temporary:
        chart(rows(recorded(results)["parts"])).save(str(temporary), format="svg")
    return images / "front.svg"


def main() -> None:
    draw(RESULTS / "sampling.json", ROOT / "docs" / "images")


if __name__ == "__main__":
    main()
