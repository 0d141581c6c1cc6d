"""The picture of a run's report in the README: the report as the terminal shows it, as SVG.

python -m benchmarks.report.report_picture runs/RUN     # -> docs/images/report.svg
"""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console

from balancer.evaluation.report_terminal import print_report
from balancer.files import read_json, write_text
from benchmarks.lib.commands import parser
from benchmarks.lib.recording import ROOT

IMAGES = ROOT / "docs" / "images"


def draw(run: Path, images: Path) -> None:
    """Write ``report.svg`` of the run folder ``run`` into the folder ``images``."""
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True)
    print_report(read_json(run / "report.json", what="it is the report of the run"), console)
    images.mkdir(parents=True, exist_ok=True)
    # The picture must not load fonts from another server when a page shows it.
    picture = re.sub(r"@font-face \{.*?\}", "", console.export_svg(title="balancer train"), flags=re.DOTALL)
    write_text(images / "report.svg", picture)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("run", type=Path, help="run folder of balancer train")
    draw(options.parse_args().run, IMAGES)


if __name__ == "__main__":
    main()
