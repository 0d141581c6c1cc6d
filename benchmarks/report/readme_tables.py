"""The tables of the README, made from the recorded results; a test compares the README with them.

python -m benchmarks.report.readme_tables       # writes the tables between their markers in README.md
"""

from __future__ import annotations

import re
from collections.abc import Callable

from benchmarks.lib.recording import ROOT
from benchmarks.report.tables import attention, modular, quantization, runs, sampling, service

TABLES: dict[str, Callable[[], str]] = {
    table.__name__: table
    for table in (
        service.service,
        runs.app_pages,
        runs.main_job,
        runs.costs,
        runs.simulated_seeds,
        runs.population,
        sampling.sampling,
        sampling.claims,
        sampling.per_class,
        sampling.real_tables,
        sampling.draws,
        sampling.recency,
        sampling.policy_tasks,
        attention.attention_speed,
        attention.attention_model,
        attention.attention_quality,
        attention.attention_planted,
        attention.attention_sweep,
        quantization.quantization_claims,
        quantization.quantization_bert,
        quantization.quantization_classifier,
        quantization.quantization_quality,
        modular.modular_transfer,
        modular.modular_tasks,
        modular.modular_pretraining,
        modular.modular_light,
    )
}
"""Functions that make a table, by the name in its marker ``<!-- table NAME -->``."""


def filled(text: str) -> str:
    """``text`` with every table between its markers replaced by the current one."""
    for name, table in TABLES.items():
        pattern = re.compile(rf"(<!-- table {name} -->\n).*?(<!-- end of table -->)", flags=re.DOTALL)
        if pattern.search(text):
            content = table()
            text = pattern.sub(lambda found, content=content: f"{found[1]}{content}\n{found[2]}", text)  # type: ignore[misc]
    return text


def main() -> None:
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
