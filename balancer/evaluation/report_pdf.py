"""The report of a run on one page, as a PDF: verdict, tiles, table of models, curves, and what each part did.

What is special: equal runs give equal bytes, because the only time in the file is that of the run. Everything
fits on one page: a text that is too long is cut, with an ellipsis.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import polars as pl

from balancer.dependencies import require
from balancer.evaluation.pdf_fonts import Letters
from balancer.evaluation.report_content import (
    AVERAGE_PRECISION,
    ECE,
    F1,
    FALSE_ALARMS,
    PARTS_OF_RUN,
    PRECISION,
    RECALL,
    RECALL_AT_FPR,
    THIS_RUN,
    baselines_of,
    chance_warning,
    members_sentence,
    parts_of,
)
from balancer.evaluation.report_parts import part_lines
from balancer.evaluation.verdict import Verdict

if TYPE_CHECKING:
    from fpdf import FPDF

EXTRA = "balancer[report]"
COLUMNS = (AVERAGE_PRECISION, F1, PRECISION, RECALL, FALSE_ALARMS["0.60"], FALSE_ALARMS["0.70"], RECALL_AT_FPR, ECE)
MARGIN, WIDTH = 15.0, 180.0
"""Millimetres of a page of A4."""
FIRST_COLUMN = 44.0
BOTTOM = 284.0
"""Where the foot of the page begins."""
INK, GREY, LINE, PAPER = (33, 37, 41), (95, 99, 104), (206, 210, 214), (244, 246, 248)
OUTCOME_INK = {"better": (0, 100, 72), "worse": (166, 60, 0), "chance": (166, 60, 0)}
"""Colour of the recommendation; the sentence says the same."""
PICTURE, AXES = 320, (50, 88)
"""Points that the picture of the curves is wide, and that axes and legend take of its width and height."""
PLOT_HEIGHTS = (80, 260)
"""Lowest and highest plot, in points."""


def render_pdf(*, name: str, table: str, created: str, report: Mapping[str, Any], verdict: Verdict, curves: pl.DataFrame | None) -> bytes:
    """Render the page.

    Args:
        name: Name of the run.
        table: Table that it was trained on.
        created: When the run was started, in ISO 8601; it is the time of the file.
        report: The content of `report.json`.
        verdict: The verdict on the run.
        curves: Columns `model, recall, precision`; None where there are none.

    Raises:
        MissingDependencyError: A library is not installed.
    """
    for library in ("fpdf", "altair", "vl_convert"):
        require(library, "the PDF of a report", EXTRA)
    from fpdf import FPDF

    pdf = FPDF(format="A4")
    pdf.set_auto_page_break(False)
    pdf.set_margins(MARGIN, MARGIN)
    pdf.c_margin = 0
    pdf.core_fonts_encoding = "windows-1252"
    when = _time(created)
    pdf.set_creation_date(when or datetime(1980, 1, 1, tzinfo=UTC))
    lines = part_lines(report, timed=False)
    page = _Page(
        pdf, Letters(pdf, [name, table, *verdict.sentences, verdict.basis, *lines.values(), *(tile.note for tile in verdict.tiles)])
    )
    pdf.set_title(page.letters(f"Report of the run {name}"))
    pdf.set_lang("en")
    pdf.add_page()
    page.head(name, table, when)
    page.verdict(verdict)
    page.tiles(verdict)
    page.text(verdict.basis, size=8, colour=GREY, most=2)
    page.models(report)
    notes = [chance_warning(report["test"]), members_sentence(report)]
    page.text(" ".join(note for note in notes if note), size=8, colour=GREY, most=2)
    page.below(curves, lines)
    page.foot(report)
    return bytes(pdf.output())


def _time(created: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(created)
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


class _Page:
    """Draws from top to bottom.

    Args:
        pdf: The document.
        letters: Replaces what its font can't show.
    """

    def __init__(self, pdf: FPDF, letters: Letters) -> None:
        self.pdf, self.letters = pdf, letters

    def _font(self, text: str, size: float, colour: tuple[int, int, int] = INK, *, bold: bool = False) -> None:
        self.pdf.set_font(self.letters.family(text), "B" if bold else "", size)
        self.pdf.set_text_color(*colour)

    def _cut(self, text: str, width: float) -> str:
        """One line that fits ``width``, with an ellipsis where it was cut."""
        if self.pdf.get_string_width(text) <= width:
            return text
        while text and self.pdf.get_string_width(text + "...") > width:
            text = text[:-1]
        return text.rstrip() + "..."

    def _lines(self, text: str, width: float, most: int) -> list[str]:
        """At most so many lines of ``width``."""
        found: list[str] = []
        for word in self.letters(text).split():
            joined = f"{found[-1]} {word}" if found else word
            if found and self.pdf.get_string_width(joined) <= width:
                found[-1] = joined
            else:
                found.append(word)
        short = found if len(found) <= most else [*found[: most - 1], " ".join(found[most - 1 :])]
        return [self._cut(line, width) for line in short]

    def text(
        self,
        text: str,
        *,
        size: float,
        most: int,
        colour: tuple[int, int, int] = INK,
        bold: bool = False,
        at: tuple[float, float] = (MARGIN, WIDTH),
        after: float = 1.5,
    ) -> None:
        """Write lines at the present height; ``at`` is the left edge and the width."""
        if not text:
            return
        x, width = at
        self._font(text, size, colour, bold=bold)
        step = size * 0.46
        for line in self._lines(text, width, most):
            self.pdf.set_x(x)
            self.pdf.cell(width, step, line)
            self.pdf.set_y(self.pdf.get_y() + step)
        self.pdf.set_y(self.pdf.get_y() + after)

    def head(self, name: str, table: str, when: datetime | None) -> None:
        """Name of the run, table and date."""
        self.text(f"Run {name}", size=18, most=1, bold=True, after=0.5)
        date = f"trained {when:%Y-%m-%d %H:%M} UTC" if when else "date unknown"
        self.text(f"{date}, table {table}", size=9, most=1, colour=GREY, after=2.5)

    def verdict(self, verdict: Verdict) -> None:
        """The recommendation first, then what it rests on."""
        self.text(verdict.recommendation, size=13, most=2, bold=True, colour=OUTCOME_INK.get(verdict.outcome, INK))
        self.text(verdict.sentences[0], size=10.5, most=3)
        self.text(verdict.sentences[1], size=10.5, most=5, after=2.5)

    def tiles(self, verdict: Verdict) -> None:
        """Four boxes in a row."""
        pdf, gap, height = self.pdf, 3.0, 25.0
        width, top = (WIDTH - 3 * gap) / 4, self.pdf.get_y()
        for place, tile in enumerate(verdict.tiles):
            x = MARGIN + place * (width + gap)
            pdf.set_fill_color(*PAPER)
            pdf.set_draw_color(*LINE)
            pdf.rect(x, top, width, height, style="DF", round_corners=True, corner_radius=1.5)
            inside = (x + 2.5, width - 5)
            pdf.set_y(top + 2)
            self.text(tile.label, size=8, most=1, colour=GREY, after=0.8, at=inside)
            size = next((size for size in (14, 12.5, 11, 10, 9) if self._wide(tile.value, size) <= width - 5), 9)
            self.text(tile.value, size=size, most=1, bold=True, after=0.8, at=inside)
            self.text(tile.note, size=7, most=3, colour=GREY, at=inside)
        pdf.set_y(top + height + 2)

    def _wide(self, text: str, size: float) -> float:
        self._font(text, size, bold=True)
        return float(self.pdf.get_string_width(self.letters(text)))

    def models(self, report: Mapping[str, Any]) -> None:
        """The table of the run, its baselines and its parts."""
        pdf, rest = self.pdf, (WIDTH - FIRST_COLUMN) / len(COLUMNS)
        pdf.set_y(pdf.get_y() + 1)
        self.text("Models on the test rows", size=11, most=1, bold=True, after=1)
        self._font("", 7.5, GREY)
        top = pdf.get_y()
        for place, column in enumerate(COLUMNS):
            for number, part in enumerate(_heading(column.head)):
                pdf.set_xy(MARGIN + FIRST_COLUMN + place * rest, top + number * 3.4)
                pdf.cell(rest, 3.4, part, align="R")
        pdf.set_y(top + 7.6)
        pdf.set_draw_color(*LINE)
        pdf.line(MARGIN, pdf.get_y(), MARGIN + WIDTH, pdf.get_y())
        pdf.set_y(pdf.get_y() + 0.6)
        rivals = {THIS_RUN: report["test"]} | baselines_of(report)
        for name, metrics in rivals.items():
            self._row(name, [column.text(metrics) for column in COLUMNS], rest, bold=name == THIS_RUN)
        parts = parts_of(report)
        if parts:
            self._row(f"{PARTS_OF_RUN}:", [], rest, colour=GREY)
        for name, metrics in parts.items():
            self._row(f"  {name}", [column.text(metrics) for column in COLUMNS], rest, colour=GREY)
        pdf.set_y(pdf.get_y() + 1.5)

    def _row(self, name: str, cells: list[str], width: float, *, bold: bool = False, colour: tuple[int, int, int] = INK) -> None:
        pdf, height = self.pdf, 4.5
        self._font(name, 9, colour, bold=bold)
        pdf.set_x(MARGIN)
        pdf.cell(FIRST_COLUMN, height, self._cut(self.letters(name), FIRST_COLUMN))
        for cell in cells:
            pdf.cell(width, height, self.letters(cell), align="R")
        pdf.set_y(pdf.get_y() + height)

    def below(self, curves: pl.DataFrame | None, lines: Mapping[str, str]) -> None:
        """The curves on the left, what each part did on the right."""
        from balancer.evaluation.report_chart import curves_png

        pdf, left, gap = self.pdf, 106.0, 6.0
        pdf.set_y(pdf.get_y() + 1)
        top = pdf.get_y()
        self.text("Precision and recall", size=11, most=1, bold=True, at=(MARGIN, left))
        room = BOTTOM - pdf.get_y()
        height = int(min(max(room / left * PICTURE - AXES[1], PLOT_HEIGHTS[0]), PLOT_HEIGHTS[1]))
        picture = None if curves is None else curves_png(curves, width=PICTURE - AXES[0], height=height)
        if picture is None:
            self.text(
                "There is no curve: the test rows have no fraud, or the run has no file of curves.", size=9, most=3, at=(MARGIN, left)
            )
        else:
            wide, high = struct.unpack(">II", picture[16:24])  # of the PNG
            pdf.image(io.BytesIO(picture), x=MARGIN, y=pdf.get_y(), w=min(left, room * wide / high))
        pdf.set_y(top)
        right = (MARGIN + left + gap, WIDTH - left - gap)
        self.text("What each part did", size=11, most=1, bold=True, at=right)
        if not lines:
            self.text("An earlier version wrote this run without these lines.", size=9, most=3, at=right)
        for name, text in lines.items():
            most = int((BOTTOM - pdf.get_y() - 6) / (8.5 * 0.46))
            if most < 1:
                break
            self.text(name.capitalize(), size=8.5, most=1, bold=True, after=0.2, at=right)
            self.text(text, size=8.5, most=min(most, 9), after=1.6, at=right)

    def foot(self, report: Mapping[str, Any]) -> None:
        """What wrote the page."""
        version = report["run"].get("versions", {}).get("balancer", "")
        self.pdf.set_y(BOTTOM + 2)
        text = f"balancer {version}".strip() + ", balancer report. FA/10k: false alarms per 10,000 legitimate rows at that recall. "
        text += "Every model uses its own threshold, tuned on validation rows."
        self.text(text, size=7, most=1, colour=GREY)


def _heading(head: str) -> list[str]:
    """Two lines of a heading, the last one at the bottom."""
    lines = head.split("\n")
    return ["", *lines] if len(lines) == 1 else lines
