"""Make the whole report from the recorded results: the tables of the README, the charts, and the picture of a run if one is given.

python -m benchmarks.report                     # README.md, docs/images/attention_speed.svg and attention_sweep.svg
python -m benchmarks.report --run runs/RUN      # and docs/images/report.svg
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.lib.commands import parser
from benchmarks.report import attention_chart, readme_tables, report_picture


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--run", type=Path, help="run folder of balancer train, for the picture of its report")
    arguments = options.parse_args()
    readme_tables.main()
    attention_chart.main()
    if arguments.run is not None:
        report_picture.draw(arguments.run, report_picture.IMAGES)


if __name__ == "__main__":
    main()
