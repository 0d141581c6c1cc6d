"""Render `report.md`, the report for readers, from the content of `report.json`."""

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
    PARTS_OF_RUN,
    PRECISION,
    RECALL,
    RECALL_AT_FPR,
    THIS_RUN,
    Column,
    Metrics,
    baselines_of,
    chance_warning,
    differences,
    members_sentence,
    parts_of,
    standard_error,
    summary,
)
from balancer.evaluation.report_parts import part_lines
from balancer.names import counted

SPLIT_TITLES = {
    "train": ("train", "trains the classifier"),
    "gap": ("gap", "history only: its labels are not yet known when training ends"),
    "reward": ("validation, reward half", "rewards the sampling policy, stops the boosted trees"),
    "threshold": ("validation, threshold half", "fits calibration and threshold"),
    "test": ("test", "evaluated once, after training"),
}
"""Title and use of each split."""


SPLIT_ORDERS = {
    "time": "The rows were split by time, in this order.",
    "rows": "The table has no time: its rows were split in their order.",
    "random": "The parts were drawn at random, not by time, so test rows may be earlier than training rows.",
}


def render_page(report: Mapping[str, Any]) -> str:
    """Render the page: results, differences, each fraud class, the split, the configuration."""
    policy = report["run"].get("policy", {})
    name = policy.get("name") if isinstance(policy, Mapping) else None
    if set(report["run"].get("members", ())) == {"stage2"}:
        name = None  # trees alone are fitted to all rows
    models = {f"{THIS_RUN} ({name})" if name else THIS_RUN: report["test"]} | baselines_of(report)
    parts = parts_of(report)
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
    said = [each for each in (chance_warning(report["test"]), members_sentence(report)) if each]
    lines = ["# Report", "", summary(report), *[line for each in said for line in ("", each)], "", "## Results on the test rows", ""]
    every = models | parts
    rows = [[title, *_marked(columns.values(), metrics, every)] for title, metrics in models.items()]
    rows += [[f"*{PARTS_OF_RUN}:*", *[""] * len(columns)]] if parts else []
    rows += [[title, *_marked(columns.values(), metrics, every)] for title, metrics in parts.items()]
    lines += _table(["model", *columns], rows)
    lines += [
        "",
        f"{_test_rows(report)}Bold: best of its column. AP: average precision. Tuned: "
        "calibrated scores, at the threshold with the best F1 on validation rows. At .5: scores before calibration, at the default "
        "threshold. False alarms are per 10,000 legitimate rows, at the highest threshold that reaches the recall (– where none "
        "does). Card precision@100: share with fraud among the 100 entities with the highest scores of a day (all entities on a day "
        "with fewer). ECE: expected calibration error over 15 bins of equal numbers of rows.",
        "",
        *[f"- **{name}**: {text}." for name, text in part_lines(report, timed=False).items()],
        "",
        "## Differences from the baselines",
        "",
    ]
    lines += [line for title, metrics in list(models.items())[1:] for line in _differences(title, report["test"], metrics)]
    error = standard_error(report["test"])
    if error is not None:
        lines += [
            "",
            f"With {counted(report['test']['positives'], 'fraud')} in the test rows, the standard error of the average precision is about "
            f"± {error:.3f}, and another seed changes it further: differences of that size are not evidence.",
        ]
    return "\n".join([*lines, "", *_classes(every), *_split(report["run"]), *_training(report["run"])]).rstrip() + "\n"


def _test_rows(report: Mapping[str, Any]) -> str:
    drawn = report["run"].get("data", {}).get("order") == "random"
    return "" if drawn else "The test rows are later than all training and validation rows. "


def _marked(columns: Iterable[Column], metrics: Metrics, models: Mapping[str, Metrics]) -> list[str]:
    """Return the cells of one model, the best value of each column in bold."""
    cells = []
    for column in columns:
        best = column.best(list(models.values()))
        text = column.text(metrics)
        cells.append(f"**{text}**" if best is not None and column.value(metrics) == best else text)
    return cells


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return [f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines]


