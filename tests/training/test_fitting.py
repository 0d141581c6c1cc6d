"""Fits with the sampler's loss: the loss itself, probabilities of the natural stream, what policies see,
resuming."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from balancer.data.dataset import Dataset, load_dataset
from balancer.data.roles import resolve_spec
from balancer.data.simulation.stream import simulate
from balancer.data.split import Split
from balancer.options.fit import Budget, FitOptions
from balancer.options.model import ModelOptions
from balancer.sampling.constant_policy import COMPENSATED
from balancer.sampling.observation import Observation
from balancer.sampling.policies import ConstantPolicy, DefaultPolicy, Policy, RulePolicy, load_policy
from balancer.sampling.row_sampler import RowSampler
from balancer.sampling.weights import SamplingWeights, class_prior
from balancer.training.fitting import Pools, fit_classifier
from balancer.training.preparation import model_config
from balancer.training.trainer import ClassifierTrainer
from balancer.training.treatment import Treatment, fixed_treatment, policy_treatment

MODEL = ModelOptions(history_length=3, d_model=8, layers=1, dropout=0.0, field_dropout=0.0)
OPTIONS = FitOptions(batch_size=128)
SCHEDULE = Budget(3, 20)


def _table(labels: str, rows: int = 6_000) -> Dataset:
    frame = simulate(rows, seed=3, fraud_rate=0.08, labels=labels)  # type: ignore[arg-type]
    roles = {"gap": "1d"} | ({} if labels == "binary" else {"label": "fraud_type", "negative": "legitimate"})
    return load_dataset(frame, resolve_spec(frame, overrides=roles))


@pytest.fixture(scope="module", params=["binary", "types"])
def dataset(request: pytest.FixtureRequest) -> Dataset:
    return _table(request.param)


@pytest.fixture(scope="module")
def binary() -> Dataset:
    return _table("binary")


def _fit(
    dataset: Dataset,
    treatment: Treatment,
    folder: Path,
    schedule: Budget = SCHEDULE,
    stop_after: int | None = None,
) -> tuple[ClassifierTrainer, list[dict[str, Any]]]:
    """Fit a small classifier; after ``stop_after`` epochs as by Ctrl-C."""

    def after(epoch: int, _: dict[str, Any]) -> None:
        if epoch == stop_after:
            raise KeyboardInterrupt

    folder.mkdir(exist_ok=True)
    model = model_config(dataset, MODEL, seed=0)
    return fit_classifier(
        dataset, model, treatment, schedule, OPTIONS, seed=0, device="cpu", checkpoint=folder / "c.safetensors", after_epoch=after
    )


@pytest.mark.parametrize("form", ["rows", "histories"])
def test_the_loss_of_a_step_is_the_formula(dataset: Dataset, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Class weights, weights of rows and offset, also where a step has several passes over histories."""
    monkeypatch.setattr("balancer.models.embedding.UNSEEN_RATE", 0.0)  # nothing random in training
    model = replace(model_config(dataset, MODEL, seed=0), form=form)  # type: ignore[arg-type]
    trainer = ClassifierTrainer(dataset, model, seed=0, total_steps=1, batch_size=400, learning_rate=1e-3)
    rng, classes = np.random.default_rng(0), len(dataset.schema.classes)
    rows = rng.choice(dataset.rows(Split.TRAIN), 400)
    class_weight, offset = rng.uniform(0.2, 2, classes), rng.normal(size=classes)
    weight_of = rng.uniform(0.1, 3, len(dataset.store.label))
    trainer.compensate(class_weight, offset, rows, weight_of[rows])
    p = trainer.score(rows).astype(np.float64)
    label = dataset.store.label[rows].astype(np.int64)
    odds = p * np.exp(offset)
    q = (odds / odds.sum(axis=1, keepdims=True))[np.arange(400), label]
    weight = class_weight[label] * weight_of[rows]
    expected = (weight * -np.log(q)).sum() / weight.sum()
    assert trainer.fit(rows) == pytest.approx(expected, rel=1e-4)
    trainer.compensate(np.ones(classes), np.zeros(classes), rows)  # the next epoch: all rows alike, no offset
    p = trainer.score(rows).astype(np.float64)
    assert trainer.fit(rows) == pytest.approx(-np.log(p[np.arange(400), label]).mean(), rel=1e-4)


