"""Counted nouns."""

from __future__ import annotations

import pytest

from balancer.cli import main
from balancer.names import counted


@pytest.mark.parametrize(
    ("number", "noun", "plural", "said"),
    [
        (0, "row", None, "0 rows"),
        (1, "row", None, "1 row"),
        (1, "class", "classes", "1 class"),
        (2, "class", "classes", "2 classes"),
        (12_345, "later row", None, "12,345 later rows"),
    ],
)
def test_the_noun_agrees_with_its_number(number: int, noun: str, plural: str | None, said: str) -> None:
    assert counted(number, noun, plural) == said


def test_one_fraud_is_no_plural(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--rows", "100", "--out", "t.csv"]) == 2
    assert "--rows 100 at --fraud-rate 0.01 gives 1 fraud, too few" in capsys.readouterr().err