def _differences(title: str, test: Metrics, baseline: Metrics) -> list[str]:
    found = differences(test, baseline)
    parts = [
        f"{item.name}: {item.this}, baseline {item.other} ({item.outcome if item.outcome == 'equal' else f'{item.change}, {item.outcome}'})"
        for item in found
    ]
    return [f"- **{title}**. {'; '.join(parts)}."] if parts else []


def _classes(models: Mapping[str, Metrics]) -> list[str]:
    """Render the average precision of each fraud class by every model, and further metrics of this run."""
    run, *_ = models.values()
    head = ["class", "rows", *(f"AP, {title}" for title in models), "AP one-vs-rest", "recall", "precision", "false alarms at recall 0.60"]
    rows = []
    for name, of_run in run["per_class"].items():
        of_class = {title: metrics["per_class"][name] for title, metrics in models.items()}
        by_model = [text for metrics in of_class.values() for text in _marked([AVERAGE_PRECISION], metrics, of_class)]
        columns = [Column(("average_precision_one_vs_rest",), "", 3), RECALL, PRECISION, FALSE_ALARMS["0.60"]]
        rows.append([name, f"{of_run['rows']:,}", *by_model, *(column.text(of_run) for column in columns)])
    return [
        "## Each fraud class",
        "",
        *_table(head, rows),
        "",
        "AP of a class: its rows against the legitimate rows, ranked by the score of fraud of any kind. AP one-vs-rest: its rows "
        "against all other rows, ranked by the score of the class (this run). Recall and precision are of this run at its tuned "
        "threshold, false alarms at recall 0.60 of the class.",
        "",
    ]


def _split(run: Mapping[str, Any]) -> list[str]:
    """Render the split from `data.parts` and `data.split` of the run."""
    data = run.get("data", {})
    rows = []
    for name, counts in data.get("parts", {}).items():
        title, use = SPLIT_TITLES.get(name, (name, ""))
        legitimate, *fraud = counts["classes"].values()
        frauds = sum(fraud)
        labelled = legitimate + frauds
        share = f"{100 * frauds / labelled:.2f} %" if labelled else "–"
        rows.append([title, use, f"{counts['rows']:,}", f"{frauds:,}", share])
    if not rows:
        return []
    how = SPLIT_ORDERS.get(data.get("order", "time"), SPLIT_ORDERS["time"])
    lines = ["## Split", "", f"{how} Sampling is applied to the training rows only.", ""]
    lines += _table(["split", "use", "rows", "fraud", "share"], rows)
    split = data.get("split")
    if split:
        lines += ["", f"Requested: {_pairs(split)}."]
    lines += [""] if data.get("notes") or data.get("warnings") else []
    lines += [f"- **warning**: {caution}" for caution in data.get("warnings", [])]
    lines += [f"- {note}" for note in data.get("notes", [])]
    return [*lines, ""]


def _training(run: Mapping[str, Any]) -> list[str]:
    """Render policy, schedule and configuration."""
    lines = ["## Training", ""]
    policy = run.get("policy", {})
    notes = policy.get("notes", []) if isinstance(policy, Mapping) else []
    shown = dict(run) | ({"policy": {key: value for key, value in policy.items() if key != "notes"}} if notes else {})
    lines += [f"- {key}: {_pairs(shown[key])}" for key in ("policy", "schedule", "configuration", "versions") if shown.get(key)]
    lines += [f"- note of the policy: {note}" for note in notes]
    lines += [f"- {key}: {run[key]}" for key in ("device", "threads") if key in run]
    return lines if len(lines) > 2 else []


def _pairs(content: Any) -> str:
    """Render `key value` pairs on one line, without values that are None."""
    if not isinstance(content, Mapping):
        return str(content)
    given = {key: value for key, value in content.items() if value is not None and not isinstance(value, Mapping)}
    return ", ".join(f"{key} {', '.join(map(str, value)) if isinstance(value, list | tuple) else value}" for key, value in given.items())
