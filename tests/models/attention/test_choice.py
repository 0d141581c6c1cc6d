"""The backend that `auto` chooses: measured once, stored on disk, by a fixed order where times are close."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from balancer.errors import InputError, UnsupportedError
from balancer.models.attention import choice
from balancer.models.attention.backends import BACKENDS
from balancer.models.attention.choice import LENGTHS, VARIABLE, explain_choice
from balancer.models.attention.functional import sparse_attention
from balancer.models.attention.layout import Layout

LAYOUT = Layout(32, 32)


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_TABLES", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(choice, "LENGTHS", (64, 128))


def timed(monkeypatch: pytest.MonkeyPatch, times: dict[str, float]) -> list[tuple[str, int]]:
    """Set the milliseconds per token of each backend; return a record of what is measured."""
    asked: list[tuple[str, int]] = []

    def milliseconds(name: str, length: int, *_: Any) -> float:
        asked.append((name, length))
        return times.get(name, 9.0) * length

    monkeypatch.setattr(choice, "_milliseconds", milliseconds)
    return asked


def query(length: int) -> torch.Tensor:
    return torch.zeros(1, length, 2, 16)


def test_the_fastest_is_taken_and_close_ones_by_order(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, {"dense": 1.0, "torch": 1.5, "native": 1.4})
    assert explain_choice(query(100), LAYOUT).name == "dense"
    monkeypatch.setattr(choice, "_TABLES", {})
    for path in choice.cache_folder().iterdir():
        path.unlink()
    timed(monkeypatch, {"dense": 1.0, "torch": 1.05, "native": 3.0})
    chosen = explain_choice(query(100), LAYOUT)
    assert chosen.name == "torch"
    assert "dense 128.00 ms" in chosen.reason


def test_it_is_measured_once_and_kept_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = timed(monkeypatch, {"torch": 1.0})
    first = explain_choice(query(100), LAYOUT)
    count = len(asked)
    assert count
    assert explain_choice(query(70), LAYOUT).name == first.name
    monkeypatch.setattr(choice, "_TABLES", {})
    assert explain_choice(query(100), LAYOUT) == first
    assert len(asked) == count
    (path,) = choice.cache_folder().iterdir()
    for damaged in ("", "{}", '{"key": 1, "milliseconds": {}}', json.dumps({"key": None, "milliseconds": 3})):
        path.write_text(damaged)
        monkeypatch.setattr(choice, "_TABLES", {})
        assert explain_choice(query(100), LAYOUT).name == first.name
    assert len(asked) == 5 * count


def test_a_folder_that_cannot_be_written_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    timed(monkeypatch, {"torch": 1.0})
    with pytest.warns(UserWarning, match="set XDG_CACHE_HOME to another folder"):
        assert explain_choice(query(100), LAYOUT).name == "torch"


def test_a_short_sequence_is_dense_and_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = timed(monkeypatch, {})
    assert explain_choice(query(32), LAYOUT).name == "dense"
    assert not asked


def test_beyond_the_last_length_dense_grows_by_the_square(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, {"dense": 1.0, "torch": 3.0, "native": 9.0})
    monkeypatch.setattr(choice, "HOPELESS", 100.0)
    assert explain_choice(query(128), LAYOUT).name == "dense"
    assert explain_choice(query(2 * 128), LAYOUT).name == "dense"
    chosen = explain_choice(query(4 * 128), LAYOUT)
    assert chosen.name == "torch"
    assert "extrapolated to 512" in chosen.reason and "dense 2048.00 ms" in chosen.reason


def test_the_short_way_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, {"dense": 1.0, "torch": 1.5, "native": 2.5})
    for length in (1, 32, 33, 64, 100, 400, 5000):
        assert choice.choose(query(length), LAYOUT, 8) == explain_choice(query(length), LAYOUT).name
    monkeypatch.setenv(VARIABLE, "reference")
    assert choice.choose(query(100), LAYOUT, 8) == "reference"


def test_every_setting_has_its_own_table(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = timed(monkeypatch, {"torch": 1.0})
    settings: list[tuple[torch.Tensor, Layout, int]] = [
        (query(100), LAYOUT, 8),
        (query(100), LAYOUT, 3),
        (query(100), Layout(32, 8), 8),
        (query(100), Layout(32, 32, causal=False), 8),
        (query(100), Layout(32, 32, mode="block"), 8),
        (query(100).double(), LAYOUT, 8),
        (query(100).requires_grad_(), LAYOUT, 8),
        (torch.zeros(1, 100, 2, 17), LAYOUT, 8),
    ]
    for new, (given, layout, num_global) in enumerate(settings, 1):
        explain_choice(given, layout, num_global=num_global)
        assert len(list(choice.cache_folder().iterdir())) == new
    count = len(asked)
    with torch.no_grad():  # no gradients after all: the first table, and other batches and heads too
        explain_choice(query(100).requires_grad_(), LAYOUT, num_global=8)
    explain_choice(torch.zeros(7, 100, 3, 12), LAYOUT, num_global=8)
    assert len(asked) == count


def test_a_backend_far_behind_is_given_up_but_not_for_a_dense_lead(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = timed(monkeypatch, {"dense": 1.0, "torch": 5.0, "native": 5.0})
    explain_choice(query(100), LAYOUT)
    assert ("torch", 128) in asked
    monkeypatch.setattr(choice, "_TABLES", {})
    asked = timed(monkeypatch, {"dense": 5.0, "torch": 1.0, "native": 1.0})
    explain_choice(query(100), LAYOUT, num_global=2)
    assert ("dense", 64) in asked and ("dense", 128) not in asked


def test_nothing_is_measured_while_torch_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = timed(monkeypatch, {"dense": 1.0})
    tensors = [torch.randn(1, 100, 2, 16) for _ in range(3)]

    def attend() -> torch.Tensor:
        return sparse_attention(*tensors, window=32, num_global=0)

    traced = torch.compile(attend, backend="eager", fullgraph=True)()
    assert not asked
    torch.testing.assert_close(traced, attend(), atol=1e-6, rtol=1e-5)
    assert asked


def test_the_environment_forces_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "torch")
    assert explain_choice(query(32), LAYOUT).name == "torch"
    monkeypatch.setenv(VARIABLE, "imaginary")
    with pytest.raises(InputError, match="imaginary"):
        explain_choice(query(32), LAYOUT)
    monkeypatch.setenv(VARIABLE, "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if BACKENDS["triton"].refuses(query(32), LAYOUT) is not None:
        with pytest.raises(UnsupportedError, match="unset it"):
            explain_choice(query(32), LAYOUT)


def test_a_cache_that_cannot_be_written_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    timed(monkeypatch, {"torch": 1.0})
    with pytest.warns(UserWarning, match="each process measures the attention backends again"):
        assert explain_choice(query(100), LAYOUT).name == "torch"


def test_really_measured() -> None:
    before = torch.random.get_rng_state()
    chosen = explain_choice(query(128), LAYOUT)
    assert torch.equal(torch.random.get_rng_state(), before)  # measuring draws no number of the caller's
    assert chosen.name in BACKENDS and chosen.name != "reference"
    assert set(chosen.milliseconds) == {"64", "128"}
    tracked = [torch.randn(1, 100, 2, 16, requires_grad=True) for _ in range(3)]
    sparse_attention(*tracked, torch.randn(1, 100), window=32).sum().backward()
    assert len(list(choice.cache_folder().iterdir())) == 2  # with gradients it is a table of its own


def test_lengths_are_sorted() -> None:
    assert list(LENGTHS) == sorted(LENGTHS)
