"""Treatments of the population: siblings are comparable, baselines train correctly, all rows are scored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from balancer.comparison.folds import FoldedTable
from balancer.comparison.population import PopulationFold, PopulationTrainer, resampled
from balancer.comparison.treatments import named_treatment
from balancer.data.simulation.stream import simulate
from balancer.data.split import Split
from balancer.envs.population import PopulationStack
from balancer.envs.problem import PopulationProblem, synthetic_problem
from balancer.errors import InputError
from balancer.sampling.constant_policy import PLAIN_MANY, ConstantPolicy
from balancer.sampling.weights import class_prior, start_share
from balancer.training.treatment import Treatment

SEED = 4


def _quiet(text: str) -> None:
    assert text


@pytest.fixture(scope="module")
def trainer() -> PopulationTrainer:
    table = FoldedTable(simulate(6_000, seed=3, fraud_rate=0.05, labels="types"), folds=1)
    dataset = table.load(table.folds[0])
    fold = PopulationFold.of(dataset, 0)
    assert len(fold.x_threshold) == len(dataset.rows(Split.THRESHOLD))
    assert len(fold.x_test) == len(dataset.rows(Split.TEST))  # all rows are evaluated
    return PopulationTrainer(fold, epochs=3, steps_per_epoch=10, batch_size=64)


def test_treatments_do_not_depend_on_their_company(trainer: PopulationTrainer) -> None:
    names = ("none", "one_to_one", "under", "smote", "class_weight", "focal", "logit_adjustment", "rule")
    treatments = [named_treatment(name, trainer.counts, SEED) for name in names]
    together = trainer.train(treatments, SEED, _quiet)
    scores = together.scores(range(len(treatments)))
    for index in (1, 3, 6):
        alone = trainer.train([treatments[index]], SEED, _quiet)
        np.testing.assert_allclose(alone.reward[0], together.reward[index], atol=1e-5)
        for one, other in zip(alone.scores([0])[0], scores[index], strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)
    test_scores = {name: score[1] for name, score in zip(names, scores, strict=True)}
    # With the log prior as bias, no sampling is logit adjustment, but for the weight decay of the bias.
    np.testing.assert_allclose(test_scores.pop("logit_adjustment"), test_scores["none"], atol=2e-3)
    none = test_scores.pop("none")
    assert all(np.abs(score - none).max() > 1e-2 for score in test_scores.values())


def test_scores_and_reward_are_what_they_say(trainer: PopulationTrainer) -> None:
    treatments = [named_treatment(name, trainer.counts, SEED) for name in ("none", "one_to_one")]
    trained = trainer.train(treatments, SEED, _quiet)
    threshold, test = trained.scores([1])[0]
    fold = trainer.fold
    assert threshold.shape == (len(fold.x_threshold), fold.problem.num_classes)
    np.testing.assert_allclose(test.sum(axis=1), 1, atol=1e-5)
    problem = fold.problem
    by_hand = PopulationFold(problem, problem.x_val, problem.x_val, fold.evaluated)
    again = PopulationTrainer(by_hand, epochs=3, steps_per_epoch=10, batch_size=64).train(treatments, SEED, _quiet)
    fraud = 1 - again.scores([1])[0][0][:, 0].astype(np.float64)
    expected = average_precision_score(problem.y_val > 0, fraud, sample_weight=problem.val_weight)
    assert trained.reward[1] == pytest.approx(expected, abs=1e-3)
    assert trained.minority_share[1] == pytest.approx(0.5)
    assert trained.hardness.tolist() == [0, 0]


def test_same_seed_same_bits_other_seed_other_students(trainer: PopulationTrainer) -> None:
    treatments = [named_treatment("random", trainer.counts, SEED), named_treatment("start", trainer.counts, SEED)]
    one, two, other = (trainer.train(treatments, seed, _quiet) for seed in (SEED, SEED, SEED + 1))
    assert one.scores([0])[0][1].tobytes() == two.scores([0])[0][1].tobytes()
    assert np.abs(one.scores([1])[0][1] - other.scores([1])[0][1]).max() > 1e-3
    assert named_treatment("random", trainer.counts, 1).policy != named_treatment("random", trainer.counts, 2).policy


def test_under_and_smote_are_balanced_and_leave_validation_alone() -> None:
    problem = synthetic_problem(4, rows=1_500)
    before = np.bincount(problem.y_train)
    under, smote = (resampled(problem, rows, SEED) for rows in ("under", "smote"))  # type: ignore[arg-type]
    assert np.bincount(under.y_train).tolist() == [before[1:].sum(), *before[1:]]
    made = np.bincount(smote.y_train)
    assert made[0] == before[0]
    assert abs(int(made[1:].sum()) - made[0]) <= 4
    np.testing.assert_allclose(made[1:] / made[1:].sum(), before[1:] / before[1:].sum(), atol=0.01)
    for changed in (under, smote):
        assert changed.x_val is problem.x_val
        assert changed.val_weight is problem.val_weight
    held = {row.tobytes() for row in problem.x_train}
    assert all(row.tobytes() in held for row in under.x_train)
    assert (resampled(problem, "under", SEED).x_train == under.x_train).all()
    assert resampled(problem, "all", SEED) is problem


def test_smote_with_a_class_of_one_row() -> None:
    problem = synthetic_problem(2, rows=600)
    y = problem.y_train.copy()
    places = np.flatnonzero(y == 1)
    y[places[0]] = 2
    y[places[1:]] = np.where(np.arange(len(places) - 1) < 3, 1, 0)
    three: dict[str, Any] = {name: getattr(problem, name) for name in ("x_train", "x_val", "y_val", "train_weight", "val_weight")}
    made = np.bincount(resampled(PopulationProblem(y_train=y, num_classes=3, **three), "smote", SEED).y_train)
    assert made[2] == 1
    assert made[1] > 3


def test_losses_do_what_resampling_does(trainer: PopulationTrainer) -> None:
    """Class weights and focal loss raise the scores of the rare classes, as 1:1 does."""
    names = ("none", "one_to_one", "class_weight", "focal")
    trained = trainer.train([named_treatment(name, trainer.counts, SEED) for name in names], SEED, _quiet)
    mean = {name: 1 - test[:, 0].mean() for name, (_, test) in zip(names, trained.scores(range(4)), strict=True)}
    assert all(mean[name] > 1.3 * mean["none"] for name in names[1:])


def test_scores_of_trainings_with_an_offset_are_those_of_the_natural_stream(trainer: PopulationTrainer) -> None:
    """Whatever is drawn: their mean is near the prior, as that of no sampling is."""
    names = ("none", "logit_adjustment", "constant:share=.5,hardness=0", "constant:share=equal,hardness=0,class_importance=.5")
    trained = trainer.train([named_treatment(name, trainer.counts, SEED) for name in names], SEED, _quiet)
    prior = class_prior(trainer.counts)
    for _, test in trained.scores(range(len(names))):
        np.testing.assert_allclose(test.mean(axis=0), prior, rtol=0.5, atol=0.01)
    plain = trainer.train([named_treatment("plain:constant:share=.5,hardness=0", trainer.counts, SEED)], SEED, _quiet)
    assert 1 - plain.scores([0])[0][1][:, 0].mean() > 2.5 * (1 - prior[0])


def test_baselines_start_with_the_bias_that_fits_them(trainer: PopulationTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a step, the scores are the shares that a treatment is trained with."""
    added: dict[int, np.ndarray] = {}
    monkeypatch.setattr(PopulationStack, "add_bias", lambda self, bias: added.update({len(added): bias}))
    names = ("none", "none_zero_bias", "one_to_one", "class_weight", "focal", "focal_zero_bias", "logit_adjustment", "auto")
    names = (*names, "plain:auto", "rule", "schedule", "constant:share=.2", "plain:constant:share=.2", "under", "smote")
    trainer.train([named_treatment(name, trainer.counts, SEED) for name in names], SEED, _quiet)
    prior = class_prior(trainer.counts)
    classes, even = len(prior), np.full(len(prior), 1 / len(prior))
    shares = dict(zip(names[:13], np.exp(added[0]) / classes, strict=True))
    shares |= dict(zip(("under", "smote"), (np.exp(added[index])[0] / classes for index in (1, 2)), strict=True))
    half = np.concatenate([[0.5], 0.5 * prior[1:] / prior[1:].sum()])
    fifth = np.concatenate([[0.8], 0.2 * np.sqrt(prior[1:]) / np.sqrt(prior[1:]).sum()])
    schedule = np.concatenate([[0.5], 0.5 * np.sqrt(prior[1:]) / np.sqrt(prior[1:]).sum()])
    expected = {"none": prior, "focal": prior, "one_to_one": half, "under": half, "smote": half, "plain:constant:share=.2": fifth}
    expected |= {"plain:auto": PLAIN_MANY.weights(prior).share, "rule": start_share(prior), "schedule": schedule}
    for name, share in shares.items():
        np.testing.assert_allclose(share, expected.get(name, even), rtol=1e-5, err_msg=name)


def test_unknown_policy() -> None:
    with pytest.raises(InputError, match="no policy at"):
        named_treatment("nobody", np.array([90.0, 10.0]), 0)


def test_notes_of_a_policy_are_kept(trainer: PopulationTrainer) -> None:
    class WithNotes(ConstantPolicy):
        notes = ("fell back",)

    share = tuple((trainer.counts / trainer.counts.sum()).tolist())
    trained = trainer.train([Treatment("t", WithNotes(share, 0.0)), named_treatment("none", trainer.counts, 0)], SEED, _quiet)
    assert trained.notes == (("fell back",), ())
