"""Draw the rooms of the package and the imports between them, from the imports themselves.

    python docs/draw_rooms.py

replaces the graphs and the table in `docs/architecture.md`; a test fails where the page is out of date. A
graph leaves
out an arrow where a longer path of arrows leads to the same room (its transitive reduction), so that it can
be read; the table lists every room that a room imports directly.
"""

from __future__ import annotations

from pathlib import Path

import grimp

PAGE = Path(__file__).resolve().parent / "architecture.md"
BEGIN, END = "<!-- drawn by docs/draw_rooms.py: begin -->", "<!-- drawn by docs/draw_rooms.py: end -->"
SPLIT = ("balancer.serving", "balancer.models", "balancer.data")
"""Rooms that are drawn from the inside, too."""


def arrows(graph: grimp.ImportGraph, room: str) -> dict[str, set[str]]:
    """Which of the rooms directly inside `room` each of them imports; rooms that neither import nor are
    imported are left out.
    """
    children = sorted(graph.find_children(room))
    found: dict[str, set[str]] = {child: set() for child in children}
    for child in children:
        for module in {child, *graph.find_descendants(child)}:
            for imported in graph.find_modules_directly_imported_by(module):
                target = next((other for other in children if imported == other or imported.startswith(f"{other}.")), child)
                if target != child:
                    found[child].add(target)
    used = set().union(*found.values())
    return {child: targets for child, targets in found.items() if targets or child in used}


def reduced(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """The transitive reduction of an acyclic graph: without arrows that a longer path implies."""

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        stack = [*edges[start]]
        while stack:
            node = stack.pop()
            if node not in seen:
                seen.add(node)
                stack += edges[node]
        return seen

    return {
        node: {target for target in targets if not any(target in reachable(other) for other in targets - {target})}
        for node, targets in edges.items()
    }


def mermaid(edges: dict[str, set[str]]) -> str:
    """A Mermaid flowchart; every node is named by the last part of its module's name."""
    lines = ["```mermaid", "flowchart TD"]
    for node in sorted(edges):
        for target in sorted(reduced(edges)[node]):
            lines.append(f"    {_short(node)} --> {_short(target)}")
    return "\n".join([*lines, "```"])


def table(edges: dict[str, set[str]]) -> str:
    """Every room with all the rooms that it imports."""
    rows = [
        f"| `{_short(node)}` | {', '.join(f'`{_short(target)}`' for target in sorted(edges[node])) or 'none'} |" for node in sorted(edges)
    ]
    return "\n".join(["| room | imports |", "|---|---|", *rows])


def drawn() -> str:
    """The part of the page that this script writes."""
    graph = grimp.build_graph("balancer", cache_dir=None)
    rooms = arrows(graph, "balancer")
    parts = [mermaid(rooms), table(rooms)]
    for room in SPLIT:
        parts += [f"Inside `{room}`:", mermaid(arrows(graph, room))]
    return "\n\n".join(parts)


def replaced(page: str) -> str:
    """`page` with its drawn part replaced."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{drawn()}\n\n{END}{after}"


def _short(module: str) -> str:
    return module.rpartition(".")[2]


if __name__ == "__main__":
    PAGE.write_text(replaced(PAGE.read_text()))
