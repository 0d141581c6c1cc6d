"""CompareConfig: checks worded in flags, policies with commas in them, and the role flags of balancer train."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from balancer.comparison.config import CLASSIFIER_POLICIES, POPULATION_POLICIES, CompareConfig, parse_flags, role_names
from balancer.errors import InputError
from balancer.options.train import TrainConfig

TABLE = Path("table.parquet")


def test_commas_inside_a_constant_do_not_separate() -> None:
    typed, _ = parse_flags("x", ["--dataset", "t.csv", "--policies", "none,constant:share=.2,hardness=1,floor=0,auto,random:seed=3,none"])
    assert CompareConfig(**typed).chosen() == ("none", "constant:share=.2,hardness=1,floor=0", "auto", "random:seed=3")


def test_roles_are_those_of_train() -> None:
    given = ["--dataset", "t.csv", "--entity", "card", "--categorical", "a,b", "--gap", "2d", "--windows", "3"]
    typed, roles = parse_flags("x", given)
    assert typed == {"dataset": Path("t.csv"), "windows": 3}
    assert roles == {"entity": "card", "categorical": "a,b", "gap": "2d"}
    assert set(role_names()) == set(TrainConfig(TABLE, **dict.fromkeys(role_names(), "x")).role_overrides())  # type: ignore[arg-type]


def test_help_tells_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_flags("balancer compare", ["--help"])
    told = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')} " in told for name in (*role_names(), "windows", "search_trials"))
    assert "Column whose rows form one history" in told


def test_defaults_follow_the_student() -> None:
    assert CompareConfig(TABLE).chosen() == POPULATION_POLICIES
    assert CompareConfig(TABLE, student="classifier").chosen() == CLASSIFIER_POLICIES
    assert CompareConfig(TABLE).reference_policy() == "one_to_one"
    assert CompareConfig(TABLE, policies=("auto", "none")).reference_policy() == "auto"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"windows": 0}, "--windows is 0"),
        ({"search_trials": 0}, "--search-trials is 0"),
        ({"seed": -1}, "--seed is -1"),
        ({"resume": True}, "--resume needs --out"),
        ({"reference": "rule", "policies": ("none", "auto")}, "--reference rule is not compared"),
        ({"chart": Path("chart.png")}, r"must end in \.svg or \.html"),
        ({"json": Path("/nowhere/at/all.json")}, "does not exist"),
    ],
)
def test_refuses(changed: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        CompareConfig(TABLE, **changed)  # type: ignore[arg-type]


def test_policies_are_checked_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    CompareConfig(TABLE, policies=("none", "constant", "smote", "tpe", "schedule", "constant:share=.3")).check_policies()
    with pytest.raises(InputError, match="no policy at"):
        CompareConfig(TABLE, policies=("nothing_of_the_kind",)).check_policies()
    with pytest.raises(InputError, match="smote is for --student population only"):
        CompareConfig(TABLE, student="classifier", policies=("smote",)).check_policies()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for changed in ({"policies": ("tpe",)}, {"policies": ("none",), "chart": Path("c.svg")}):
        with pytest.raises(InputError, match=r"pip install 'balancer\[compare\]'"):
            CompareConfig(TABLE, **changed).check_policies()  # type: ignore[arg-type]
