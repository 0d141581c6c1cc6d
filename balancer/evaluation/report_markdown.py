"""``report.md``: the page a person reads first, written from the report's dict alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from balancer.evaluation.report_content import (
    AVERAGE_PRECISION,
    BRIER,
    CARD_PRECISION,
    ECE,
    F1,
    F1_AT_HALF,
    FALSE_ALARMS,
    PRECISION,
    RECALL,
    RECALL_AT_FPR,
    THIS_RUN,
    Column,
    Figures,
    differences,
    models_of,
    standard_error,
    verdict,
)

PART_TITLES = {
    "train": ("train", "trains the classifier"),
    "gap": ("gap", "left out: labels not known yet when training ends; history only"),
    "reward": ("validation, reward half", "steers the sampling, stops the boosted trees"),
    "threshold": ("validation, threshold half", "fits calibration and threshold"),
    "test": ("test", "judged once"),
}


def render_page(report: Mapping[str, Any]) -> str:
    """``report.md``: this run beside its baselines, what it won and lost, each class, the split."""
    policy = report["run"].get("policy", {})
    name = policy.get("name") if isinstance(policy, Mapping) else None
    models = models_of(report, f"{THIS_RUN} ({name})" if name else THIS_RUN)
    columns = {
        "AP": AVERAGE_PRECISION,
        "F1, tuned": F1,
        "precision, tuned": PRECISION,
        "recall, tuned": RECALL,
        "F1 at .5": F1_AT_HALF,
        **{f"false alarms at recall {recall}": column for recall, column in FALSE_ALARMS.items()},
        "recall at FPR .001": RECALL_AT_FPR,
        "recall at FPR .01": Column(("recall_at_fpr", "0.01"), "", 3),
        "card precision@100": CARD_PRECISION,
        "Brier": BRIER,
        "ECE": ECE,
    }
    lines = ["# Report", "", verdict(report), "", "## On the untouched, later test rows", ""]
    lines += _table(["model", *columns], [[title, *_marked(columns.values(), figures, models)] for title, figures in models.items()])
    lines += [
        "",
        "Bold: best of its column. AP: average precision. Tuned: at the threshold with the best F1 on validation rows, of "
        "calibrated scores; at .5: the default threshold, of the model's own scores. False alarms are per 10,000 legitimate rows, "
        "at the highest threshold that reaches the recall; – where none does. Card precision@100: of the 100 entities with the "
        "highest scores of a day, the share with fraud that day (all entities on a day that has fewer). ECE: expected calibration "
        "error over 15 bins of equal numbers of rows.",
        "",
        "## Won and lost",
        "",
    ]
    lines += [line for title, figures in list(models.items())[1:] for line in _won_and_lost(title, report["test"], figures)]
    error = standard_error(report["test"])
    if error is not None:
        lines += [
            "",
            f"With {report['test']['positives']:,} frauds in the test rows, chance alone moves an average precision by about ± {error:.3f} "
            "(one standard error), and another seed moves it again: differences of that size prove nothing.",
        ]
    return "\n".join([*lines, "", *_classes(models), *_split(report["run"]), *_training(report["run"])]).rstrip() + "\n"


def _marked(columns: Iterable[Column], figures: Figures, models: Mapping[str, Figures]) -> list[str]:
    """Texts of one model's row, the best of each column in bold."""
    cells = []
    for column in columns:
        best = column.best(list(models.values()))
        text = column.text(figures)
        cells.append(f"**{text}**" if best is not None and column.value(figures) == best else text)
    return cells


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return [f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines]


def _won_and_lost(title: str, test: Figures, baseline: Figures) -> list[str]:
    found = differences(test, baseline)
    parts = [
        f"{item.name}: {item.this} against {item.other} ({item.outcome if item.outcome == 'level' else f'{item.change}, {item.outcome}'})"
        for item in found
    ]
    return [f"- **{title}**. {'; '.join(parts)}."] if parts else []


def _classes(models: Mapping[str, Figures]) -> list[str]:
    """Average precision of each class by every model, and this run's own figures of the class."""
    run, *_ = models.values()
    head = ["class", "rows", *(f"AP, {title}" for title in models), "AP one-vs-rest", "recall", "precision", "false alarms at recall 0.60"]
    rows = []
    for name, own in run["per_class"].items():
        of_class = {title: figures["per_class"][name] for title, figures in models.items()}
        by_model = [text for figures in of_class.values() for text in _marked([AVERAGE_PRECISION], figures, of_class)]
        columns = [Column(("average_precision_one_vs_rest",), "", 3), RECALL, PRECISION, FALSE_ALARMS["0.60"]]
        rows.append([name, f"{own['rows']:,}", *by_model, *(column.text(own) for column in columns)])
    return [
        "## Each class of fraud",
        "",
        *_table(head, rows),
        "",
        "AP of a class: its rows against the legitimate ones, by the score of fraud of any kind; one-vs-rest: by this run's score of "
        "the class itself against all other rows. Recall, precision and false alarms are this run's, at its tuned threshold or at "
        "recall 0.60 of the class.",
        "",
    ]


def _split(run: Mapping[str, Any]) -> list[str]:
    """How the rows were split, from ``data.parts`` and ``data.split`` of the run."""
    data = run.get("data", {})
    parts = data.get("parts", {})
    rows = []
    for name, part in parts.items():
        title, use = PART_TITLES.get(name, (name, ""))
        kinds = list(part["classes"].items())
        frauds = sum(count for _, count in kinds[1:])
        known = frauds + sum(count for _, count in kinds[:1])
        share = f"{100 * frauds / known:.2f} %" if known else "–"
        rows.append([title, use, f"{part['rows']:,}", f"{frauds:,}", share])
    if not rows:
        return []
    lines = ["## How the rows were split", "", "By time, each part later than the one before; no row was sampled before the split.", ""]
    lines += _table(["part", "use", "rows", "fraud", "share"], rows)
    split = data.get("split")
    if split:
        lines += ["", f"Asked for: {_pairs(split)}."]
    lines += [""] if data.get("notes") else []
    lines += [f"- {note}" for note in data.get("notes", [])]
    return [*lines, ""]


def _training(run: Mapping[str, Any]) -> list[str]:
    """Policy, schedule and configuration."""
    lines = ["## How it was trained", ""]
    lines += [f"- {key}: {_pairs(run[key])}" for key in ("policy", "schedule", "configuration", "versions") if run.get(key)]
    lines += [f"- {key}: {run[key]}" for key in ("device", "threads") if key in run]
    return lines if len(lines) > 2 else []


def _pairs(content: Any) -> str:
    """``key value`` pairs in one line; what is not set is left out."""
    if not isinstance(content, Mapping):
        return str(content)
    given = {key: value for key, value in content.items() if value is not None and not isinstance(value, Mapping)}
    return ", ".join(f"{key} {', '.join(map(str, value)) if isinstance(value, list | tuple) else value}" for key, value in given.items())
