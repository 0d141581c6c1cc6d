"""What balancer policy evaluate prints: everything can be read on 80 columns, and nouns are counted."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from balancer.policy_learning.evaluation import print_evaluation

NAMES = ("ppo", "bandit", "rule", "auto", "start", "schedule", "one_to_one", "constant", "random", "none")


def result(names: tuple[str, ...] = NAMES, groups: int = 1, number: int = 1) -> dict[str, Any]:
    """A result with recognizable figures."""
    against = {"difference": -0.123, "low": -0.456, "high": 0.789, "ahead": 1.0}
    figures = {"average_precision": 0.336, "f1": 0.397, "partial_auc": 0.341, "minority_share": 0.391, "hardness": 2.14}
    policies = {name: figures | {"average_precision_against_reference": against} for name in names}
    kinds = ("mixture, mlp (2)", "simulated, embedding (1)", "more classes (3)")
    by_kind = {kind: {name: 0.001 * i for i, name in enumerate(names)} for kind in kinds}
    tasks = {"split": "heldout", "number": number, "groups": groups}
    return {"tasks": tasks, "seed": 0, "reference": "none", "policies": policies, "by_kind": by_kind}


def printed(content: dict[str, Any], width: int = 80) -> str:
    stream = io.StringIO()
    print_evaluation(content, Console(file=stream, width=width))
    return stream.getvalue()


@pytest.mark.parametrize("width", [60, 80, 200])
def test_nothing_is_cut(width: int) -> None:
    text = printed(result(), width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for name in NAMES[:-1]:
        assert sum(name in line.split() for line in text.splitlines()) == 2, f"{name} has a row and a column"
    assert text.count("-0.123 [-0.456, +0.789]") == len(NAMES) - 1
    for number in range(len(NAMES) - 1):
        assert text.count(f"+0.00{number}") == 3
    assert text.count("simulated, embedding (1)") == {60: 3, 80: 2, 200: 1}[width]


def test_80_columns_hold_all_figures() -> None:
    text = printed(result())
    assert all(head in text for head in ("difference in AP", "tasks", "F1,", "pAUC", "share,", "hard-"))
    assert text.count("2.14") == len(NAMES)


def test_a_long_name_is_cut_and_not_the_figures() -> None:
    text = printed(result((*NAMES, "a-folder-with-a-very-long-name")))
    assert "a-folder-with-a…" in text
    assert text.count("-0.123 [-0.456, +0.789]") == len(NAMES)


@pytest.mark.parametrize(
    ("number", "groups", "said"),
    [(1, 1, "1 heldout task, 1 kind of students each"), (60, 2, "60 heldout tasks, 2 kinds of students each")],
)
def test_nouns_are_counted(number: int, groups: int, said: str) -> None:
    assert said in printed(result(groups=groups, number=number))
