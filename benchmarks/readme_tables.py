"""The tables of the README, from the result files: no figure is typed by hand, and a test holds the README to them.

``python benchmarks/readme_tables.py`` puts them in between their markers.
"""

from __future__ import annotations

import json
import re
from typing import Any

from recording import RESULTS, ROOT

NAMES = {
    "run": "**this run**",
    "none": "no sampling",
    "one_to_one": "1:1 over-sampling",
    "class_weight": "class weights",
    "lightgbm": "LightGBM, same features",
}


def load(name: str) -> dict[str, Any]:
    """A result file."""
    content = json.loads((RESULTS / f"{name}.json").read_text())
    assert isinstance(content, dict)
    return content


def main_job() -> str:
    """Every model on every data set."""
    lines = [
        "| data | model | AP | F1, tuned | F1 at .5 | false alarms per 10k at recall .60 / .70 / .80 | ECE |",
        "|---|---|---|---|---|---|---|",
    ]
    for data, own in load("main_job")["datasets"].items():
        for name, figures in own["models"].items():
            alarms = [figures["false_alarms_per_10k_at_recall"][recall] for recall in ("0.60", "0.70", "0.80")]
            counts = " / ".join("-" if value is None else f"{value:.1f}" for value in alarms)
            row = [f"{figures[key]:.3f}" for key in ("average_precision", "f1", "f1_at_half")]
            lines.append(f"| {data} | {NAMES[name]} | {' | '.join(row)} | {counts} | {figures['ece']:.4f} |")
    return "\n".join(lines)


def costs() -> str:
    """Time and memory of the same runs, and of reading the data."""
    lines = ["| data | budget | threads | minutes, all models | peak memory |", "|---|---|---|---|---|"]
    for data, own in load("main_job")["datasets"].items():
        lines.append(f"| {data} | {own['budget']} | {own['threads']} | {own['minutes']:.1f} | {own['peak_gib']:.1f} GiB |")
    return "\n".join(lines)


def simulated_seeds() -> str:
    """Average precision table by table."""
    content = load("simulated_seeds")
    names = list(NAMES)
    lines = ["| simulated table, seed | " + " | ".join(NAMES[name] for name in names) + " |", "|---|" + "---|" * len(names)]
    for seed, own in content["tables"].items():
        lines.append(f"| {seed} | " + " | ".join(f"{own[name]['average_precision']:.3f}" for name in names) + " |")
    against = content["average_precision_against"]
    told = [f"{against[name]['mean_difference']:+.3f} (± {against[name]['standard_error']:.3f})" for name in names[1:]]
    lines.append("| this run less it, mean (standard error) | | " + " | ".join(told) + " |")
    return "\n".join(lines)


TABLES = {"main_job": main_job, "costs": costs, "simulated_seeds": simulated_seeds}


def filled(text: str) -> str:
    """``text`` with every table between its markers made anew."""
    for name, table in TABLES.items():
        pattern = rf"(<!-- table {name} -->\n).*?(<!-- end of table -->)"
        text = re.sub(pattern, lambda found, table=table: found.group(1) + table() + "\n" + found.group(2), text, flags=re.DOTALL)  # type: ignore[misc]
    return text


def main() -> None:
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
