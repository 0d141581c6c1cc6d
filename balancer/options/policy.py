"""Options that choose the sampling policy of a run, and a check of a policy's name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from balancer.data.spec import nearest
from balancer.errors import InputError
from balancer.options.checks import check_whole
from balancer.options.flags import Flag, Options

POLICIES = ("auto", "constant", "ppo", "bandit", "schedule", "rule", "random", "start")
"""Names of policies; any other text is the folder of one."""


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


def check_policy(text: str, flag: str) -> None:
    """Check the name of a policy and that each of its options is given once.

    Their values are checked where the policy is loaded (:func:`balancer.sampling.policies.load_policy`).

    Args:
        text: A name, also with options as in ``constant:share=.2,hardness=1``, or a folder.
        flag: Flag it was given by.

    Raises:
        InputError: There is neither a policy of that name nor such a folder, or an option is repeated.
    """
    name, _, options = text.partition(":")
    if name not in POLICIES:
        if not text or not Path(text).exists():
            raise InputError(f"{flag}: no policy at {text!r}; {nearest(name, POLICIES)}, or give the folder of a policy")
        return
    keys = [part.partition("=")[0] for part in options.split(",")]
    for key in keys:
        if keys.count(key) > 1:
            raise InputError(f"{flag} {text}: the option {key} is given {keys.count(key)} times; give it once")
