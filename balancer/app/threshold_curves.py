"""What the page Threshold shows as curves and numbers; this module does not use Streamlit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import altair as alt
import numpy as np
import polars as pl

from balancer.app.chart_parts import BLUE, FIRST, GREEN, GREY, HEIGHT, VERMILION
from balancer.evaluation.operating_points import OperatingPoints
from balancer.evaluation.threshold_changes import Change, Changes
from balancer.names import counted
from balancer.runs.costs import Costs

COST, CAUGHT, ALARMS, PRECISION = "total cost", "frauds caught", "alarms", "precision"
"""What the large curve can show."""
CHOSEN_ON, TEST = "rows that choose the threshold", "test rows"
PICK = "pick"
"""Name of the selection of a point of the curve."""
_RIGHT = 0.6
"""Part of the axis from which the words of marks stand to the left of them."""
_MOST_SHOWN = 6.0
"""The axis of costs ends at this multiple of the lowest cost: above, nearly all or no rows are alarms."""


@dataclass(frozen=True)
class Basis:
    """The rows that choose a threshold, and those that show what it does."""

    chosen_on: OperatingPoints
    """The threshold half of validation; the test rows where the run does not have it."""
    test: OperatingPoints
    separate: bool
    """Whether the two are different rows."""

    @property
    def scale(self) -> float:
        """Test rows per row that chooses: counts times this are those that test rows would have."""
        return _rows(self.test) / _rows(self.chosen_on)

    def for_alarms(self, per_day: float) -> float:
        """Return the lowest threshold with at most this many alarms a day at the traffic of the test."""
        return self.chosen_on.for_alarm_share(per_day * self.test.days / _rows(self.test))

    def cheapest(self, costs: Costs) -> float:
        """Return the threshold with the lowest total cost on the rows that choose."""
        return self.chosen_on.for_cost(costs.per_alarm, costs.loss_share)


def _rows(points: OperatingPoints) -> int:
    return points.frauds + points.legitimate


def curves(basis: Basis, costs: Costs | None, *, also: list[float]) -> pl.DataFrame:
    """Tabulate both curves by threshold.

    Args:
        basis: The rows.
        costs: The costs; None without amounts.
        also: Thresholds that are in the table in any case.

    Returns:
        Columns `rows` (`CHOSEN_ON` or `TEST`), `threshold`, `frauds caught` (share), `precision`, `alarms`
        (per day, or altogether without times) and, with costs, `total cost`. Costs and alarms are those of as
        many rows as the test has.
    """
    parts = []
    shown = {CHOSEN_ON: (basis.chosen_on, basis.scale), TEST: (basis.test, 1.0)} if basis.separate else {TEST: (basis.test, 1.0)}
    for name, (points, scale) in shown.items():
        cost = None if costs is None else points.cost(costs.per_alarm, costs.loss_share) * scale
        found = points.table(max_points=300, cost=cost, also=also)
        found = found.with_columns(pl.lit(name).alias("rows"), (pl.col("alarms") * scale / basis.test.days).alias(ALARMS))
        found = found.rename({"recall": CAUGHT} | ({"cost": COST} if cost is not None else {}))
        parts.append(found.select("rows", "threshold", CAUGHT, "precision", ALARMS, *([COST] if cost is not None else [])))
    return pl.concat(parts)


_FORMATS = {COST: "~s", CAUGHT: "%", ALARMS: "~s", PRECISION: "%"}


def decision_chart(
    table: pl.DataFrame,
    shown: str,
    *,
    current: float,
    proposed: float,
    cheapest: float | None,
    timed: bool,
) -> alt.LayerChart:
    """Plot one quantity by threshold, to be clicked on.

    The selection `PICK` has the field `threshold` of the point that is nearest to a click.

    Args:
        table: The result of `curves`.
        shown: Column on the vertical axis.
        current: Threshold in use.
        proposed: Proposed threshold.
        cheapest: Threshold with the lowest total cost, marked where `shown` is the cost; None without costs.
        timed: Whether alarms are per day.
    """
    per = "alarms per day" if timed else "alarms on the test rows"
    titles = {COST: "total cost (currency of the table)", CAUGHT: "frauds caught (share)", ALARMS: f"{per} (log scale)",
              PRECISION: "precision (share of alarms that are fraud)"}  # fmt: skip
    lowest = _lowest(table, shown, (current, proposed))
    table = table.with_columns(at=pl.col("threshold").clip(lowest, 1.0))
    if shown == ALARMS:
        table = table.filter(pl.col(ALARMS) > 0)
    y_scale = {
        COST: alt.Scale(domain=_cost_range(table, (current, proposed)), nice=False) if shown == COST else None,
        ALARMS: alt.Scale(type="log", nice=False),
    }
    x = alt.X("at:Q", title="threshold (score, log scale)", axis=alt.Axis(format="~g"),
              scale=alt.Scale(type="log", domain=[lowest, 1], nice=False))  # fmt: skip
    y = alt.Y(
        f"{shown}:Q", title=titles[shown], axis=alt.Axis(format=_FORMATS[shown]), scale=y_scale.get(shown) or alt.Scale(domain=[0, 1])
    )
    names = table["rows"].unique(maintain_order=True).to_list()
    main = names[0]
    tooltip = [
        alt.Tooltip("threshold:Q", format=".4g"),
        alt.Tooltip(f"{CAUGHT}:Q", format=".1%"),
        alt.Tooltip(f"{PRECISION}:Q", format=".1%"),
        alt.Tooltip(f"{ALARMS}:Q", title=per, format=",.1f"),
        *([alt.Tooltip(f"{COST}:Q", title="total cost (currency of the table)", format=",.0f")] if COST in table.columns else []),
        alt.Tooltip("rows:N", title="counted on"),
    ]
    lines = (
        alt.Chart(table)
        .mark_line(clip=True)
        .encode(
            x,
            y,
            alt.Color("rows:N", title=None, sort=None, scale=alt.Scale(domain=[CHOSEN_ON, TEST][-len(names) :], range=[BLUE, GREY][:len(names)]),
                      legend=alt.Legend(orient="bottom", columns=1, labelLimit=300) if len(names) > 1 else None),
            alt.StrokeDash("rows:N", sort=None, scale=alt.Scale(domain=[CHOSEN_ON, TEST][-len(names) :], range=[[1, 0], [5, 3]][:len(names)]), legend=None),
            alt.StrokeWidth("rows:N", sort=None, scale=alt.Scale(domain=[CHOSEN_ON, TEST][-len(names) :], range=[3, 1.5][:len(names)]), legend=None),
        )
    )  # fmt: skip
    pick = alt.selection_point(name=PICK, fields=["threshold"], nearest=True, on="click", empty=False)
    hover = alt.selection_point(name="hover", fields=["threshold"], nearest=True, on="pointerover", clear="pointerout", empty=False)
    points = (
        alt.Chart(table.filter(pl.col("rows") == main))
        .mark_point(filled=True, size=90, color=BLUE, clip=True)
        .encode(x, y, opacity=alt.condition(hover, alt.value(1), alt.value(0)), tooltip=tooltip)
        .add_params(pick, hover)
    )
    layers: list[alt.Chart | alt.LayerChart] = [lines]
    if cheapest is not None and shown == COST:
        layers.append(_mark(table, main, cheapest, x, y, "cheapest", GREEN, 18))
    marks = (
        [("in use", current, GREY, [5, 4])]
        if current == proposed
        else [("in use", current, GREY, [5, 4]), ("proposed", proposed, VERMILION, [1, 0])]
    )
    for place, (text, at, colour, dash) in enumerate(marks):
        value = alt.Chart(alt.InlineData(values=[{"at": float(min(max(at, lowest), 1.0)), "text": text}]))
        layers.append(value.mark_rule(color=colour, strokeDash=dash, size=2).encode(alt.X("at:Q")))
        # Near the right end the word stands to the left of its line.
        right = np.log(max(at, lowest) / lowest) > _RIGHT * np.log(1 / lowest)
        word = value.mark_text(color=colour, align="right" if right else "left", dx=-4 if right else 4, y=8 + 15 * place, fontWeight="bold")
        layers.append(word.encode(alt.X("at:Q"), text="text:N"))
    chart: alt.LayerChart = alt.LayerChart(layer=[*layers, points]).properties(height=HEIGHT + 60)
    return chart


def _mark(table: pl.DataFrame, rows: str, threshold: float, x: alt.X, y: alt.Y, text: str, colour: str, dy: int) -> alt.LayerChart:
    """Mark one point of the curve by a diamond with a word."""
    own = table.filter(pl.col("rows") == rows)
    nearest = own.with_columns(far=(pl.col("threshold") - threshold).abs()).sort("far").head(1).with_columns(text=pl.lit(text))
    base = alt.Chart(nearest)
    diamond = base.mark_point(shape="diamond", filled=True, size=160, color=colour, opacity=1).encode(x, y)
    marked: alt.LayerChart = alt.LayerChart(
        layer=[diamond, base.mark_text(dy=dy, color=colour, fontWeight="bold").encode(x, y, text="text:N")]
    )
    return marked


def _lowest(table: pl.DataFrame, shown: str, thresholds: Sequence[float]) -> float:
    """The lowest threshold on the axis: costs that are above the plot take no width from the others."""
    least = [each for each in thresholds if each > 1e-9]
    if shown == COST:
        at, cost = table["threshold"].to_numpy(), table[COST].to_numpy()
        least.append(max(float(at[cost <= _cost_range(table, thresholds)[1]].min(initial=0.1)), FIRST))
    else:
        least.append(FIRST)
    return min(10 ** float(np.floor(2 * np.log10(each)) / 2) for each in least)


def _cost_range(table: pl.DataFrame, thresholds: Sequence[float]) -> list[float]:
    """The costs that are shown: those around the lowest one and at the marked thresholds."""
    cost = table[COST].to_numpy()
    low, high = float(cost.min()), float(cost.max())
    marked = [float(cost[np.abs(table["threshold"].to_numpy() - each).argmin()]) for each in thresholds]
    return [0.0, max(min(high, max(low * _MOST_SHOWN, *(1.3 * each for each in marked))), 1e-9)]


Kind = Literal["share", "rate", "money", "count", "number"]
Tone = Literal["better", "worse", "same"]


def said(value: float | None, kind: Kind, *, signed: bool = False) -> str:
    """Format a value; a dash where there is none. The sign of a difference comes first."""
    if value is None:
        return "–"
    sign = "" if not signed else "+" if value > 0 else "−" if value < 0 else ""
    size = abs(value) if signed else value
    points = signed and kind in ("share", "rate")
    text = {
        "share": f"{100 * size:.1f}{' points' if points else ' %'}",
        "rate": f"{100 * size:.2f}{' points' if points else ' %'}",
        "money": f"{size:,.0f}",
        "count": f"{size:,.0f}",
        "number": f"{size:,.1f}",
    }[kind]
    if sign and not any(each in "123456789" for each in text):
        return "0" + (" points" if points else "")
    return sign + text


def said_interval(interval: tuple[float, float] | None, kind: Kind, *, signed: bool = False) -> str:
    """Format an interval, with the unit once; a dash where there is none."""
    if interval is None:
        return "–"
    low, high = (said(limit, kind, signed=signed) for limit in interval)
    unit = next((each for each in (" points", " %") if high.endswith(each)), "")
    return f"{low.removesuffix(unit)} to {high}"


def tone(change: Change) -> Tone:
    """Say whether a change is better, worse, or not clear on these rows."""
    if not change.clear:
        return "same"
    return "better" if change.improves else "worse"


def changes_table(changes: Changes, costs: Costs | None) -> list[tuple[str, Kind, Change]]:
    """List the quantities that are compared: name, format and change."""
    day = " per day" if changes.days is not None else ""
    found: list[tuple[str, Kind, Change]] = [
        ("Frauds caught", "count", changes.caught()),
        ("Recall", "share", changes.recall()),
        (f"Alarms{day}", "number" if day else "count", changes.alarms_per_day()),
        (f"False alarms{day}", "number" if day else "count", changes.false_alarms_per_day()),
        ("Precision", "share", changes.precision()),
        ("False-positive rate", "rate", changes.false_positive_rate()),
    ]
    if changes.amounts:
        found += [("Amount caught", "money", changes.amount_caught()), ("Amount missed", "money", changes.amount_missed())]
        if costs is not None:
            found.append(("Total cost", "money", changes.cost(costs.per_alarm, costs.loss_share)))
    return found


def cost_sentence(change: Change, cheapest: float, *, days: float | None) -> str:
    """Say what the cheapest threshold saves against the one in use.

    Args:
        change: Change of the total cost on the test rows from the threshold in use to the cheapest one.
        cheapest: The cheapest threshold on the rows that choose.
        days: Length of the test; None without times.
    """
    value, interval = change.difference.value, change.difference.interval
    if not value:
        return "No threshold costs less than the one in use."
    noise = "" if interval is None else f" (95 %: {said_interval(interval, 'money', signed=True)})"
    on = "" if days is None else f" in the {counted(round(days), 'day')} of the test"
    name = f"The cheapest threshold, {cheapest:.4g},"
    if not change.clear:
        return f"{name} makes no clear difference in cost from the one in use{on}: {said(value, 'money', signed=True)}{noise}."
    if value < 0:
        return f"{name} costs {abs(value):,.0f} less than the one in use{on}{noise}."
    return f"{name} costs {value:,.0f} more than the one in use{on}{noise}, although it is the cheapest on the rows that choose."
