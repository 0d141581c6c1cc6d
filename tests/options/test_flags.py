"""A dataclass is the flags, the help and the saved configuration."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest

from balancer.errors import InputError
from balancer.options.flags import DeprecatedFlag, Flag, Options, did_you_mean, flag_of, from_dict, parameters, parse, read_flags, to_dict


@dataclass(frozen=True, kw_only=True)
class Sizes(Options):
    """How large."""

    HEADING: ClassVar[str] = "Size"

    size: Annotated[int, Flag("How many.", aliases=("--count",))]
    scale: Annotated[float, "Factor."] = 1.5


@dataclass(frozen=True, kw_only=True)
class Modes(Options):
    """In which way."""

    HEADING: ClassVar[str] = "Mode"

    mode: Annotated[Literal["fast", "slow"], Flag("How.", renamed={"quick": "fast"})] = "fast"
    names: Annotated[tuple[str, ...] | None, Flag("Which, 100 % of them.", default="all")] = None


@dataclass(frozen=True, kw_only=True)
class Example(Sizes, Modes):
    """An example."""

    HEADING: ClassVar[str] = "Output"

    source: Annotated[Path, Flag("Where from.", metavar="FILE", positional=True)]
    dry_run: Annotated[bool, "Only print."] = False
    scale: float = 2.5
    fixed: str = field(default="always", init=False)


def help_of(cls: type, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        parse(cls, "example", ["--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_typed_flags_only_and_their_types() -> None:
    given = parse(Example, "example", ["in.csv", "--size", "3", "--names", "a, b,", "--dry-run", "--scale=.5"])
    assert given == {"source": Path("in.csv"), "size": 3, "names": ("a", "b"), "dry_run": True, "scale": 0.5}
    assert Example(**given).mode == "fast"
    assert read_flags(Example, "example", ["--size", "-3", "in.csv"]) == Example(source=Path("in.csv"), size=-3)


def test_round_trip_through_json_values() -> None:
    config = Example(source=Path("in.csv"), size=3, names=("a", "b"))
    plain = to_dict(config)
    assert plain == {"source": "in.csv", "size": 3, "scale": 2.5, "mode": "fast", "names": ["a", "b"], "dry_run": False}
    assert from_dict(Example, json.loads(json.dumps(plain))) == config
    with pytest.raises(TypeError):
        from_dict(Example, plain | {"more": 1})


def test_groups_keep_their_order_and_a_command_may_change_a_default_or_fix_a_value() -> None:
    found = {each.name: each for each in parameters(Example)}
    assert list(found) == ["source", "size", "scale", "mode", "names", "dry_run"]  # fixed is no flag
    assert [each.heading for each in found.values()] == ["Output", "Size", "Size", "Mode", "Mode", "Output"]
    assert found["scale"].default == 2.5
    assert found["scale"].flag.help == "Factor."
    assert Example(source=Path("x"), size=1).fixed == "always"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in.csv"], "--size is missing: it is required (example --help)"),
        (["--size", "1"], "FILE is missing: it is required (example --help)"),
        (["in.csv", "--size", "x"], "--size: 'x' is not a whole number (example --help)"),
        (["in.csv", "--size", "1", "--scale", "x"], "--scale: 'x' is not a number (example --help)"),
        (["in.csv", "--size"], "--size: expected one argument (example --help)"),
        (
            ["in.csv", "--size", "1", "--mode", "fats"],
            "--mode: unknown value 'fats'; did you mean 'fast'? known: fast, slow (example --help)",
        ),
        (["in.csv", "--siz", "1"], "unknown flag --siz: did you mean --size? (example --help)"),
        (["in.csv", "--siz=1"], "unknown flag --siz: did you mean --size? (example --help)"),
        (["in.csv", "--size", "1", "--imaginary"], "unknown flag --imaginary (example --help)"),
        (["in.csv", "more.csv", "--size", "1"], "unexpected argument 'more.csv' (example --help)"),
    ],
)
def test_mistakes_name_the_flag_and_the_nearest_name(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(Example, "example", arguments)
    assert str(caught.value) == message


def test_help_has_a_heading_and_a_sentence_per_group_and_each_default_once(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(Example, capsys)
    assert text.startswith("usage: example FILE --size N [flags]\n\nAn example.\n")
    assert "Size:\n  How large.\n" in text
    assert "Mode:\n  In which way.\n" in text
    assert re.findall(r"\(default: .*\)", text) == ["(default: 2.5)", "(default: fast)", "(default: all)"]
    assert "100 % of them" in text
    assert "--count" not in text


def test_old_flags_and_values_work_with_a_warning() -> None:
    with pytest.warns(DeprecatedFlag, match="--count is now --size; the old name will be removed in version 0.3"):
        assert parse(Example, "example", ["in.csv", "--count", "2"])["size"] == 2
    with pytest.warns(DeprecatedFlag, match="--mode quick is now --mode fast"):
        assert parse(Example, "example", ["in.csv", "--size", "2", "--mode", "quick"])["mode"] == "fast"


def test_saved_values_are_read_under_their_old_names() -> None:
    old = {"source": "in.csv", "count": 3, "mode": "quick", "names": "a,b"}
    assert from_dict(Example, old) == Example(source=Path("in.csv"), size=3, names=("a", "b"))


def test_the_nearest_name() -> None:
    assert did_you_mean("trian", ["train", "score"]) == "trian: did you mean train?"
    assert did_you_mean("zzz", ["train", "score"]) == "zzz"
    assert (flag_of("bad_rows"), flag_of("from_")) == ("--bad-rows", "--from")
