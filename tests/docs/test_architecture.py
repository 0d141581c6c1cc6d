"""The page on architecture shows the imports as they are."""

from __future__ import annotations

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import jedi
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()


@pytest.fixture(scope="module")
def draw_rooms() -> ModuleType:
    spec = spec_from_file_location("draw_rooms", ROOT / "docs" / "draw_rooms.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_drawing_is_that_of_the_imports(draw_rooms: ModuleType) -> None:
    assert draw_rooms.replaced(PAGE) == PAGE, "run: python docs/draw_rooms.py"


def test_the_reduction_keeps_what_can_be_reached(draw_rooms: ModuleType) -> None:
    edges = {"a": {"b", "c", "d"}, "b": {"c"}, "c": {"d"}, "d": set(), "e": {"a", "d"}}
    assert draw_rooms.reduced(edges) == {"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": set(), "e": {"a"}}


def test_every_room_has_a_line_in_the_table() -> None:
    listed = PAGE.partition("## Rooms")[2].partition("## Who imports whom")[0]
    rows = [line.split("|")[1] for line in listed.splitlines() if line.startswith("|")]
    named = {name.strip("/").removesuffix(".py") for row in rows for name in re.findall(r"`([^`]+)`", row)}
    folder = ROOT / "balancer"
    rooms = {path.name for path in folder.iterdir() if (path / "__init__.py").is_file()}
    rooms |= {path.stem for path in folder.glob("*.py") if not path.name.startswith("__")}
    assert rooms == named


def test_dotted_names_on_the_page_exist() -> None:
    from importlib import import_module

    for name in set(re.findall(r"`(balancer\.[\w.]+)`", PAGE)):
        module, _, attribute = name.rpartition(".")
        try:
            import_module(name)
        except ModuleNotFoundError:
            assert hasattr(import_module(module), attribute), f"{name} is named in docs/architecture.md and does not exist"


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("balancer.models.Classifier", "balancer/models/classifier.py"),
        ("balancer.envs.class_weights.ClassWeightsEnv", "balancer/envs/class_weights.py"),
        ("balancer.AdaptiveSampler", "balancer/sampling/torch_sampler.py"),
    ],
)
def test_a_language_server_finds_names_in_their_files(name: str, file: str) -> None:
    module, _, attribute = name.rpartition(".")
    script = jedi.Script(f"from {module} import {attribute}\n{attribute}", project=jedi.Project(ROOT))
    found = script.goto(2, 1, follow_imports=True)
    assert [place.module_path for place in found] == [ROOT / file]
