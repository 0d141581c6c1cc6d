"""A dataclass is the flags, the help and the saved configuration."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import pytest

from balancer.errors import InputError
from balancer.options.flags import field_docs, flag_of, from_dict, parse, to_dict
from balancer.options.train import TrainConfig


@dataclass(frozen=True)
class Example:
    """An example."""

    source: Path = field(metadata={"positional": True})
    """Where from."""
    size: int
    """How
    many."""
    names: tuple[str, ...] | None = None
    """Which, 100 % of them."""
    mode: Literal["fast", "slow"] = "fast"
    """How."""
    dry_run: bool = False
    """Only say."""


def test_typed_flags_only_and_their_types() -> None:
    given = parse(Example, "example", "", ["in.csv", "--size", "3", "--names", "a, b,", "--dry-run"])
    assert given == {"source": Path("in.csv"), "size": 3, "names": ("a", "b"), "dry_run": True}
    assert Example(**given).mode == "fast"


def test_round_trip_through_json_values() -> None:
    config = Example(Path("in.csv"), 3, ("a", "b"))
    plain = to_dict(config)
    assert plain == {"source": "in.csv", "size": 3, "names": ["a", "b"], "mode": "fast", "dry_run": False}
    assert from_dict(Example, plain) == config
    with pytest.raises(TypeError):
        from_dict(Example, plain | {"more": 1})


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["in.csv"], "--size"),
        (["in.csv", "--size", "x"], "--size"),
        (["in.csv", "--size", "1", "--mode", "odd"], "--mode"),
        (["in.csv", "--siz", "1"], "--size"),
    ],
)
def test_wrong_flags_exit_with_2_and_name_the_flag(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(Example, "example", "", arguments)
    assert stopped.value.code == 2
    assert named in capsys.readouterr().err


def test_help_shows_docstring_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(Example, "example", "What it does.", ["--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    assert "What it does." in text and "How many." in text and "100 % of them" in text and "(default: fast)" in text


def test_every_train_flag_is_documented() -> None:
    assert set(field_docs(TrainConfig)) == {f.name for f in fields(TrainConfig)}
    assert flag_of("bad_rows") == "--bad-rows"


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"epochs": 0}, "--epochs"),
        ({"dropout": 1.0}, "--dropout"),
        ({"learning_rate": 0.0}, "--learning-rate"),
        ({"seed": -1}, "--seed"),
        ({"resume": True}, "--out"),
    ],
)
def test_values_out_of_range_name_their_flag(values: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        TrainConfig(dataset=Path("x"), **values)  # type: ignore[arg-type]
