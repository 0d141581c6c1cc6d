"""save_classifier and load_classifier: exact, with an error for every damaged folder."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from balancer.errors import InputError
from balancer.models import Classifier, ModelConfig, SequenceBatch, load_classifier, save_classifier


def make(seed: int = 0, d_model: int = 16) -> Classifier:
    torch.manual_seed(seed)
    edges = (np.array([0, 0.1, 0.3], np.float32),)
    return Classifier(ModelConfig(("a",), ("c",), (4,), edges, history_length=3, d_model=d_model, num_heads=2)).eval()


def batch() -> SequenceBatch:
    return SequenceBatch.from_windows(np.random.default_rng(0).uniform(0, 3, (5, 3, 2)).astype(np.float32), np.array([0, 1, 2, 3, 3]))


def test_round_trip_is_exact(tmp_path: Path) -> None:
    model = make()
    save_classifier(model, tmp_path / "deep" / "run")
    before = torch.get_rng_state()
    again = load_classifier(tmp_path / "deep" / "run")
    assert torch.equal(torch.get_rng_state(), before)
    assert again.config == model.config
    assert not again.training
    assert torch.equal(again.probabilities(batch()), model.probabilities(batch()))
    assert sorted(path.name for path in (tmp_path / "deep" / "run").iterdir()) == ["model.json", "model.safetensors"]


def test_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_classifier(make(), tmp_path / name)
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def change_config(path: Path, key: str, value: object) -> None:
    content = json.loads(path.read_text())
    content["config"][key] = value
    path.write_text(json.dumps(content))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no json": (lambda folder: (folder / "model.json").unlink(), "model.json is missing"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors can't be read"),
    "torn json": (lambda folder: cut(folder / "model.json"), "model.json can't be read"),
    "torn weights": (lambda folder: cut(folder / "model.safetensors"), "model.safetensors is damaged"),
    "foreign json": (lambda folder: (folder / "model.json").write_text('{"hidden_size": 64}'), "model.json is not a classifier"),
    "foreign weights": (lambda folder: (folder / "model.safetensors").write_bytes(b"PK\x03\x04"), "model.safetensors is damaged"),
    "weights of another run": (lambda folder: swap_weights(folder), "belongs to another model.json"),
    "unknown part": (lambda folder: change_config(folder / "model.json", "attention", "magic"), "unknown attention 'magic'"),
    "unknown key": (lambda folder: change_config(folder / "model.json", "depth", 2), "unknown key 'depth'"),
    "wrong type": (lambda folder: change_config(folder / "model.json", "d_model", None), "'d_model'"),
    "other sizes": (lambda folder: change_config(folder / "model.json", "d_model", 32), "does not fit"),
}


def swap_weights(folder: Path) -> None:
    save_classifier(make(seed=1), folder / "other")
    (folder / "other" / "model.safetensors").replace(folder / "model.safetensors")


@pytest.mark.parametrize("case", sorted(BROKEN))
def test_broken_folders_are_named(case: str, tmp_path: Path) -> None:
    save_classifier(make(), tmp_path)
    damage, message = BROKEN[case]
    damage(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        load_classifier(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_full_disk_leaves_the_earlier_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_classifier(make(), tmp_path)

    no_space = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr("balancer.files.os.fsync", no_space)
    with pytest.raises(InputError, match="No space left"):
        save_classifier(make(seed=1), tmp_path)
    assert torch.equal(load_classifier(tmp_path).probabilities(batch()), make().probabilities(batch()))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match="run"):
        save_classifier(make(), tmp_path / "run")
