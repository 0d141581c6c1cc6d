"""Spec files and their error messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from balancer.data.spec import DAY, Spec, SplitSpec, label_text, parse_duration, read_spec_file
from balancer.errors import InputError

SPECS = sorted((Path(__file__).parents[2] / "benchmarks" / "lib" / "datasets").glob("*.toml"))


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_shipped_specs_round_trip(path: Path) -> None:
    spec = Spec.from_dict(read_spec_file(path))
    assert Spec.from_dict(spec.to_dict()) == spec
    assert spec.label_delay == 7 * DAY


@pytest.mark.parametrize(
    ("text", "seconds"), [("7d", 7 * DAY), ("12h", 43_200.0), ("1.5 min", 90.0), (30, 30.0), ("30", 30.0), (0, 0.0), ("2w", 14 * DAY)]
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text, "label_delay") == seconds


@pytest.mark.parametrize("text", ["7 fortnights", "-3", "", "nan", True, float("inf"), float("nan")])
def test_bad_durations_name_the_key(text: object) -> None:
    with pytest.raises(InputError, match="label_delay"):
        parse_duration(text, "label_delay")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('enttiy = "card"', r"unknown role 'enttiy': did you mean 'entity'\? known: entity, time"),
        ('[read]\nencodng = "utf-8"', r"my.toml: unknown key 'encodng' in \[read\]: did you mean 'encoding'\? known: encoding"),
        ("[split]\ntrian = 0.5", r"unknown key 'trian' in \[split\]: did you mean 'train'"),
        ("[split]\ntrain = 0.9", "sum to 1"),
        ('[split]\ntrain = "2024-01-01"', "mixes shares and dates"),
        ('[split]\ntrain = "2024-02-01"\nvalidation = "2024-01-01"', "not in time order"),
        ('[split]\ntrain = "soon"\nvalidation = "2024-01-01"', "ISO date"),
        ("numeric = 3", "list of column names"),
        ("entity = 3", "name of one column"),
        ("split = 3", "must be a table"),
        ('time = "unclosed', "can't be read as TOML"),
    ],
)
def test_bad_spec_files_name_file_and_key(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "my.toml"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read_spec_file(path)
    assert "my.toml" in str(caught.value)


def test_missing_spec_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist: check --spec"):
        read_spec_file(tmp_path / "no.toml")


def test_one_column_in_two_roles() -> None:
    with pytest.raises(InputError, match="two roles, entity and id"):
        Spec.from_dict({"time": "t", "entity": "card", "id": "card"})
    with pytest.raises(InputError, match="is the label and cannot be numeric"):
        Spec.from_dict({"time": "t", "label": "y", "numeric": ["y"]})
    with pytest.raises(InputError, match="--time"):
        Spec.from_dict({"entity": "card"})


def test_dates_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text('time = "t"\n[split]\ntrain = 2024-01-01\nvalidation = 2024-02-01T12:00:00\ngap = "1d"')
    spec = Spec.from_dict(read_spec_file(path))
    assert spec.split == SplitSpec(train="2024-01-01", validation="2024-02-01T12:00:00", gap=DAY)
    assert spec.split.by_dates


def test_label_text_is_one_spelling() -> None:
    assert [label_text(value) for value in (1, 1.0, "1", True, 0.5)] == ["1", "1", "1", "true", "0.5"]
