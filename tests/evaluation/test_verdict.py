"""What the verdict says about a run: sentences and tiles for every kind of run."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

from balancer.evaluation.metrics import evaluate_scores
from balancer.evaluation.plain_numbers import daily, in_words, more, share, signed
from balancer.evaluation.verdict import UNCLEAR, Verdict, best_alternative, build_verdict

N, DAYS = 6_000, 30


class Made:
    """A report with its rows, whose run has the given quality."""

    def __init__(
        self,
        *,
        run: float = 2.5,
        rival: float = 2.5,
        money: float = 0.0,
        frauds: float = 0.05,
        classes: tuple[str, ...] = ("0", "1"),
        seed: int = 0,
        rival_name: str = "lightgbm",
        threshold: float = 0.5,
    ) -> None:
        random = np.random.default_rng(seed)
        self.classes = classes
        self.label = np.where(random.random(N) < frauds, random.integers(1, len(classes), N), 0)
        fraud = self.label > 0
        self.amount = np.round(random.lognormal(4, 1, N), 2)
        common = random.normal(size=N)
        large = fraud & (self.amount > np.median(self.amount))
        small = fraud & ~large
        raw = {
            "run": common + random.normal(size=N) * 0.5 + run * fraud + money * large - money * small,
            rival_name: common + random.normal(size=N) * 0.5 + rival * fraud,
            "none": common + random.normal(size=N) + 1.0 * fraud,
        }
        self.scores = {name: 1 / (1 + np.exp(-(each - 3))) for name, each in raw.items()}
        self.threshold = threshold
        start = datetime(2026, 1, 1)
        self.time = [start + timedelta(days=DAYS * place / (N - 1)) for place in range(N)]
        self.decision: dict[str, Any] = {"threshold": self.threshold}
        seconds = np.array([(each - start).total_seconds() for each in self.time])
        figures = {
            name: evaluate_scores(
                self.label, each, threshold=self.threshold, raw_score=each, classes=classes, time=seconds, amount=self.amount
            )
            for name, each in self.scores.items()
        }
        self.report: dict[str, Any] = {"test": figures.pop("run"), "baselines": figures, "run": {}, "timing": {}}

    def frames(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        label = pl.Series([self.classes[each] for each in self.label])
        entity = [f"c{each % 700}" for each in range(N)]
        columns = {"time": self.time, "entity": entity, "amount": self.amount, "label": label, "score": self.scores["run"]}
        return pl.DataFrame(columns), pl.DataFrame({"label": label} | self.scores)

    def verdict(self, *, drop: tuple[str, ...] = (), scored: bool = True, counted: bool = True, amounts: bool = True) -> Verdict:
        predictions, scores = self.frames()
        return build_verdict(
            self.report,
            self.decision,
            predictions=predictions.drop(drop) if counted else None,
            scores=scores if scored else None,
            classes=self.classes,
            amounts=amounts,
        )


def said(verdict: Verdict) -> str:
    return " ".join((*verdict.sentences, verdict.basis, *(f"{tile.label} {tile.value} {tile.note}" for tile in verdict.tiles)))


@pytest.mark.parametrize(("run", "outcome"), [(3.5, "better"), (2.5, "equal"), (1.5, "worse")])
def test_outcomes(run: float, outcome: str) -> None:
    made = Made(run=run)
    made.report["baselines"]["lightgbm"]["average_precision"] = 0.999  # the best alternative, in any case
    verdict = made.verdict()
    assert verdict.outcome == outcome
    assert "LightGBM" in verdict.sentences[1]
    assert {
        "better": "Recommended: use this run.",
        "equal": "No clear reason to prefer this run to LightGBM.",
        "worse": "Not recommended: LightGBM is better on these rows.",
    }[outcome] == verdict.recommendation
    assert ("no clear difference" in verdict.sentences[1]) == (outcome == "equal")
    assert (verdict.tiles[3].value == UNCLEAR) == (outcome == "equal")
    if outcome != "equal":
        assert verdict.tiles[3].value.startswith("+" if outcome == "better" else "−")
        assert f"{'more' if outcome == 'better' else 'fewer'} frauds" in verdict.sentences[1]
        assert f"{'fewer' if outcome == 'better' else 'more'} false alarms a day" in verdict.sentences[1]


def test_numbers_are_those_of_the_rows() -> None:
    made = Made(threshold=0.2)
    verdict, alarms = made.verdict(), made.report["test"]["alarms"]
    caught, frauds = alarms["caught"], alarms["caught"] + alarms["missed"]
    whole = alarms["amount_caught"] + alarms["amount_missed"]
    assert verdict.tiles[0].value == f"{caught:,} of {frauds:,}"
    assert verdict.tiles[1].value == share(alarms["amount_caught"] / whole)
    assert verdict.tiles[2].value == daily(alarms["false_alarms_per_day"])
    assert f"({caught:,} of {frauds:,})" in verdict.sentences[0]
    assert f"{daily(alarms['false_alarms_per_day'])} false alarms a day" in verdict.sentences[0]
    assert verdict.recall == made.report["test"]["recall"]
    assert verdict.precision == made.report["test"]["precision"]
    assert "6,000 test transactions of 30 days" in verdict.basis


def test_more_money_with_fewer_frauds_is_no_clear_recommendation() -> None:
    verdict = Made(money=2.5, run=2.5, rival=3.65).verdict()
    assert verdict.outcome == "mixed"
    assert verdict.recommendation == "No clear recommendation: this run catches more money and LightGBM more frauds."


def test_the_best_alternative_is_the_one_with_the_highest_average_precision() -> None:
    made = Made(rival=1.0, rival_name="one_to_one")
    made.report["baselines"]["full"] = {"average_precision": 1.0}  # a part of the run is no alternative
    assert best_alternative(made.report) == "one_to_one"
    assert "the network with 1:1 over-sampling" in made.verdict().sentences[1]
    assert best_alternative({"baselines": {}}) is None


def test_a_saved_threshold_is_counted_and_named() -> None:
    made = Made()
    made.decision = {"threshold": 0.2, "tuned": 0.5, "chosen": "a recall of at least 90 %"}
    verdict = made.verdict()
    caught = int(((made.label > 0) & (made.scores["run"] >= 0.2)).sum())
    assert verdict.tiles[0].value.startswith(f"{caught:,} of ")
    assert "the threshold 0.2, which was saved on the page Threshold (a recall of at least 90 %); training tuned 0.5." in verdict.basis


def test_without_amounts() -> None:
    verdict = Made().verdict(amounts=False)
    assert "money" not in said(verdict).lower()
    assert verdict.tiles[1].label == "Right alarms"


def test_unknown_amounts_count_as_nothing() -> None:
    made = Made(run=3.5)
    predictions, scores = made.frames()
    holes = predictions.with_columns(amount=pl.when(pl.int_range(pl.len()) % 5 == 0).then(None).otherwise(pl.col("amount")))
    found = build_verdict(made.report, made.decision, predictions=holes, scores=scores, classes=made.classes, amounts=True)
    assert "nan" not in said(found)
    frauds = holes.filter(pl.col("label") != "0")
    caught = frauds.filter(pl.col("score") >= made.threshold)["amount"].sum()
    assert found.tiles[1].note.startswith(f"{caught:,.0f} of {frauds['amount'].sum():,.0f} ")


@pytest.mark.parametrize("way", ["no column", "nulls"])
def test_without_times(way: str) -> None:
    made = Made()
    predictions, scores = made.frames()
    predictions = predictions.drop("time") if way == "no column" else predictions.with_columns(time=pl.lit(None, dtype=pl.Datetime))
    verdict = build_verdict(made.report, made.decision, predictions=predictions, scores=scores, classes=made.classes, amounts=True)
    assert "a day" not in said(verdict)
    assert " days" not in said(verdict)
    assert verdict.tiles[2].label == "False alarms"


def test_without_entities() -> None:
    assert Made(run=3.5).verdict(drop=("entity",)).outcome == "better"


def test_several_kinds_of_fraud() -> None:
    made = Made(classes=("fine", "stolen *card*", "takeover"))
    predictions, _ = made.frames()
    alarm = pl.col("score") >= made.threshold
    rates = predictions.filter(pl.col("label") != "fine").group_by("label").agg(alarm.mean().alias("rate")).sort("rate")
    first = made.verdict().sentences[0]
    assert "frauds of 2 kinds" in first
    assert f"it catches least of the kind {rates['label'][0]}," in first


def test_no_fraud_in_the_test_rows() -> None:
    verdict = Made(frauds=0.0).verdict()
    assert verdict.outcome == "unknown"
    assert "no fraud" in verdict.sentences[0]
    assert verdict.recall is None


def test_scores_at_the_level_of_chance() -> None:
    verdict = Made(run=0.0).verdict()
    assert verdict.outcome == "chance"
    assert verdict.recommendation.startswith("Not recommended: check the label")


def test_no_alarm_and_only_alarms() -> None:
    made = Made()
    made.decision = {"threshold": 1.0000000000000002, "tuned": 0.5, "chosen": "at most 0 alarms"}
    verdict = made.verdict()
    assert "raises no alarm" in verdict.sentences[0]
    assert verdict.outcome == "unknown"
    assert verdict.precision is None
    made.decision = {"threshold": 0.0}
    assert "all frauds" in made.verdict().sentences[0]


def test_few_frauds() -> None:
    made = Made(frauds=0.001, seed=2)
    assert 0 < (made.label > 0).sum() < 10
    verdict = made.verdict()
    assert verdict.outcome == "equal"
    assert "too few frauds" in said(verdict)


@pytest.mark.parametrize("counted", [True, False])
def test_an_older_run_without_the_scores_of_every_model(counted: bool) -> None:
    made = Made(run=3.5)
    verdict = made.verdict(scored=False, counted=counted)
    assert verdict.outcome == "better"
    assert "an earlier version wrote this run" in verdict.sentences[1]
    assert Made().verdict(scored=False).outcome == "equal"


def test_an_older_run_without_rows_and_counts_of_alarms() -> None:
    made = Made()
    expected = made.verdict().tiles[0].value
    del made.report["test"]["alarms"]
    verdict = made.verdict(scored=False, counted=False)
    assert verdict.tiles[0].value == expected
    assert "a day" not in said(verdict)


def test_scores_of_other_rows_are_not_compared() -> None:
    made = Made()
    predictions, scores = made.frames()
    for wrong in (scores.head(10), scores.reverse(), scores.drop("lightgbm")):
        found = build_verdict(made.report, made.decision, predictions=predictions, scores=wrong, classes=made.classes, amounts=True)
        assert found.tiles[3].note == "not compared row by row"


def test_rows_without_a_label_are_left_out() -> None:
    made = Made()
    predictions, scores = made.frames()
    unknown = pl.DataFrame({"label": pl.Series([None], dtype=pl.String)})
    more_rows = [pl.concat([unknown, frame], how="diagonal").fill_null(strategy="backward") for frame in (predictions, scores)]
    more_rows = [frame.with_columns(label=pl.concat([pl.Series([None], dtype=pl.String), predictions["label"]])) for frame in more_rows]
    found = build_verdict(made.report, made.decision, predictions=more_rows[0], scores=more_rows[1], classes=made.classes, amounts=True)
    assert found.sentences == made.verdict().sentences


def test_a_report_without_baselines() -> None:
    made = Made()
    made.report["baselines"] = {}
    assert "without baselines" in made.verdict().sentences[1]


@pytest.mark.parametrize(
    ("part", "whole", "words"),
    [
        (180, 222, "about 4 in 5"),
        (3, 4, "3 in 4"),
        (1, 60, "1 in 60"),
        (97, 100, "about 32 in 33"),
        (35, 100, "about 1 in 3"),
        (1, 2, "1 in 2"),
    ],
)
def test_shares_in_words(part: int, whole: int, words: str) -> None:
    assert in_words(part, whole) == f"{words} frauds"


def test_numbers_in_words() -> None:
    assert in_words(0, 9) == "none of the frauds"
    assert in_words(9, 9) == "all frauds"
    assert [share(each) for each in (0.811, 0.996, 0.004, 1.0, 0.0)] == ["81 %", "99.6 %", "0.4 %", "100 %", "0 %"]
    assert [daily(each) for each in (3.13, 0.166, 1234.5, 0)] == ["3.1", "0.17", "1,234", "0"]
    assert more(-1.0, "fraud") == "1 fewer fraud"
    assert more(0.2, "fraud") == "just as many frauds"
    assert [signed(each) for each in (1361.9, -3.0, 0.2, -0.2)] == ["+1,362", "−3", "0", "0"]
