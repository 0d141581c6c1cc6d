"""Options that choose the sampling policy of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from balancer.options.checks import check_whole
from balancer.options.flags import Flag, Options


@dataclass(frozen=True, kw_only=True)
class PolicyOptions(Options):
    """Which policy sets the sampling weights."""

    HEADING: ClassVar[str] = "Sampling policy"

    policy: Annotated[
        str,
        "ppo (fine-tuned on this table, and kept only where validation prefers it to auto), auto (a constant that suits any table), "
        "bandit (trained beforehand), constant[:share=.2,hardness=1], schedule, rule, or the folder of a policy.",
    ] = "ppo"
    reward: Annotated[Literal["f1", "average_precision", "partial_auc"], "Metric on the validation rows that PPO maximizes."] = "f1"
    policy_rollouts: Annotated[int | None, Flag("Rollouts that fine-tune the policy ppo.", default="the budget's")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "policy_rollouts")
