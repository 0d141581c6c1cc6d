"""The flags of ``balancer compare``, and the treatments that can be compared."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from balancer.data.spec import nearest
from balancer.dependencies import require
from balancer.errors import InputError
from balancer.options.checks import check_whole
from balancer.options.cluster import ClusterOptions
from balancer.options.data import TableOptions
from balancer.options.fit import ScheduleOptions
from balancer.options.flags import Flag, Options
from balancer.options.model import SizeOptions
from balancer.options.policy import POLICIES, check_policy
from balancer.options.run import MAX_SEED, RunOptions

PLAIN = "plain:"
"""Before the name of a policy: train with the cross-entropy instead of the sampler's loss."""
SEARCHES = ("constant_share", "constant", "tpe")
"""Constants chosen on the reward half out of ``search_trials`` trainings each.

The share alone, share and hardness on a grid, or both and the class importance by Optuna's TPE. All are
trained with the sampler's loss.
"""
POPULATION_ONLY = ("smote", "focal", "focal_zero_bias", "logit_adjustment", "ppo")
POPULATION_TREATMENTS = (
    *("none", "none_zero_bias", "one_to_one", "under", "smote", "class_weight", "focal", "focal_zero_bias", "logit_adjustment"),
    *("rule", *SEARCHES),
    *("random", "bandit", "ppo", "auto", "lightgbm"),
)
CLASSIFIER_TREATMENTS = ("none", "one_to_one", "under", "class_weight", "rule", "random", "bandit", "auto", "lightgbm")
"""Default for the classifier. The searches can be named too; they need ``search_trials`` trainings each."""
NOT_OF_A_CELL = frozenset(
    {"treatments", "seeds", "reference", "json", "chart", "overwrite", "out", "resume", "threads", "cluster", "workers"}
)
"""Fields that may differ when a comparison is resumed, as they do not change the figures of a cell."""

WHERE = frozenset({"cluster", "workers"})
"""Fields that are not stored, because each start of a comparison says anew where it runs."""

_OPTION = re.compile(r"((start_|end_)?(share|hardness)|floor|class_importance|hardness_importance|half_life|seed)=")
_WITHOUT_POLICY = ("none", "one_to_one", "under", "smote", "none_zero_bias")
"""Treatments without a policy that are trained with the cross-entropy."""
_EXTRAS = {"smote": "imblearn", "tpe": "optuna"}


@dataclass(frozen=True, kw_only=True)
class ComparisonOptions(Options):
    """What is compared, and how often it is trained."""

    HEADING: ClassVar[str] = "Comparison"

    treatments: Annotated[
        tuple[str, ...] | None,
        Flag(
            "Treatments to compare: none, one_to_one, under, smote, class_weight, focal, logit_adjustment; none_zero_bias and "
            "focal_zero_bias, the same with the usual output bias of 0 at the start; constant_share, constant, tpe (constants, searched); "
            "auto, ppo, bandit, rule, schedule, start, random, constant:share=.2,hardness=1 or folders (policies); plain:NAME, a policy "
            "with the cross-entropy instead of the sampler's loss; lightgbm.",
            default="those without options that the student can be trained with; for the classifier, no searches",
            aliases=("--policies",),
        ),
    ] = None
    reference: Annotated[
        str | None,
        Flag("Treatment that the differences of the others refer to.", metavar="NAME", default="one_to_one, or the first treatment"),
    ] = None
    folds: Annotated[
        int,
        Flag(
            "Number of time folds. Each has half of the rows, from the first half to the last half; a short table has fewer. 1: the whole table.",
            aliases=("--windows",),
        ),
    ] = 5
    seeds: Annotated[int, "Number of trainings of each treatment in each fold."] = 5
    student: Annotated[
        Literal["population", "classifier"],
        "Model to train: small networks on the fields of single rows, many at a time, or the transaction-sequence classifier.",
    ] = "population"
    search_trials: Annotated[int, "Trainings that constant_share, constant and tpe each choose from, in every fold and seed."] = 20
    ppo_rollouts: Annotated[
        int,
        "Rollouts of PPO that fine-tune the policy ppo in each fold, for the treatment ppo. Where the result is not better than auto on "
        "validation rows, auto is kept.",
    ] = 15

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.treatments is not None:
            object.__setattr__(self, "treatments", _joined(self.treatments))
        check_whole(self, "folds", "seeds", "search_trials", "ppo_rollouts")
        if self.reference is not None and self.reference not in self.chosen():
            raise InputError(
                f"--reference {self.reference} is not compared; {nearest(self.reference, self.chosen())}; or add it to --treatments"
            )

    def chosen(self) -> tuple[str, ...]:
        """The treatments that are compared."""
        return self.treatments or (POPULATION_TREATMENTS if self.student == "population" else CLASSIFIER_TREATMENTS)

    def reference_treatment(self) -> str:
        """The treatment that the differences refer to."""
        chosen = self.chosen()
        return self.reference or ("one_to_one" if "one_to_one" in chosen else chosen[0])


