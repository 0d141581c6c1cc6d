"""Pages of the site from other files of the project, references, and links to files outside of docs/.

A link such as ``../benchmarks/results/main_job.json`` works in a checkout. In the site the file is copied to
``files/benchmarks/results/main_job.json``, and the link leads there, so that the site needs no other host.
"""

from __future__ import annotations

import posixpath
import re
import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "balancer/data_samples/README.md": "project/sample.md",
    "balancer/models/README.md": "reference/models.md",
}
"""Pages of the site by the file of the project that they show."""
OTHER_NAMES = {"models/README.md": "reference/models.md", "data_samples/README.md": "project/sample.md"}
"""Files that are not shown themselves, and the page that a link to them leads to."""
LINK = re.compile(r"(\]\(|(?:href|src)=\")([^)\s\"#]+)(#[^)\s\"]*)?(?=[)\"\s])")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and files that are not in docs/."""
    for source, place in PAGES.items():
        # The first page has no pages beside it, so it needs no menu of them.
        head = "---\nhide: [navigation]\n---\n" if place == "index.md" else ""
        files.append(File.generated(config, place, content=head + (ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, "reference/cli.md", content=command_line()))
    files.append(File.generated(config, "reference/http.md", content=routes()))
    linked = {target for file in files.documentation_pages() for target in _outside(file)}
    for target in sorted(linked):
        files.append(File.generated(config, f"files/{target}", abs_src_path=str(ROOT / target), inclusion=InclusionLevel.NOT_IN_NAV))
    return files


FLOWCHART = re.compile(r"^```mermaid\nflowchart \w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)
"""A graph that GitHub draws. Its script would come from another host, so the site lists the arrows."""


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to files outside of docs/ to their place in the site, and list the arrows of graphs."""

    def replaced(found: re.Match[str]) -> str:
        target = _target(page.file.src_uri, found[2])
        if target is None:
            return found[0]
        place = _place(target)
        if place is None:
            return found[0]
        return found[1] + posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or ".") + (found[3] or "")

    return FLOWCHART.sub(lambda found: arrows(found[1]), LINK.sub(replaced, markdown))


def arrows(graph: str) -> str:
    """A table of the arrows of a flowchart of Mermaid, one row for each node that has some."""
    text: dict[str, str] = {}
    rows: dict[str, list[str]] = {}

    def node(written: str) -> str:
        """The name of a node; its text is kept where it is given."""
        name, _, shown = written.partition("[")
        text.setdefault(name, shown.rstrip("]") or f"`{name}`")
        if shown:
            text[name] = shown.rstrip("]")
        return name

    for line in graph.splitlines():
        nodes = re.split(r"\s*-->(?:\|([^|]*)\|)?\s*", line.strip())
        for source, label, target in zip(nodes[::2], nodes[1::2], nodes[2::2], strict=False):
            node(source)
            rows.setdefault(node(source), []).append(f"{label}: {{{node(target)}}}" if label else f"{{{node(target)}}}")
    lines = [f"| {text[name]} | {'; '.join(rows[name]).format_map(text)} |" for name in rows]
    return "\n".join(["| from | to |", "|---|---|", *lines])


ROLE = re.compile(r":(?:py:)?(?:attr|class|data|exc|func|meth|mod|obj):<code>([^<]+)</code>")


def on_page_content(html: str, **_: Any) -> str:
    """Show the names that docstrings mark in the way of Sphinx, ``:meth:`~a.B.c```, as code."""
    return ROLE.sub(lambda found: f"<code>{found[1].rpartition('.')[2] if found[1].startswith(('~', '.')) else found[1]}</code>", html)


def _target(page: str, link: str) -> str | None:
    """The file that a link of a page means, as a path from the root of the project; None for another host."""
    if re.match(r"[a-z]+:", link):
        return None
    source = next((source for source, place in PAGES.items() if place == page), f"docs/{page}")
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    # The folder of models is reached by a link in the root too, and its page is written for that place.
    return target.removeprefix("balancer/") if target.startswith("balancer/docs/") else target


def _place(target: str) -> str | None:
    """The place in the site of a file of the project; None where the link stays as it is."""
    known = PAGES.get(target) or OTHER_NAMES.get(target)
    if known is not None:
        return known
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    if (ROOT / target).is_file():
        return f"files/{target}"
    return None


def _outside(file: File) -> Iterator[str]:
    """Files outside of docs/ that a page has links to."""
    for found in LINK.finditer(file.content_string):
        target = _target(file.src_uri, found[2])
        place = None if target is None else _place(target)
        if target is not None and place == f"files/{target}":
            yield target


def command_line() -> str:
    """The page with the flags of every command, from the dataclasses that the commands use."""
    from balancer.cli import COMMANDS, SUMMARY
    from balancer.cli.flags_of import CONFIGS

    lines = [
        "# Command line",
        f"`balancer COMMAND [flags]`. {SUMMARY}",
        "`balancer COMMAND --help` shows the usual flags, `--help-all` shows all of them. Bad input ends with one line that names the "
        "flag and the remedy, and exit code 2. Ctrl-C ends with exit code 130 and names the command that continues.",
        "| command | what it does |\n|---|---|\n"
        + "\n".join(f"| {_links(name, list(CONFIGS))} | {text} |" for name, text in COMMANDS.items()),
        *(_command(command) for command in CONFIGS),
    ]
    return "\n\n".join(lines) + "\n"


def _links(name: str, commands: list[str]) -> str:
    """Links to the sections of a command, or of all commands of a group."""
    own = [command for command in commands if command.split()[0] == name]
    return ", ".join(f"[{command}](#{command.replace(' ', '-')})" for command in own)


def _command(command: str) -> str:
    """The section of one command."""
    from balancer.cli.flags_of import config_of
    from balancer.options.flags import command_parser, parameters

    config = config_of(command)
    parser = command_parser(config, f"balancer {command}")
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    parts = [f"## {command} {{#{command.replace(' ', '-')}}}", f"```text\n{usage}\n```", parser.description or ""]
    for heading, flags in groupby(parameters(config), key=lambda each: each.heading):
        rows = "\n".join(f"| `{each.shown}{_value(each)}` | {each.help.replace('|', '&#124;')} |" for each in flags)
        parts += [*([f"**{heading}**"] if heading else []), f"| flag | meaning |\n|---|---|\n{rows}"]
    return "\n\n".join(parts)


def _value(each: Any) -> str:
    """The placeholder of the value of a flag."""
    return "" if each.kind is bool or each.flag.positional else f" {each.metavar}"


def routes() -> str:
    """The page with the routes of the service, from its OpenAPI document."""
    from balancer.serving.config import ServeConfig
    from balancer.serving.http.app import create_app

    with tempfile.TemporaryDirectory() as folder:
        document = create_app(ServeConfig(database=f"sqlite:///{folder}/service.db")).openapi()
    rows = [
        f"| `{method.upper()} {path}` | {operation.get('summary', '')} | {', '.join(sorted(operation['responses']))} |"
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    lines = [
        "# HTTP",
        "`balancer serve` answers these requests. A running service shows the same at `/docs`, with every field, and as OpenAPI at "
        "`/openapi.json`. [The service](../service.md) explains them with examples.",
        "| route | what it does | status codes |\n|---|---|---|\n" + "\n".join(rows),
    ]
    return "\n\n".join(lines) + "\n"
