"""``balancer report``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from balancer.cli.early import check_run
from balancer.dependencies import require
from balancer.errors import InputError
from balancer.files import check_new_file, write_bytes
from balancer.options.flags import Flag, read_flags


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Print the report of a finished run again, or write it as a PDF of one page.

    The page says first what the run catches, and whether it is better than the best alternative of the run.
    """

    HEADING: ClassVar[str] = "Report"

    run: Annotated[Path, Flag("Run folder written by balancer train.", metavar="RUN", positional=True)]
    json: Annotated[bool, "Print the content of report.json."] = False
    pdf: Annotated[
        Path | None,
        Flag("Write the page: verdict, models, curves, what each part did. Needs pip install 'balancer[report]'.", metavar="FILE"),
    ] = None
    overwrite: Annotated[bool, "Replace --pdf if it exists."] = False


def main(arguments: Sequence[str]) -> int:
    """Print the report of a run, or write it; returns the exit code."""
    config = read_flags(ReportConfig, "balancer report", arguments)
    if config.pdf is not None:
        _check_pdf(config.pdf, config)
    elif config.overwrite:
        raise InputError("--overwrite is for the file of --pdf: add --pdf FILE, or leave it out")
    check_run(config.run)
    from balancer.runs.run_report import read_report, read_verdict, run_pdf

    report = read_report(config.run)
    if config.pdf is not None:
        content = run_pdf(config.run)
        write_bytes(config.pdf, content)
    if config.json:
        print(json.dumps(report, indent=2))
        return 0
    from rich.console import Console
    from rich.text import Text

    from balancer.evaluation.report_terminal import print_report

    console = Console(markup=False)
    if config.pdf is not None:
        console.print(f"{len(content) / 1000:,.0f} kB: {config.pdf}", highlight=False, markup=False, soft_wrap=True)
        return 0
    verdict = read_verdict(config.run)
    print_report(report, console, folder=config.run)
    console.print()
    for sentence in verdict.sentences:
        console.print(Text(sentence, style="bold" if sentence == verdict.recommendation else ""))
    console.print(Text(verdict.basis, style="dim"))
    return 0


def _check_pdf(target: Path, config: ReportConfig) -> None:
    """Check the file before anything is read.

    Raises:
        InputError: A library is missing, or the file can't be written.
    """
    if target.suffix.lower() != ".pdf":
        raise InputError(f"--pdf {target}: give a file name that ends in .pdf")
    for library in ("fpdf", "altair", "vl_convert"):
        require(library, "--pdf", "balancer[report]")
    check_new_file(target, "--pdf", overwrite=config.overwrite)
