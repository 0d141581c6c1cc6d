"""The choice of instruction sets, for all kernels."""

from __future__ import annotations

import pytest

from balancer import native_library
from balancer.cli import main
from balancer.errors import InputError, UnsupportedError
from balancer.native_library import INSTRUCTIONS, allowed_version, forced_instructions, processor_instructions

ALL = tuple(INSTRUCTIONS)


def test_without_the_variable_the_best_version_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, "", " "):
        if value is None:
            monkeypatch.delenv("BALANCER_INSTRUCTIONS", raising=False)
        else:
            monkeypatch.setenv("BALANCER_INSTRUCTIONS", value)
        assert forced_instructions() is None
        assert allowed_version(("portable", "avx2", "avx512"), 2) == 2


@pytest.mark.parametrize(
    ("forced", "best", "version"),
    [
        ("avx512vnni", 2, 2),
        ("avx512", 2, 2),
        ("AVX2", 2, 1),
        ("avxvnni", 2, 1),
        ("portable", 2, 0),
        ("avx512", 1, 1),
        ("avx2", 0, 0),
        ("neon", 2, 0),
    ],
)
def test_the_variable_is_an_upper_bound(forced: str, best: int, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_library, "processor_instructions", lambda: ALL)
    monkeypatch.setenv("BALANCER_INSTRUCTIONS", forced)
    assert allowed_version(("portable", "avx2", "avx512"), best) == version


def test_names_that_can_not_be_used_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALANCER_INSTRUCTIONS", "magic")
    with pytest.raises(InputError, match="BALANCER_INSTRUCTIONS=magic: no such instruction set; use one of portable, avx2"):
        forced_instructions()
    monkeypatch.setenv("BALANCER_INSTRUCTIONS", "avx512vnni")
    monkeypatch.setattr(native_library, "processor_instructions", lambda: ("portable", "avx2"))
    with pytest.raises(UnsupportedError, match=r"does not have these instructions; use one of portable, avx2$"):
        forced_instructions()


def test_sets_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processor_instructions()[0] == "portable"
    for flags, expected in (
        ({"avx2", "fma", "avx512f"}, ("portable", "avx2")),
        ({"avx2", "fma", "avx_vnni"}, ("portable", "avx2", "avxvnni")),
        ({"asimd", "asimddp"}, ("portable", "neon", "dotprod")),
    ):
        monkeypatch.setattr(native_library, "processor_flags", lambda flags=flags: frozenset(flags))
        processor_instructions.cache_clear()
        assert processor_instructions() == expected
    processor_instructions.cache_clear()


@pytest.mark.parametrize("command", ["train", "inspect", "doctor", "simulate"])
def test_a_wrong_name_is_an_error_of_every_command(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BALANCER_INSTRUCTIONS", "sse99")
    assert main([command]) == 2
    assert "no such instruction set" in capsys.readouterr().err
