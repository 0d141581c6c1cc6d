"""The tables of README and site, made from the recorded results; a test compares the pages with them.

python -m benchmarks.report.readme_tables   # fills the tables between their markers in README.md and docs/
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from benchmarks.lib.recording import ROOT
from benchmarks.report.tables import attention, front, load, modular, quantization, runs, sampling, scale, service, table

TABLES: dict[str, Callable[[], str]] = {
    make.__name__: make
    for make in (
        front.front,
        service.service,
        runs.app_pages,
        runs.main_job,
        runs.main_job_seeds,
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
        scale.scale_claims,
        scale.scale_costs,
    )
}
"""Functions that make a table, by the name in its marker ``<!-- table NAME -->``."""


CLAIMS = ROOT / "benchmarks" / "claims"


def filled(text: str) -> str:
    """``text`` with every table between its markers replaced by the current one."""
    for name, make in TABLES.items():
        pattern = re.compile(rf"(<!-- table {name} -->\n).*?(<!-- end of table -->)", flags=re.DOTALL)
        if pattern.search(text):
            content = make()
            text = pattern.sub(lambda found, content=content: f"{found[1]}{content}\n{found[2]}", text)  # type: ignore[misc]
    return re.sub(
        r"(<!-- sources (.*?) -->\n).*?(<!-- end of sources -->)",
        lambda found: f"{found[1]}{sources(found[2].split())}\n{found[3]}",
        text,
        flags=re.DOTALL,
    )


def sources(names: list[str]) -> str:
    """A table of the results that a page shows: script, file, machine and date of each."""
    rows = []
    for name in names:
        content = load(name)
        machine, versions = content["machine"], content["versions"]
        sets = [each for each in machine.get("instructions", []) if each != "portable"]
        where = f"{machine['processor']}, {machine['cores']} cores" + (f", {sets[-1]}" if sets else "")
        script = max((path.stem for path in CLAIMS.glob("*.py") if name.startswith(path.stem)), key=len)
        file = f"[{name}.json](../../benchmarks/results/{name}.json)"
        rows.append([f"`python -m benchmarks.claims.{script}`", file, where, f"torch {versions['torch']}", content["date"]])
    return table(["script", "result file", "machine", "version", "date"], rows)


def pages() -> list[Path]:
    """The files that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def main() -> None:
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (changed := filled(text)) != text:
            page.write_text(changed, encoding="utf-8")


if __name__ == "__main__":
    main()
