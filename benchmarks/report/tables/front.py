"""The table of the README: where balancer is ahead, and where it is not."""

from __future__ import annotations

from typing import Any

from benchmarks.report.tables import load, signed, table


def front() -> str:
    """Five questions, each with what was measured."""
    sampling = load("sampling")["parts"]
    jobs = load("main_job")["datasets"]
    real = load("real_tables")["auto_against_the_best_fixed"]["all"]
    rows = [
        ["A network trained on a rare class", "**ahead** of 1:1 over-sampling and of no sampling", _classifiers(sampling)],
        [
            "The whole detector against LightGBM with the same fields",
            "**slightly ahead** on two card streams",
            "; ".join(
                f"{data} {signed(jobs[data]['against']['lightgbm']['average_precision'], digits=4)}" for data in ("sparkov", "handbook")
            )
            + " AP",
        ],
        [
            "Small tables, any of three learners",
            "**equal**: the choice of sampling hardly matters",
            f"{real['win']} wins, {real['tie']} ties, {real['loss']} loss against the best of the fixed ways",
        ],
        ["You can afford 20 trainings to tune a fixed ratio", "**behind** it by a little", _tuned(sampling)],
        ["Few rows, and boosted trees already in use", "**no clear gain** over LightGBM", _small()],
    ]
    return table(["your case", "what to expect", "measured"], rows)


def _classifiers(parts: dict[str, Any]) -> str:
    """Average precision of `auto` and 1:1 with the sequence classifier."""
    found = []
    for data in ("handbook", "sparkov"):
        means = parts[f"{data}-classifier"]["means"]
        found.append(f"{data} {means['auto']['average_precision']:.3f} against {means['one_to_one']['average_precision']:.3f}")
    return "; ".join(found) + " AP"


def _tuned(parts: dict[str, Any]) -> str:
    """The difference of `auto` to the best of 20 trainings, small network."""
    found = []
    for data in ("handbook", "sparkov"):
        means = parts[f"{data}-population"]["means"]
        found.append(f"{data} {means['auto']['average_precision'] - means['tpe']['average_precision']:+.3f}")
    return "; ".join(found) + " AP"


def _small() -> str:
    """The difference to LightGBM on simulated tables of 60,000 rows, with its standard error."""
    other = load("simulated_seeds")["average_precision_against"]["lightgbm"]
    return f"{other['mean_difference']:+.3f} ± {other['standard_error']:.3f} AP on six tables of 60,000 rows"
