"""CompareConfig: checks in terms of flags, names with commas, and the role flags of balancer train."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from balancer.comparison.config import CLASSIFIER_TREATMENTS, POPULATION_ONLY, POPULATION_TREATMENTS, CompareConfig
from balancer.errors import InputError
from balancer.options.data import ROLES
from balancer.options.flags import DeprecatedFlag, flag_of, parse
from balancer.options.train import TrainConfig

TABLE = Path("table.parquet")


def test_commas_inside_a_constant_do_not_separate() -> None:
    given = ["--dataset", "t.csv", "--treatments", "none,constant:share=.2,hardness=1,floor=0,auto,random:seed=3,none"]
    config = CompareConfig(**parse(CompareConfig, "x", given))
    assert config.chosen() == ("none", "constant:share=.2,hardness=1,floor=0", "auto", "random:seed=3")
    options = "constant:share=third,class_importance=.5,hardness_importance=.5,half_life=2", "schedule:start_share=.4,end_hardness=1"
    config = CompareConfig(**parse(CompareConfig, "x", ["--dataset", "t.csv", "--treatments", ",".join((*options, "plain:auto"))]))
    assert config.chosen() == (*options, "plain:auto")
    config.check_treatments()


def test_roles_are_those_of_train() -> None:
    given = ["--dataset", "t.csv", "--entity", "card", "--categorical", "a,b", "--gap", "2d", "--folds", "3"]
    typed = parse(CompareConfig, "x", given)
    roles = {"entity": "card", "categorical": ("a", "b"), "gap": "2d"}
    assert typed == {"dataset": Path("t.csv"), "folds": 3} | roles
    assert CompareConfig(**typed).role_overrides() == roles
    assert TrainConfig(dataset=TABLE, **roles).role_overrides() == roles  # type: ignore[arg-type]


def test_flags_of_version_0_1_work_with_a_warning() -> None:
    with pytest.warns(DeprecatedFlag) as caught:
        typed = parse(CompareConfig, "x", ["--dataset", "t.csv", "--policies", "none,auto", "--windows", "3", "--history", "4"])
    assert typed == {"dataset": Path("t.csv"), "treatments": ("none", "auto"), "folds": 3, "history_length": 4}
    assert [str(each.message).split(";")[0] for each in caught] == [
        "--policies is now --treatments",
        "--windows is now --folds",
        "--history is now --history-length",
    ]


def test_help_tells_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(CompareConfig, "balancer compare", ["--help-all"])
    text = capsys.readouterr().out
    assert all(f"{flag_of(name)} " in text for name in (*ROLES, "folds", "treatments", "search_trials"))
    assert "Column that names the card" in text


def test_defaults_follow_the_student() -> None:
    assert CompareConfig(dataset=TABLE).chosen() == POPULATION_TREATMENTS
    assert CompareConfig(dataset=TABLE, student="classifier").chosen() == CLASSIFIER_TREATMENTS
    assert CompareConfig(dataset=TABLE).reference_treatment() == "one_to_one"
    assert {"none_zero_bias", "focal_zero_bias"} < set(POPULATION_TREATMENTS)
    assert CompareConfig(dataset=TABLE, treatments=("auto", "none")).reference_treatment() == "auto"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"folds": 0}, "--folds is 0"),
        ({"search_trials": 0}, "--search-trials is 0"),
        ({"seed": -1}, "--seed is -1"),
        ({"resume": True}, "--resume needs --out"),
        ({"reference": "rule", "treatments": ("none", "auto")}, "--reference rule is not compared"),
        ({"chart": Path("chart.png")}, r"must end in \.svg or \.html"),
        ({"json": Path("/nowhere/at/all.json")}, "does not exist"),
    ],
)
def test_refuses(changed: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CompareConfig(dataset=TABLE, **changed)  # type: ignore[arg-type]


@pytest.mark.parametrize("student", ["population", "classifier"])
def test_an_unknown_treatment_is_told_the_nearest_and_all_others(student: str) -> None:
    with pytest.raises(InputError) as raised:
        CompareConfig(dataset=TABLE, student=student, treatments=("one_to_on",)).check_treatments()  # type: ignore[arg-type]
    text = str(raised.value)
    assert text.startswith("--treatments: unknown treatment 'one_to_on'; did you mean 'one_to_one'? known: ")
    assert text.endswith(", plain:POLICY, or the folder of a policy")
    listed = set(text.partition("known: ")[2].split(", "))
    possible = {*POPULATION_TREATMENTS, "schedule", "start"} - (set() if student == "population" else set(POPULATION_ONLY))
    assert possible <= listed
    assert not set(POPULATION_ONLY) & listed or student == "population"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("plain:none", "plain: stands before the name of a policy, and 'none' is trained with the cross-entropy without it; known: auto"),
        ("plain:lightgbm", "'lightgbm' is no policy; known: auto, constant"),
        ("plain:rul", "'rul' is no policy; did you mean 'rule'"),
        ("plain:", "'' is no policy"),
        ("nobody", "unknown treatment 'nobody'"),
        ("constant:share=.2,share=.3", "the option share is given 2 times; give it once"),
        ("plain:constant:share=.2,hardness=1,share=root", "the option share is given 2 times"),
        ("schedule:end_share=.2,end_share=.2", "the option end_share is given 2 times"),
    ],
)
def test_a_name_that_is_no_treatment(name: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        CompareConfig(dataset=TABLE, treatments=(name,)).check_treatments()
    assert message in str(raised.value)


def test_treatments_are_checked_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    known = ("none", "constant", "smote", "tpe", "schedule", "constant:share=.3", "ppo", "none_zero_bias", "plain:constant:share=.3")
    CompareConfig(dataset=TABLE, treatments=known).check_treatments()
    with pytest.raises(InputError, match="focal_zero_bias needs --student population"):
        CompareConfig(dataset=TABLE, student="classifier", treatments=("focal_zero_bias",)).check_treatments()
    with pytest.raises(InputError, match="smote needs --student population"):
        CompareConfig(dataset=TABLE, student="classifier", treatments=("smote",)).check_treatments()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for changed in ({"treatments": ("tpe",)}, {"treatments": ("none",), "chart": Path("c.svg")}):
        with pytest.raises(InputError, match=r"pip install 'balancer\[compare\]'"):
            CompareConfig(dataset=TABLE, **changed).check_treatments()  # type: ignore[arg-type]
