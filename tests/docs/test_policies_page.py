"""The example of docs/policies.md runs; every policy, treatment and name on the page exists."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import balancer.envs  # noqa: F401 (registers)
from balancer.comparison.config import SEARCHES
from balancer.comparison.treatments import PLAIN
from balancer.policy_learning.training import MARGIN
from balancer.sampling.constant_policy import COMPENSATED, DefaultPolicy, PriorPower
from balancer.sampling.policies import compensates, load_policy
from balancer.training.treatment import FIXED, ZERO_BIAS

PAGE = (Path(__file__).parents[2] / "docs" / "policies.md").read_text(encoding="utf-8")


def test_the_example_trains_a_student_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(block, "docs/policies.md", "exec"), names)
    total = float(capsys.readouterr().out)
    assert 0.4 < total <= 1  # the rate is 5 %


def test_policies_of_the_table_exist_and_are_what_it_says() -> None:
    table = PAGE.split("| policy | what it does |")[1].split("\n\n")[0]
    names = re.findall(r"`([a-z]+(?::[a-z=.0-9,]+)?)`", "\n".join(line.split("|")[1] for line in table.splitlines()[2:]))
    assert {"auto", "constant", "ppo", "bandit", "schedule", "rule", "random", "start"} <= set(names)
    for name in names:
        if name != "policy":
            load_policy(name, num_classes=2)
    assert isinstance(load_policy("auto", num_classes=2), DefaultPolicy)
    assert COMPENSATED.share == PriorPower(1 / 3)
    assert (COMPENSATED.hardness, COMPENSATED.class_importance) == (1, 0.5)
    for option in ("floor", "class_importance", "hardness_importance", "half_life"):
        assert f"`{option}`" in PAGE
        load_policy(f"constant:{option}=1", num_classes=2)
    for share in ("prior", "root", "third", "equal"):
        load_policy(f"constant:share={share}", num_classes=2)
    plain = [
        name
        for name in ("rule", "schedule", "random", "start", "auto", "constant:share=.2")
        if not compensates(load_policy(name, num_classes=2))
    ]
    assert plain == ["rule", "schedule", "random", "start"]
    assert MARGIN == 2.0  # standard errors


def test_treatments_exist() -> None:
    assert all(f"`{name}`" in PAGE for name in (*SEARCHES, *ZERO_BIAS, "none"))
    assert "none" in FIXED
    assert f"`{PLAIN}NAME`" in PAGE
