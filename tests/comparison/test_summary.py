"""The summary agrees with its figures; table and chart show the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from balancer.comparison.chart import chart_rows, comparison_chart, write_chart
from balancer.comparison.summary import document, present_document
from balancer.comparison.terminal import print_comparison


def _results(gains: dict[str, float], folds: int = 6, wobble: float = 0.01, seeds: int = 2) -> list[dict[str, Any]]:
    """Cells whose treatments differ from ``one_to_one`` by ``gains``, with variation between folds."""
    return [
        {
            "treatment": name,
            "fold": w,
            "seed": s,
            "average_precision": 0.6 + gain + (wobble * (-1) ** w * (1 + w / 10) if gain else 0.0),
            "f1": 0.5 + gain,
            "f1_at_half": 0.4,
            "ece": 0.002,
            "false_alarms_per_10k_at_recall": {"0.60": 10.0 * (1 - gain * 5), "0.70": 20.0},
            "rows": 20_000,
            "positives": 100,
            "trainings": 20 if name == "tpe" else 1,
        }
        for name, gain in gains.items()
        for w in range(folds)
        for s in range(seeds)
    ]


def test_a_gain_beyond_noise() -> None:
    text = document(_results({"one_to_one": 0.0, "auto": 0.06, "none": -0.05}), "one_to_one")["sentence"]
    assert text.startswith("Over 6 folds and 2 seeds, auto has the best average precision (0.6")
    assert "more than noise, better in 6 of 6 folds" in text
    assert "no more than noise" not in text
    assert "false alarms at recall .60 -29 %" in text


def test_noise_is_called_noise() -> None:
    text = document(_results({"one_to_one": 0.0, "auto": 0.004}, wobble=0.05), "one_to_one")["sentence"]
    assert "no more than noise (the interval includes 0)" in text


def test_a_loss_is_told() -> None:
    text = document(_results({"one_to_one": 0.0, "auto": -0.1, "tpe": 0.05}), "one_to_one")["sentence"]
    assert "tpe has the best average precision" in text
    assert "auto has 0.50" in text
    assert "-0.1" in text.split("auto has")[1]
    best_is_reference = document(_results({"one_to_one": 0.0, "auto": -0.1}), "one_to_one")["sentence"]
    assert "one_to_one has the best average precision (0.600), the reference itself; auto has" in best_is_reference


def test_few_windows_and_one_window() -> None:
    gains = {"one_to_one": 0.0, "auto": 0.06}
    assert "2 folds are too few" in document(_results(gains, folds=2), "one_to_one")["sentence"]
    assert "may differ at other times" in document(_results(gains, folds=1), "one_to_one")["sentence"]
    assert "can't be distinguished from noise" in document(_results(gains, folds=1, seeds=1), "one_to_one")["sentence"]


def test_nothing_to_compare() -> None:
    assert "nothing to compare it with" in document(_results({"auto": 0.1}), "auto")["sentence"]


def test_a_document_of_version_0_1_is_given_the_present_keys() -> None:
    content = document(_results({"one_to_one": 0.0, "auto": 0.06}), "one_to_one") | {"folds": [{"fold": 0, "rows": 9}]}
    old_names = {"treatment": "policy", "fold": "window", "folds": "windows", "folds_better": "windows_better"}

    def old(value: Any) -> Any:
        if isinstance(value, dict):
            return {old_names.get(key, key): old(each) for key, each in value.items()}
        return [old(each) for each in value] if isinstance(value, list) else "windows" if value == "folds" else value

    assert present_document(old(content)) == present_document(content) == content


def test_table_fits_a_terminal_of_80() -> None:
    content = document(_results({"one_to_one": 0.0, "auto": 0.06, "tpe": 0.01, "constant:share=.2,hardness=1": 0.02}), "one_to_one")
    console = Console(width=80, record=True)
    with console.capture() as captured:
        print_comparison(content, console)
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[3:7]] == ["auto", "constant:share=…", "tpe", "one_to_one"]
    assert lines[3].split()[1:] == [".659", ".560", ".400", "7.0", "20.0", ".0020", "1", "+.059", *lines[3].split()[-2:]]
    assert lines[5].split()[7] == "20"


def test_the_head_of_the_first_column_is_whole_beside_short_names() -> None:
    console = Console(width=80)
    with console.capture() as captured:
        print_comparison(document(_results({"none": 0.0, "auto": 0.06}), "none"), console)
    assert "treatment" in captured.get()


def test_chart_rows_say_which_intervals_leave_zero_out() -> None:
    content = document(_results({"one_to_one": 0.0, "auto": 0.06, "none": -0.06, "rule": 0.001}), "one_to_one")
    verdict = {row["treatment"]: row["verdict"] for row in chart_rows(content, "average_precision")}
    assert verdict == {"auto": "better", "none": "worse", "rule": "within noise"}
    alarms = {row["treatment"]: row for row in chart_rows(content, "false_alarms_per_10k_at_recall_0.60")}
    assert alarms["auto"]["verdict"] == "better"
    assert alarms["auto"]["difference"] == pytest.approx(100 * (7.25 / 10.25 - 1), abs=1)


def test_what_has_no_interval_is_not_called_better() -> None:
    content = document(_results({"one_to_one": 0.0, "auto": 0.06}, folds=1, seeds=1), "one_to_one")
    for metric in ("average_precision", "false_alarms_per_10k_at_recall_0.60"):
        (row,) = chart_rows(content, metric)
        assert row["verdict"] == "within noise"
        assert row["low"] == row["high"] == row["difference"]


@pytest.mark.slow
def test_chart_files(tmp_path: Path) -> None:
    content = document(_results({"one_to_one": 0.0, "auto": 0.06, "none": -0.06}), "one_to_one")
    chart = comparison_chart(content).to_dict()
    assert chart["concat"][0]["title"] == "average precision"
    write_chart(content, tmp_path / "c.svg")
    svg = (tmp_path / "c.svg").read_text()
    assert "difference to one_to_one (right is better)" in svg
    assert "change in % to one_to_one (left is better)" in svg
    write_chart(content, tmp_path / "c.html")
    html = (tmp_path / "c.html").read_text()
    assert "vega" in html
    assert "<script src=" not in html  # needs no network
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.html", "c.svg"]