POLICIES = {
    "equal shares": "constant:share=equal,hardness=0",
    "equal shares, important": "constant:share=equal,hardness=0,class_importance=.5",
    "the prior's root": "constant:share=root,hardness=0,class_importance=.5",
    "hard rows that count less": "constant:share=third,hardness=1,class_importance=.5,hardness_importance=1",
}


@pytest.mark.parametrize("name", POLICIES)
def test_probabilities_are_those_of_the_natural_stream(dataset: Dataset, name: str, tmp_path: Path) -> None:
    """Whatever is drawn: the mean score is near the rate of each class, as without sampling."""
    classes, held = len(dataset.schema.classes), dataset.rows(Split.REWARD)
    trainer, _ = _fit(dataset, policy_treatment("run", load_policy(POLICIES[name], num_classes=classes)), tmp_path)
    rate = np.bincount(dataset.store.label[held], minlength=classes) / len(held)
    mean = trainer.score(held).mean(axis=0)
    np.testing.assert_allclose(mean, rate, rtol=0.35, atol=0.01)


def test_without_the_sampler_s_loss_they_are_those_of_the_draws(binary: Dataset, tmp_path: Path) -> None:
    trainer, _ = _fit(binary, Treatment("plain", load_policy(POLICIES["equal shares"], num_classes=2)), tmp_path)
    assert trainer.score(binary.rows(Split.REWARD))[:, 1].mean() > 2 * class_prior(Pools.of(binary).train_counts)[1]