@dataclass(frozen=True, kw_only=True)
class CompareConfig(TableOptions, ComparisonOptions, SizeOptions, ScheduleOptions, ClusterOptions, RunOptions):
    """Compare sampling treatments and baselines on a table.

    All are trained with equal budgets, on rolling time folds and with several seeds; differences are given
    with intervals.
    """

    HEADING: ClassVar[str] = "Output"
    COMMON: ClassVar[tuple[str, ...]] = (
        *("spec", "entity", "time", "label", "label_delay", "treatments", "reference", "folds", "seeds", "student"),
        *("cluster", "workers", "device", "seed", "out", "resume", "json", "chart"),
    )

    history_length: int = 8
    d_model: int = 32
    epochs: int = 10
    steps_per_epoch: int = 40
    seed: Annotated[int, "First random seed; the trainings use this one and those after it."] = 0
    out: Annotated[Path | None, Flag("Folder of the finished cells.", metavar="FOLDER", default="runs/compare-NAME-DATE-TIME")] = None
    resume: Annotated[
        bool,
        "Continue the comparison in --out. Treatments and seeds may be added; flags that change the figures may be repeated "
        "but not changed.",
    ] = False
    json: Annotated[Path | None, Flag("JSON file for results, paired differences and the summary sentence.", metavar="FILE")] = None
    chart: Annotated[Path | None, Flag("File for the chart, .svg or .html.", metavar="FILE")] = None
    overwrite: Annotated[bool, "Replace the files of --json and --chart if they exist."] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "seed", least=0, most=MAX_SEED - self.seeds)
        if self.chart is not None and self.chart.suffix not in (".svg", ".html"):
            raise InputError(f"--chart {self.chart} must end in .svg or .html")
        for name in ("json", "chart"):
            file = getattr(self, name)
            if file is not None and not file.parent.is_dir():
                raise InputError(f"--{name} {file}: the folder {file.parent} does not exist; make it first")

    def check_files(self) -> None:
        """Check that the folder and the files can be written, before the table is read.

        Raises:
            InputError: One can't be written, or exists.
        """
        # Imported here because the help needs no file.
        from balancer.files import check_new_file, check_writable_folder

        if self.out is not None:
            check_writable_folder(self.out, "--out")
        for file, flag in ((self.json, "--json"), (self.chart, "--chart")):
            if file is not None:
                check_new_file(file, flag, overwrite=self.overwrite, inputs={"--dataset": self.dataset, "--spec": self.spec})

    def check_treatments(self) -> None:
        """Check that all treatments and the chart can be made, before the table is read.

        Raises:
            InputError: A treatment is unknown, does not fit the student, or needs a package that is not
                installed.
        """
        for name in self.chosen():
            if self.student == "classifier" and name in POPULATION_ONLY:
                raise InputError(f"--treatments {name} needs --student population: leave it out, or compare the population")
            if name not in POPULATION_TREATMENTS and name not in POLICIES:
                self._check_policy(name)
            if name in _EXTRAS:
                require(_EXTRAS[name], f"--treatments {name}", "balancer[compare]")
        if self.chart is not None:
            for package in ("altair", "vl_convert"):
                require(package, "--chart", "balancer[compare]")

    def _check_policy(self, name: str) -> None:
        """Check a treatment that is neither a fixed one nor a policy without options.

        Raises:
            InputError: There is no treatment of that name, or its policy can't be loaded.
        """
        # Imported here because the help does not need NumPy.
        from balancer.sampling.policies import load_policy

        policy = name.removeprefix(PLAIN)
        known = policy.partition(":")[0] in POLICIES or (policy != "" and Path(policy).exists())
        if not known and policy != name:
            trained = "is trained with the cross-entropy without it" if policy in _WITHOUT_POLICY else "is no policy"
            raise InputError(
                f"--treatments {name}: {PLAIN} stands before the name of a policy, and {policy!r} {trained}; "
                f"{nearest(policy, POLICIES)}, or the folder of a policy"
            )
        if not known:
            possible = [each for each in POPULATION_TREATMENTS if self.student == "population" or each not in POPULATION_ONLY]
            possible += [each for each in POLICIES if each not in POPULATION_TREATMENTS]
            raise InputError(
                f"--treatments: unknown treatment {name!r}; {nearest(name, possible)}, {PLAIN}POLICY, or the folder of a policy"
            )
        check_policy(policy, "--treatments")
        load_policy(policy, num_classes=2)


def _joined(pieces: Sequence[str]) -> tuple[str, ...]:
    """Names of treatments, each once; commas inside ``constant:share=.2,hardness=1`` are not separators."""
    names: list[str] = []
    for piece in pieces:
        if names and _OPTION.match(piece):
            names[-1] += "," + piece
        else:
            names.append(piece)
    return tuple(dict.fromkeys(names))
