"""AdaptiveSampler in a loop of one's own: DataLoader, names of classes, refusals, resume."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from balancer.errors import InputError
from balancer.sampling.torch_sampler import AdaptiveSampler

LABELS = ["ok"] * 950 + ["fraud"] * 50


def test_feeds_a_data_loader_and_helps() -> None:
    rng = np.random.default_rng(0)
    label = np.array([0] * 1950 + [1] * 50)
    x = torch.as_tensor(rng.normal(size=(2000, 4)) + label[:, None], dtype=torch.float32)
    sampler = AdaptiveSampler(label, policy="constant:share=.4,hardness=1", epochs=3, num_samples=512)
    loader = DataLoader(TensorDataset(x, torch.as_tensor(label)), batch_size=64, sampler=sampler)
    shares = []
    for _ in range(3):
        seen = torch.cat([y for _, y in loader])
        assert len(seen) == 512
        shares.append(float((seen == 1).float().mean()))
        score = torch.sigmoid(x.sum(1) - 4).numpy()
        sampler.update(label[::2], score[::2], rows=np.arange(2000), row_score=score)
    assert np.mean(shares) == pytest.approx(0.4, abs=0.05)
    drawn = np.array(list(sampler))
    negatives = drawn[label[drawn] == 0]
    assert score[negatives].mean() > 1.5 * score[label == 0].mean()  # hard ones come more often


def test_classes_keep_their_names() -> None:
    sampler = AdaptiveSampler(LABELS, policy="constant:share=.3", epochs=2, num_samples=10)
    assert sampler.classes_ == ["fraud", "ok"]
    np.testing.assert_allclose(sampler.weights.share, [0.3, 0.7])
    by_column = sampler.update(["ok", "fraud"], [[0.1, 0.9], [0.8, 0.2]])
    other = AdaptiveSampler(LABELS, policy="constant:share=.3", epochs=2, num_samples=10)
    assert other.update(["ok", "fraud"], [0.1, 0.8]).to_dict() == by_column.to_dict()  # one column: the rarer class


def test_epochs_differ_and_repeat() -> None:
    a, b = (AdaptiveSampler(LABELS, epochs=3, seed=5) for _ in range(2))
    first, second = list(a), list(a)
    assert first != second
    b.set_epoch(1)
    assert list(b) == second


@pytest.mark.parametrize(
    ("y_true", "y_score", "said"),
    [
        (["ok", "fraud"], [0.1, float("nan")], "not finite"),
        (["ok", "fraud"], [0.1], "one label"),
        (["ok", "theft"], [0.1, 0.2], "theft"),
        (["ok", "fraud"], [[0.1, 0.2, 0.7]] * 2, "one column"),
        ([], [], "no scored rows"),
    ],
)
def test_refusal_changes_nothing(y_true: list[str], y_score: list[float], said: str) -> None:
    sampler = AdaptiveSampler(LABELS, policy="rule", epochs=3, num_samples=20)
    before = sampler.state_dict()
    with pytest.raises(InputError, match=said):
        sampler.update(np.array(y_true, dtype="U5"), y_score)
    assert sampler.state_dict()["controller"] == before["controller"]


def test_state_resumes() -> None:
    one, two = (AdaptiveSampler(LABELS, policy="constant:hardness=2", epochs=4, num_samples=200, seed=3) for _ in range(2))
    list(one)
    one.update(["ok", "fraud"], [0.2, 0.7], rows=np.arange(900), row_score=np.linspace(0, 1, 900))
    two.load_state_dict(one.state_dict())
    assert list(one) == list(two)
    with pytest.raises(InputError, match="other training rows"):
        AdaptiveSampler(LABELS[100:], epochs=4).load_state_dict(one.state_dict())


@pytest.mark.parametrize(
    ("labels", "said"), [(["a"] * 4, "one class only"), ([0.5, 1.0], "integers or strings"), ([[0, 1]], "non-empty vector")]
)
def test_refuses_labels(labels: list[object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        AdaptiveSampler(np.array(labels), epochs=2)


def test_needs_numpy_and_torch_alone() -> None:
    heavy = "polars sklearn stable_baselines3 gymnasium lightgbm rich safetensors"
    code = (
        "import sys; from balancer import AdaptiveSampler; s = AdaptiveSampler([0]*9+[1], epochs=2); list(s); s.update([0, 1], [.1, .9]);"
        f"assert not set('{heavy}'.split()) & set(sys.modules), set('{heavy}'.split()) & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
