"""Charts: every axis has a title, every chart becomes an SVG, nothing is drawn that the frame does not
hold."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import numpy as np
import polars as pl
import pytest

from balancer.app import charts
from balancer.app.aggregates import alarms_by_day, attention_of, by_class, calibration_bins, operating_points, outcome
from balancer.app.chart_parts import POLICY, RUN_COLOURS, YOU
from balancer.evaluation.report_content import PARTS, THIS_RUN, TITLES
from balancer.models.quantization import SensitivityReport, SensitivityRow

DAYS = [dt.datetime(2026, 1, 1) + dt.timedelta(hours=7 * hour) for hour in range(40)]
ROWS = pl.DataFrame(
    {
        "id": range(40),
        "time": DAYS,
        "amount": [10.0 + row for row in range(40)],
        "label": [None if row == 5 else "stolen" if row % 10 == 0 else "takeover" if row % 10 == 1 else "0" for row in range(40)],
        "score": [0.9 if row % 10 < 2 and row < 25 else 0.02 * (row % 7) for row in range(40)],
    }
)
HISTORY = pl.DataFrame(
    {"epoch": [1, 2], "hardness": [0.0, 1.0], "floor": [0.1, 0.0], "average_precision": [0.3, 0.4], "f1": [0.2, 0.3], "fpr": [0.01, 0.02]}
    | {"share_0": [0.9, 0.8], "share_1": [0.1, 0.2]}
)
CURVES = pl.DataFrame(
    {"model": ["run"] * 3, "recall": [0.1, 0.5, 1.0], "precision": [1.0, 0.5, 0.1], "fpr": [0.0, 0.01, 1.0], "threshold": [0.9, 0.5, 0.0]}
)
POINTS = operating_points(ROWS, "0", amounts=True)
COUNTS = POINTS.metrics(0.5)
SURFACE = pl.DataFrame(
    {"share": [0.1, 0.1, 0.5, 0.5], "hardness": [0.0, 1.0] * 2, "average_precision": [0.3, 0.5, 0.4, 0.2], "f1": [0.1] * 4}
)
WAY = pl.DataFrame({"epoch": [1, 2, 3], "share": [0.1, 0.3, 0.6], "hardness": [0.0, 2.5, 1.0]})
LINE = ROWS.with_columns(outcome(0.5, "0"), attention=pl.lit(0.2), chosen=pl.col("id") == 3, global_node=pl.col("id") == 2)
SENSITIVITY = SensitivityReport(
    [SensitivityRow(name, "linear", 4, {"int8": score, "bf16": 0.0, "fp32": 0.0}, {}, {}) for name, score in (("a", 1e-3), ("b", 0.0))],
    *("exact", 8, 1, 0.1, ""),
)
FIELDS = pl.DataFrame(
    {
        "field": ["a", "(network)", "b"],
        "value": ["1", "", "x"],
        "contribution": [1.0, -0.75, 0.5],
        "words": ["a of this card", "own part", "b"],
    }
)
MODELS = ["this run", *TITLES.values()]
ALL = {
    "weights of version 0.1": charts.weights_chart(HISTORY),
    "weights": charts.weights_chart(HISTORY.with_columns(class_importance=pl.lit(0.5), hardness_importance=pl.lit(0.0))),
    "epochs": charts.epochs_chart(HISTORY.with_columns(model=pl.lit("run")), metric="f1", title="F1"),
    "precision-recall": charts.curves_chart(CURVES, at=COUNTS),
    "precision-recall alone": charts.curves_chart(CURVES),
    "roc": charts.roc_chart(CURVES, at=COUNTS),
    "threshold": charts.threshold_chart(POINTS.table(), 0.5),
    "rate": charts.rate_chart(POINTS.table(), 0.0),
    "cost": charts.cost_chart(POINTS.table(cost=POINTS.cost(5)), 2.0),
    "alarms": charts.alarms_chart(alarms_by_day(ROWS, 0.5, "0")),
    "confusion": charts.confusion_chart(COUNTS, POINTS.legitimate),
    "calibration": charts.calibration_chart(calibration_bins(ROWS, "0", bins=3)),
    "surface": charts.surface_chart(SURFACE, WAY),
    "timeline": charts.timeline_chart(LINE, threshold=0.5),
    "contributions": charts.contributions_chart(FIELDS),
    "few contributions": charts.contributions_chart(FIELDS, most=1),
    "sensitivity": SENSITIVITY.chart({"a": "int8"}),
    "bars": charts.bars_chart(pl.DataFrame({"part": ["a"], "size": [3]}), x="size", y="part", x_title="kB", y_title="part"),
}


def axes(spec: Any) -> list[tuple[str, Any]]:
    """Every x and y of a chart, however it is nested; a layer may leave its title to another layer of the
    same view."""
    if "layer" in spec:
        inner = [found for layer in spec["layer"] for found in axes(layer)]
        titled = {channel for channel, title in inner if title}
        return [(channel, title or channel in titled) for channel, title in inner]
    found = [axis for key in ("vconcat", "hconcat", "concat") for part in spec.get(key, []) for axis in axes(part)]
    encoding = spec.get("encoding", {})
    return found + [(channel, encoding[channel].get("title")) for channel in ("x", "y") if channel in encoding]


@pytest.mark.parametrize("name", ALL)
def test_every_axis_has_a_title_and_the_chart_becomes_an_svg(name: str) -> None:
    found = axes(ALL[name].to_dict())
    assert {channel for channel, _ in found} == {"x", "y"}
    assert all(title for _, title in found), found
    assert charts.svg(ALL[name]).startswith(b"<svg")


def test_importances_are_shown_where_the_run_has_them() -> None:
    old, new = (charts.svg(ALL[name]).decode() for name in ("weights of version 0.1", "weights"))
    assert "hardness exponent" in old
    assert "importance" not in old
    assert "importance of classes" in new
    assert "importance within classes" in new


def test_outcomes_and_their_sums() -> None:
    named = ROWS.with_columns(outcome(0.5, "0"))
    assert named["outcome"].null_count() == 1
    counts = dict(named["outcome"].drop_nulls().value_counts().rows())
    assert counts == {"caught": 6, "missed": 2, "passed": 31}
    assert (COUNTS["caught"], COUNTS["missed"], COUNTS["false_alarms"]) == (6, 2, 0)
    days = alarms_by_day(ROWS, 0.5, "0")
    assert days["alarms"].sum() == 6
    assert days["day"].n_unique() == 12  # days without an alarm are there too
    types = by_class(ROWS, 0.5, "0", amounts=True)
    assert dict(types.select("fraud class", "caught").rows()) == {"stolen": 3, "takeover": 3}
    frauds = ROWS.filter(pl.col("label").is_in(["stolen", "takeover"]))
    assert types["amount"].sum() == frauds["amount"].sum()


def test_calibration_bins_hold_every_known_row_and_an_interval_around_the_rate() -> None:
    rng = np.random.default_rng(0)
    score = rng.random(5000) ** 4
    rows = pl.DataFrame({"score": score, "label": np.where(rng.random(5000) < score, "1", "0")})
    bins = calibration_bins(rows, "0")
    assert bins["rows"].sum() == 5000
    assert (bins["low"] <= bins["rate"]).all()
    assert (bins["rate"] <= bins["high"]).all()
    inside = ((bins["low"] <= bins["score"]) & (bins["score"] <= bins["high"])).mean()
    assert inside is not None
    assert inside > 0.8  # the scores are the probabilities
    assert not calibration_bins(rows.with_columns(label=pl.lit("0")), "0").height


def test_curves_are_put_in_order_and_named() -> None:
    curves = pl.concat([CURVES, CURVES.with_columns(model=pl.lit("none"))])
    named = charts.labelled(curves, {"none": "no sampling", "run": "this run", "absent": "not there"})
    assert named["model"].unique(maintain_order=True).to_list() == ["no sampling", "this run"]


def test_attention_of_rows_with_and_without() -> None:
    assert attention_of({"attended": [3, 1], "attended_mass": [0.5, 0.2]}) == {3: 0.5, 1: 0.2}
    assert attention_of({"attended": None}) == attention_of({}) == {}


def colours(chart: Any) -> dict[str, str]:
    """Colour of each model by its name."""
    scale = chart.to_dict()["encoding"]["color"]["scale"]
    return dict(zip(scale["domain"], scale["range"], strict=True))


def lines_of(models: list[str]) -> pl.DataFrame:
    return pl.concat(CURVES.with_columns(model=pl.lit(name), epoch=pl.lit(1), f1=pl.lit(0.5)) for name in models)


def test_a_model_has_the_same_colour_on_every_chart_and_no_other_model_has_it() -> None:
    every = colours(charts.curves_chart(lines_of(MODELS)))
    assert list(every) == MODELS
    assert len(set(every.values())) == len(MODELS) == 9
    for some in (MODELS[3:], ["this run"], ["trees, stage 2", "LightGBM"]):
        for chart in (charts.roc_chart(lines_of(some)), charts.epochs_chart(lines_of(some), metric="f1", title="F1")):
            assert colours(chart) == {name: every[name] for name in some}


def test_the_first_run_is_blue_and_no_run_or_player_has_the_colour_of_a_rival() -> None:
    rivals = {colour for name, colour in charts.MODEL_COLOURS.items() if name not in (THIS_RUN, POLICY, YOU)}
    names = [f"run {number}" for number in range(8)]
    found = colours(charts.curves_chart(lines_of(names)))
    assert list(found) == names
    assert found["run 0"] == charts.MODEL_COLOURS[THIS_RUN]
    assert len(set(found.values())) == len(names)
    assert not rivals & set(found.values())
    again = colours(charts.epochs_chart(lines_of(["run 0", "run 5"]), metric="f1", title="F1"))
    assert again["run 5"] in RUN_COLOURS
    assert colours(charts.epochs_chart(lines_of(["run 3", "run 5"]), metric="f1", title="F1"))["run 5"] == again["run 5"]
    game = colours(
        charts.epochs_chart(lines_of([YOU, POLICY, *(TITLES[name] for name in ("none", "one_to_one"))]), metric="f1", title="F1")
    )
    assert len(set(game.values())) == 4
    assert game["no sampling"] == charts.MODEL_COLOURS["no sampling"]


@pytest.mark.parametrize("colour", sorted({*charts.MODEL_COLOURS.values(), *RUN_COLOURS}))
@pytest.mark.parametrize("background", ["#FFFFFF", "#14171C"])
def test_colours_stand_out_on_light_and_dark(colour: str, background: str) -> None:
    def luminance(text: str) -> float:
        channels = [int(text[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(colour), luminance(background)))
    assert (high + 0.05) / (low + 0.05) >= 3


@pytest.mark.parametrize("ring", [charts.curves_chart, charts.roc_chart])
def test_the_ring_that_marks_a_point_of_this_run_has_its_colour(ring: Any) -> None:
    *_, mark = [layer["mark"] for layer in ring(CURVES, at=COUNTS).to_dict()["layer"] if "mark" in layer]
    assert mark["color"] == charts.MODEL_COLOURS[THIS_RUN]


def views(spec: Any) -> list[Any]:
    """Every view of a chart that has a mark."""
    inner = [view for key in ("layer", "vconcat", "hconcat", "concat") for part in spec.get(key, []) for view in views(part)]
    return inner + ([spec] if "mark" in spec else [])


@pytest.mark.parametrize("name", [name for name in ALL if name != "sensitivity"])
def test_charts_have_tooltips_with_titles_legends_below_and_no_width(name: str) -> None:
    spec = ALL[name].to_dict()
    tips = [tip for view in views(spec) for tip in view.get("encoding", {}).get("tooltip", [])]
    assert tips
    assert all(tip.get("title") for tip in tips), tips
    text = json.dumps({key: value for key, value in spec.items() if key != "datasets"})
    assert '"orient": "right"' not in text
    for view in [spec, *views(spec)]:
        assert "width" not in view
        for channel in view.get("encoding", {}).values():
            legend = channel.get("legend") if isinstance(channel, dict) else None
            assert legend is None or legend["orient"] == ("top" if "gradientLength" in legend else "bottom")


def test_curves_of_many_points_answer_to_the_pointer_with_few_marks() -> None:
    long = pl.DataFrame({"model": ["this run"] * 2000, "recall": np.linspace(0, 1, 2000), "precision": np.linspace(1, 0, 2000)})
    spec = charts.curves_chart(pl.concat([long, long.with_columns(model=pl.lit("LightGBM"))])).to_dict()
    (points,) = (view for view in views(spec) if "tooltip" in view.get("encoding", {}))
    assert len(spec["datasets"][points["data"]["name"]]) <= 2 * 90


def test_the_map_names_the_way_of_the_run_and_other_weights() -> None:
    text = charts.svg(charts.surface_chart(SURFACE, WAY, marks={"best on this map": (0.1, 1.0), "no sampling": (0.02, 0.0)})).decode()
    for name in ("this run, by epoch", "best on this map", "no sampling", "epoch 1", "epoch 3"):
        assert name in text


def test_parts_of_the_detector_are_dashed() -> None:
    dash = charts.curves_chart(lines_of(MODELS)).to_dict()["encoding"]["strokeDash"]
    assert dash["condition"]["test"]["oneOf"] == [TITLES[name] for name in PARTS]
    assert dash["condition"]["value"] != dash["value"]


def test_bars_of_contributions_have_the_sum_of_all() -> None:
    for most, names in (
        (15, ["+1.00  a of this card: 1", "-0.75  own part", "+0.50  b: x"]),
        (1, ["+1.00  a of this card: 1", "-0.25  2 other fields"]),
    ):
        (rows,) = charts.contributions_chart(FIELDS, most=most).to_dict()["datasets"].values()
        assert [row["name"] for row in rows] == names
        assert sum(row["contribution"] for row in rows) == 0.75
