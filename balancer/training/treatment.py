"""A treatment of class imbalance: how training rows are drawn, from which rows, and with which loss.

The run, its baselines and every row of a comparison are treatments.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from balancer.data.split import Split
from balancer.sampling.constant_policy import ConstantPolicy
from balancer.sampling.controller import SamplingController
from balancer.sampling.policies import Policy, compensates
from balancer.sampling.seeding import generator
from balancer.sampling.weights import Floats, SamplingWeights, class_prior, output_bias, proportional_share

if TYPE_CHECKING:  # the names of treatments are needed to print help, without the libraries that read tables
    from balancer.data.dataset import Dataset

Rows = Literal["all", "under", "smote"]
Loss = Literal["plain", "class_weight", "focal", "logit_adjustment", "sampler"]
"""``sampler`` counts drawn rows by their weights and adds the offset of the weights to the logits."""
Bias = Literal["fitting", "zero"]
"""Bias of the output layer at the start.

``fitting`` is the log of the class shares that the model is trained with; ``zero`` fits 1:1 alone."""
BASELINES = ("none", "one_to_one", "class_weight")
"""Treatments in every report: no treatment, over-sampling to 1:1, class weights in the loss."""
ZERO_BIAS = ("none_zero_bias", "focal_zero_bias")
"""Treatments that start with a bias of zero, which is usual and does not fit them."""
FIXED = ("none", "one_to_one", "under", "smote", "class_weight", "focal", "logit_adjustment", *ZERO_BIAS)
"""Treatments without a choice: their class shares follow from the training rows."""


@dataclass(frozen=True)
class Treatment:
    """One way of training on imbalanced rows."""

    name: str
    policy: Policy
    """Chooses the sampling weights of each epoch."""
    rows: Rows = "all"
    """Training rows that are drawn from.

    For ``under``, the negative class is thinned once to the number of the other rows. For ``smote``,
    synthetic rows extend the other classes once to the number of the negative rows."""
    loss: Loss = "plain"
    bias: Bias = "fitting"

    def initial_bias(self, counts: NDArray[Any], weights: SamplingWeights) -> Floats:
        """(K,) bias of the output layer at the start.

        It is 0 where an offset is added to the logits in training, because these are then the logits of a
        balanced stream.

        Args:
            counts: (K,) training rows of each class.
            weights: Sampling weights of the first epoch.
        """
        if self.bias == "zero" or self.loss in ("sampler", "logit_adjustment"):
            return np.zeros(len(weights.share))
        mass = weights.share * balanced_class_weight(counts) if self.loss == "class_weight" else weights.share
        return output_bias(mass / mass.sum())

    def first_weights(self, train_counts: NDArray[Any], reward_counts: NDArray[Any], *, epochs: int, batch_budget: int) -> SamplingWeights:
        """Sampling weights of the first epoch; arguments as for :class:`SamplingController`."""
        if self.fixed_weights is not None:
            return self.fixed_weights
        controller = SamplingController(
            class_prior(train_counts),
            self.policy,
            epochs=epochs,
            batch_budget=batch_budget,
            train_counts=train_counts,
            reward_counts=reward_counts,
            compensated=self.loss == "sampler",
        )
        return controller.weights

    @property
    def fixed_weights(self) -> SamplingWeights | None:
        """The weights of every epoch where they depend on no scores; else None."""
        return self.policy.fixed_weights() if isinstance(self.policy, ConstantPolicy) else None


def fixed_treatment(name: str, counts: NDArray[Any]) -> Treatment:
    """One of the treatments :data:`FIXED`.

    Args:
        name: Its name.
        counts: (K,) training rows of each class.

    Returns:
        The treatment. 1:1 shares keep the proportions among the positive classes.
    """
    base = name.removesuffix("_zero_bias")
    prior = class_prior(counts)
    balanced = name in ("one_to_one", "under", "smote")
    share = proportional_share(prior, 0.5) if balanced else prior
    policy = ConstantPolicy(tuple(share.tolist()), hardness=0.0, floor=0.0, name=name)
    rows: dict[str, Rows] = {value: value for value in get_args(Rows)}
    losses: dict[str, Loss] = {value: value for value in get_args(Loss)}
    bias: Bias = "fitting" if name == base else "zero"
    return Treatment(name, policy, rows=rows.get(base, "all"), loss=losses.get(base, "plain"), bias=bias)


def policy_treatment(name: str, policy: Policy) -> Treatment:
    """Training under a policy, with the sampler's loss if the policy is made for it."""
    return Treatment(name, policy, loss="sampler" if compensates(policy) else "plain")


def balanced_class_weight(counts: NDArray[Any]) -> Floats:
    """(K,) loss weights n / (K n_c) for ``counts`` (K,), as scikit-learn's "balanced"; 0 without rows."""
    weight = np.where(counts > 0, counts.sum() / (np.maximum(counts, 1) * (counts > 0).sum()), 0.0)
    return np.asarray(weight, dtype=np.float64)


def under_sampled(dataset: Dataset, seed: int) -> Dataset:
    """``dataset`` with as many negative training rows as other ones; the rows left out remain as history."""
    train = dataset.rows(Split.TRAIN)
    negatives = train[dataset.store.label[train] == 0]
    kept = min(len(negatives), len(train) - len(negatives))
    split = dataset.split.copy()
    split[generator(seed, "under-sampling").permutation(negatives)[kept:]] = Split.GAP
    return replace(dataset, split=split)
