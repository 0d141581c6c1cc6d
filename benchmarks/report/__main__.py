"""Make the report from the recorded results: tables of README and site, charts, and a run's picture.

python -m benchmarks.report                     # tables in README.md and docs/, charts in docs/images
python -m benchmarks.report --run runs/RUN      # docs/images/report.svg too
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.lib.commands import parser
from benchmarks.report import attention_chart, front_chart, readme_tables, report_picture


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--run", type=Path, help="run folder of balancer train, for the picture of its report")
    arguments = options.parse_args()
    readme_tables.main()
    attention_chart.main()
    front_chart.main()
    if arguments.run is not None:
        report_picture.draw(arguments.run, report_picture.IMAGES)


if __name__ == "__main__":
    main()
