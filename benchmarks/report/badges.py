"""The badges of the README, as pictures of this repository, so that no page loads one from another host.

python -m benchmarks.report.badges      # -> docs/images/badge-*.svg
"""

from __future__ import annotations

import re
import tomllib
from html import escape

from balancer.files import write_text
from benchmarks.lib.recording import ROOT

PER_CHARACTER, PADDING, HEIGHT = 6.6, 12, 20


def badge(name: str, value: str, colour: str) -> str:
    """A badge as SVG: ``name`` on grey, ``value`` on ``colour``."""
    left, right = (round(len(text) * PER_CHARACTER + PADDING) for text in (name, value))
    texts = "".join(
        f'<text x="{x}" y="14" text-anchor="middle">{escape(text)}</text>' for x, text in ((left / 2, name), (left + right / 2, value))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="{HEIGHT}" role="img" aria-label="{escape(name)}: {escape(value)}">'
        f'<rect width="{left}" height="{HEIGHT}" fill="#4b5563"/><rect x="{left}" width="{right}" height="{HEIGHT}" fill="{colour}"/>'
        f'<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">{texts}</g></svg>\n'
    )


def badges() -> dict[str, str]:
    """Each badge by its file name, from ``pyproject.toml`` and the version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = re.search(r'__version__ = "([^"]+)"', (ROOT / "balancer" / "__init__.py").read_text(encoding="utf-8"))
    assert version is not None
    return {
        "badge-version.svg": badge("version", version[1], "#0072B2"),
        "badge-python.svg": badge("python", project["requires-python"].removeprefix(">=") + "+", "#0072B2"),
        "badge-licence.svg": badge("licence", project["license"], "#00795a"),
        "badge-typed.svg": badge("types", "mypy strict", "#00795a"),
    }


def main() -> None:
    for name, picture in badges().items():
        write_text(ROOT / "docs" / "images" / name, picture)


if __name__ == "__main__":
    main()
