"""Fonts of the PDF: the built-in Helvetica, or a font of this machine where a name needs other letters.

What is special: a page has to show the name of any run and any table. Letters that no font has are replaced
by a question mark, so no name stops the page from being written.
"""

from __future__ import annotations

import os
import struct
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fpdf import FPDF

BUILT_IN = "Helvetica"
_OWN, _BOLD = "page", "B"
FONTS = (
    ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"),
    ("NotoSans-Regular.ttf", "NotoSans-Bold.ttf"),
    ("arial.ttf", "arialbd.ttf"),
    ("Arial Unicode.ttf", "Arial Unicode.ttf"),
    ("LiberationSans-Regular.ttf", "LiberationSans-Bold.ttf"),
    ("DroidSansFallbackFull.ttf", "DroidSansFallbackFull.ttf"),
    ("unifont.ttf", "unifont.ttf"),
)
"""Files of fonts with many letters, regular and bold, the most legible first."""
_ALIKE = str.maketrans({"−": "–", "\u2009": " ", "\u202f": " ", "≥": ">=", "≤": "<=", "→": "->"})
"""What Helvetica has instead of signs that the sentences use."""


def clean(text: str) -> str:
    """Replace control characters and halves of surrogate pairs, which no font can show."""
    shown = (each if unicodedata.category(each) not in ("Cc", "Cs", "Co", "Cn") else " " if each.isspace() else "?" for each in text)
    return "".join(shown)


def in_helvetica(text: str) -> str:
    """A text with signs that Helvetica has, where there is one alike."""
    return text.translate(_ALIKE)


class Letters:
    """Chooses the font of each text of a page, and replaces what no font can show.

    Args:
        pdf: The page; a font is added to it where a text needs one.
        texts: All texts of the page.
        folders: Where fonts are looked for.
    """

    def __init__(self, pdf: FPDF, texts: Iterable[str], *, folders: Iterable[Path] | None = None) -> None:
        self._known: set[str] = set()
        needed = {each for text in texts for each in _foreign(text)}
        if not needed:
            return
        best: tuple[int, tuple[Path, Path], set[str]] | None = None
        for regular, bold in _installed(font_folders() if folders is None else folders):
            found = _letters(regular) & _letters(bold)
            count = len(needed & found)
            if count and (best is None or count > best[0]):
                best = (count, (regular, bold), found)
        if best is not None:
            pdf.add_font(_OWN, "", best[1][0])
            pdf.add_font(_OWN, _BOLD, best[1][1])
            self._known = best[2]

    def family(self, text: str) -> str:
        """The font of a text: the built-in one, unless the text has letters that only the other one has."""
        return _OWN if self._known.intersection(_foreign(text)) else BUILT_IN

    def __call__(self, text: str) -> str:
        """The text as its font can show it."""
        if self.family(text) == BUILT_IN:
            return "".join(each if _is_latin(each) else _nearest(each) for each in in_helvetica(clean(text)))
        return "".join(each if each in self._known else "?" for each in clean(text))


def _foreign(text: str) -> set[str]:
    """The letters of a text that Helvetica lacks."""
    return {each for each in in_helvetica(clean(text)) if not _is_latin(each)}


def _is_latin(letter: str) -> bool:
    try:
        letter.encode("cp1252")
    except UnicodeEncodeError:
        return False
    return True


def _nearest(letter: str) -> str:
    """The letter without its accents, else a question mark."""
    plain = "".join(each for each in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(each))
    return plain if plain and all(map(_is_latin, plain)) else "?"


def font_folders() -> list[Path]:
    """The folders of this machine that hold fonts."""
    home = Path.home()
    if sys.platform == "win32":
        return [Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts"]
    if sys.platform == "darwin":
        return [home / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts"), Path("/System/Library/Fonts/Supplemental")]
    return [home / ".local/share/fonts", home / ".fonts", Path("/usr/local/share/fonts"), Path("/usr/share/fonts")]


def _installed(folders: Iterable[Path]) -> list[tuple[Path, Path]]:
    files: dict[str, Path] = {}
    for folder in folders:
        for root, _, names in os.walk(folder):
            for name in names:
                files.setdefault(name, Path(root) / name)
    return [(files[regular], files.get(bold, files[regular])) for regular, bold in FONTS if regular in files]


def _letters(font: Path) -> set[str]:
    """The letters that a font has; none where it can't be read."""
    from fontTools.ttLib import TTFont, TTLibError

    try:
        # Opened here: TTFont leaves a file open that is no font.
        with font.open("rb") as stream, TTFont(stream, lazy=True) as opened:
            opened.ensureDecompiled(recurse=False)  # a cut file is found out here, not where the page is written
            return {chr(code) for code in opened.getBestCmap() or {}}
    except (OSError, TTLibError, ValueError, KeyError, AssertionError, struct.error):
        return set()
