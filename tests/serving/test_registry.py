"""What a client reads of a run that can't be put in service: words, and no path of the server."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from balancer.data.spec import DAY
from balancer.errors import InputError
from balancer.serving.models.registry import Registry, same_rows
from tests.serving.test_values import SCHEMA
from tests.serving.tools import opened


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"context": ()}, "its context columns are none, not shop, shop+kind"),
        ({"entity": None}, "its entity is none, not card+region"),
        ({"label_delay": 3 * DAY}, "its label delay in seconds is 259200, not "),
    ],
)
def test_other_roles_are_said_in_words(changes: dict[str, object], said: str) -> None:
    other = replace(SCHEMA, spec=replace(SCHEMA.spec, **changes))  # type: ignore[arg-type]
    text = str(same_rows(SCHEMA, other))
    assert text.startswith(said) and "(" not in text and "'" not in text


@pytest.mark.parametrize("damage", ["schema.json", "decision.json", "model.json", "trees/stages.json", "trees/first-1.txt"])
def test_a_damaged_run_is_named_without_its_place(damage: str, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "private" / "runs"
    shutil.copytree(tiny_run, folder / "mine")
    (folder / "mine" / damage).write_text("{")
    for given in (folder, Path("private/runs")):
        monkeypatch.chdir(tmp_path)
        registry = Registry(opened(f"sqlite:///{tmp_path / 'service.db'}"), None, given)
        with pytest.raises(InputError) as caught:
            registry.activate("mine")
        assert f"mine/{damage}" in str(caught.value) and "private" not in str(caught.value) and str(tmp_path) not in str(caught.value)
