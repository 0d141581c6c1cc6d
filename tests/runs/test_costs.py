"""Costs of a run: saved, read, refused where they are wrong, and no part of the identity of the model."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from balancer.errors import CorruptFileError, InputError
from balancer.runs.costs import Costs
from balancer.serving.models.run_files import run_digests


def test_saved_costs_are_read_again(tmp_path: Path) -> None:
    assert Costs.load(tmp_path) is None
    Costs(7.5, 0.25).save(tmp_path)
    assert Costs.load(tmp_path) == Costs(7.5, 0.25)
    assert Costs(7.5, 0.25).words == "7.5 per alarm and 25 % of the amount of every missed fraud"


@pytest.mark.parametrize("wrong", [{"per_alarm": -1.0}, {"per_alarm": math.nan}, {"loss_share": 1.5}, {"loss_share": -0.1}])
def test_costs_that_can_not_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="give a number"):
        Costs(**wrong)


@pytest.mark.parametrize("content", ["{}", '{"per_alarm": 5, "loss_share": "all"}', '{"per_alarm": 5, "loss_share": 2}', "[]", "no json"])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "costs.json").write_text(content)
    with pytest.raises(CorruptFileError, match=r"costs\.json"):
        Costs.load(tmp_path)


def test_costs_do_not_change_the_identity_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "decision.json").write_text("{}")
    before = run_digests(tmp_path, "full")
    Costs().save(tmp_path)
    assert run_digests(tmp_path, "full") == before