@pytest.mark.parametrize(
    ("treatment", "share"),
    [
        (policy_treatment("auto", DefaultPolicy()), None),
        (Treatment("plain", DefaultPolicy()), "equal"),
        (policy_treatment("rule", RulePolicy()), "root"),
        (Treatment("constant", ConstantPolicy(0.3)), "0.3"),
        ("none", None),
        ("none_zero_bias", "equal"),
        ("one_to_one", "equal"),
        ("class_weight", "equal"),
    ],
    ids=["auto", "plain auto", "rule", "plain constant", "none", "none_zero_bias", "one_to_one", "class_weight"],
)
def test_a_new_model_predicts_what_it_will_be_trained_with(
    binary: Dataset, treatment: Treatment | str, share: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = Pools.of(binary).train_counts
    given = fixed_treatment(treatment, counts) if isinstance(treatment, str) else treatment
    logit: list[np.ndarray] = []

    def stop(self: ClassifierTrainer, *_: Any) -> float:
        p = self.score(binary.rows(Split.REWARD)).astype(np.float64)
        logit.append(np.log(p[:, 1] / p[:, 0]))
        raise KeyboardInterrupt

    monkeypatch.setattr(ClassifierTrainer, "fit", stop)
    for each in (given, fixed_treatment("none_zero_bias", counts)):  # the same weights, with a bias of 0
        with pytest.raises(KeyboardInterrupt):
            _fit(binary, each, tmp_path)
    prior = class_prior(counts)[1]
    root = np.sqrt(prior) / (np.sqrt(prior) + np.sqrt(1 - prior))
    expected = {None: prior, "equal": 0.5, "root": root, "0.3": 0.3}[share]
    np.testing.assert_allclose(logit[0] - logit[1], np.log(expected / (1 - expected)), atol=1e-4)


class _Watching:
    """The constant of the package; it notes what it sees."""

    name = "watching"

    def __init__(self) -> None:
        self.seen: list[Observation] = []

    def act(self, observation: Observation) -> SamplingWeights:
        self.seen.append(observation)
        return DefaultPolicy().act(observation)


def test_policies_and_hardness_see_scores_of_equally_frequent_classes(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refreshed: list[tuple[np.ndarray, np.ndarray]] = []
    refresh = RowSampler.refresh

    def noting(self: RowSampler, rows: np.ndarray, scores: np.ndarray) -> None:
        refreshed.append((rows, scores))
        refresh(self, rows, scores)

    monkeypatch.setattr(RowSampler, "refresh", noting)
    prior, policy, natural = class_prior(Pools.of(dataset).train_counts), _Watching(), []
    trainer, figures = _fit(dataset, policy_treatment("run", policy), tmp_path, Budget(1, 10))
    rows, scores = refreshed[0]
    natural = trainer.score(rows).astype(np.float64)
    odds = natural / prior
    np.testing.assert_allclose(scores, odds / odds.sum(axis=1, keepdims=True), rtol=1e-4)
    assert [seen.compensated for seen in policy.seen] == [True, True]
    assert scores[:, 0].mean() < natural[:, 0].mean() - 0.1
    # The figures of the epoch are those of the natural scores, and name the weights.
    assert figures[0]["class_importance"] == COMPENSATED.class_importance
    assert (figures[0]["hardness_importance"], figures[0]["half_life"]) == (0.0, None)
    plain = _Watching()
    _fit(dataset, Treatment("plain", plain), tmp_path / "plain", Budget(1, 4))
    assert not any(seen.compensated for seen in plain.seen)


def test_ages_come_from_the_times_of_the_table(binary: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[np.ndarray] = []
    fit = ClassifierTrainer.fit

    def noting(self: ClassifierTrainer, rows: np.ndarray, extra: Any = None) -> float:
        drawn.append(rows)
        return fit(self, rows, extra)

    monkeypatch.setattr(ClassifierTrainer, "fit", noting)
    time, train = binary.store.time, binary.rows(Split.TRAIN)
    mean_age = []
    for half_life in ("", ",half_life=.1"):
        policy = load_policy(f"constant:share=prior,hardness=0{half_life}", num_classes=2)
        _fit(binary, policy_treatment("run", policy), tmp_path / f"h{half_life}", Budget(1, 10))
        mean_age.append(float((time[train].max() - time[drawn[-1]]).mean() / np.ptp(time[train])))
    assert 0.4 < mean_age[0] < 0.6
    assert mean_age[1] < 0.25


@pytest.mark.parametrize("policy", ["auto", "constant:share=third,hardness=1,class_importance=.5,hardness_importance=.5,half_life=.5"])
def test_killed_and_resumed_ends_in_the_same_bits(binary: Dataset, policy: str, tmp_path: Path) -> None:
    def treatment() -> Treatment:
        return policy_treatment("run", load_policy(policy, num_classes=2))

    rows = binary.rows(Split.TEST)
    whole, figures = _fit(binary, treatment(), tmp_path / "whole", Budget(3, 5))

    with pytest.raises(KeyboardInterrupt):
        _fit(binary, treatment(), tmp_path / "cut", Budget(3, 5), stop_after=2)
    resumed, again = _fit(binary, treatment(), tmp_path / "cut", Budget(3, 5))
    assert resumed.score(rows).tobytes() == whole.score(rows).tobytes()
    assert again == figures


def test_a_fit_that_version_0_1_began_goes_on_with_its_loss(binary: Dataset, tmp_path: Path) -> None:
    """Its controller says nothing of compensation; the loss stays the one that counts all rows alike."""
    policy: Policy = load_policy("constant:share=.3,hardness=0", num_classes=2)

    folders = [tmp_path / "plain", tmp_path / "old"]
    plain, _ = _fit(binary, Treatment("run", policy), folders[0], Budget(2, 5))
    with pytest.raises(KeyboardInterrupt):
        _fit(binary, Treatment("run", policy), folders[1], Budget(2, 5), stop_after=1)
    resumed, _ = _fit(binary, policy_treatment("run", policy), folders[1], Budget(2, 5))
    rows = binary.rows(Split.TEST)
    assert resumed.score(rows).tobytes() == plain.score(rows).tobytes()
