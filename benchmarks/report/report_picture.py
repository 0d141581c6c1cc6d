"""The picture of the README: the report of a run as the terminal shows it, as SVG. It measures nothing.

python benchmarks/report_picture.py runs/RUN        # -> docs/images/report.svg
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from recording import ROOT
from rich.console import Console

from balancer.evaluation.report_terminal import print_report
from balancer.files import read_json, write_text


def main() -> None:
    if len(sys.argv) != 2:
        print(__doc__)
        return
    folder = Path(sys.argv[1])
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True)
    print_report(read_json(folder / "report.json", what="it is the report of the run"), console)
    (ROOT / "docs" / "images").mkdir(parents=True, exist_ok=True)
    # A page must not fetch fonts from elsewhere to show it.
    picture = re.sub(r"@font-face \{.*?\}", "", console.export_svg(title="balancer train"), flags=re.DOTALL)
    write_text(ROOT / "docs" / "images" / "report.svg", picture)


if __name__ == "__main__":
    main()
