"""What ``balancer compare`` can be told, and which policies there are to compare.

The flags that name the columns are those of ``balancer train``, taken from its dataclass, so the two commands can't drift apart.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from balancer.data.spec import SPEC_KEYS
from balancer.dependencies import require
from balancer.errors import InputError
from balancer.options.flags import add_fields, field_docs, flag_of
from balancer.options.train import TrainConfig
from balancer.sampling.policies import BUNDLES, load_bundle, load_policy

SEARCHES = ("constant_share", "constant", "tpe")
"""Constants chosen on the reward half, out of ``search_trials`` trainings each: of the share, of share and hardness on a grid, by Optuna's TPE."""
POPULATION_ONLY = ("smote", "focal", "logit_adjustment", "ppo")
POPULATION_POLICIES = (
    *("none", "one_to_one", "under", "smote", "class_weight", "focal", "logit_adjustment", "rule", *SEARCHES),
    *("random", "bandit", "ppo", "auto", "lightgbm"),
)
CLASSIFIER_POLICIES = ("none", "one_to_one", "under", "class_weight", "rule", "random", "bandit", "auto", "lightgbm")
"""Of the classifier the default leaves the searches out: each costs ``search_trials`` trainings. They can be named."""
NOT_OF_A_CELL = frozenset({"policies", "seeds", "reference", "json", "chart", "out", "resume", "threads"})
"""Fields that may differ when a comparison is resumed: they change which cells there are, or what is made of them, not a cell's figures."""

_OPTION = re.compile(r"(share|hardness|floor|seed)=")
_EXTRAS = {"smote": "imblearn", "tpe": "optuna"}


@dataclass(frozen=True)
class CompareConfig:
    """Compare sampling policies and baselines on a table, at equal budget, over rolling time windows and seeds."""

    dataset: Path
    """Table of transactions: a Parquet or CSV file, or a folder of Parquet files."""
    spec: Path | None = None
    """TOML file with the roles of the columns and the split; flags below override it."""
    bad_rows: Literal["error", "drop"] = "error"
    """What to do with rows that can't be used: stop, or drop and count them."""
    policies: tuple[str, ...] | None = None
    """Who is compared: none, one_to_one, under, smote, class_weight, focal, logit_adjustment, rule, schedule, start, constant_share, constant, tpe,
    random, bandit, ppo, auto, lightgbm, constant:share=.2,hardness=1, or bundle folders (default: all that need no further word)."""
    reference: str | None = None
    """Policy that the others' differences are taken to (default: one_to_one, or the first one)."""
    windows: int = 5
    """Time windows: each half of the rows, from the first half to the last one; 1 is the whole table."""
    seeds: int = 5
    """Trainings of every policy in every window."""
    student: Literal["population", "classifier"] = "population"
    """What is trained: small nets stacked side by side on the rows' own fields, or the transaction-sequence classifier."""
    epochs: int = 10
    """Times that the sampling weights are recomputed in a training."""
    steps_per_epoch: int = 40
    """Mini-batches between two recomputations."""
    batch_size: int = 256
    """Rows of a mini-batch."""
    search_trials: int = 20
    """Trainings that constant_share, constant and tpe choose from, each, in every window and seed."""
    ppo_rollouts: int = 15
    """Rollouts of PPO that fine-tune auto in every window."""
    history_length: int = field(default=8, metadata={"aliases": ("--history",)})
    """Transactions of an entity that the classifier sees, the one to judge included."""
    d_model: int = 32
    """Width of the classifier."""
    layers: int = 2
    """Blocks of the classifier."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes CUDA where it is."""
    threads: int = 1
    """CPU threads."""
    seed: int = 0
    """First seed; the trainings take this one and those after it."""
    json: Path | None = None
    """File for results, paired differences and sentence, as JSON."""
    chart: Path | None = None
    """File for the chart, .svg or .html."""
    out: Path | None = None
    """Folder of finished cells (default: runs/compare-NAME-DATE-TIME)."""
    resume: bool = False
    """Continue the comparison in --out; policies and seeds may be added, the other flags that matter may be repeated, not changed."""

    def __post_init__(self) -> None:
        if self.policies is not None:
            object.__setattr__(self, "policies", _joined(self.policies))
        positive = (
            *("windows", "seeds", "epochs", "steps_per_epoch", "batch_size", "search_trials", "ppo_rollouts"),
            *("history_length", "d_model", "layers", "threads"),
        )
        for name in positive:
            if getattr(self, name) < 1:
                raise InputError(f"{flag_of(name)} is {getattr(self, name)}: give a whole number from 1 up")
        if not 0 <= self.seed < 2**31 - self.seeds:
            raise InputError(f"--seed is {self.seed}: give a whole number from 0 to {2**31 - self.seeds - 1}")
        if self.resume and self.out is None:
            raise InputError("--resume needs --out: name the folder of the comparison to continue")
        if self.reference is not None and self.reference not in self.chosen():
            raise InputError(f"--reference {self.reference} is not compared: add it to --policies")
        if self.chart is not None and self.chart.suffix not in (".svg", ".html"):
            raise InputError(f"--chart {self.chart} must end in .svg or .html")
        for name in ("json", "chart"):
            file = getattr(self, name)
            if file is not None and not file.parent.is_dir():
                raise InputError(f"--{name} {file}: the folder {file.parent} does not exist; make it first")

    def chosen(self) -> tuple[str, ...]:
        """The policies compared."""
        return self.policies or (POPULATION_POLICIES if self.student == "population" else CLASSIFIER_POLICIES)

    def reference_policy(self) -> str:
        """The policy that differences are taken to."""
        chosen = self.chosen()
        return self.reference or ("one_to_one" if "one_to_one" in chosen else chosen[0])

    def check_policies(self) -> None:
        """Raise InputError where a policy is not known, not for this student, or needs a package that is not there; nothing was read yet."""
        for name in self.chosen():
            if self.student == "classifier" and name in POPULATION_ONLY:
                raise InputError(f"--policies {name} is for --student population only: leave it out, or compare the population")
            if name not in POPULATION_POLICIES and name not in ("start", "schedule"):
                load_policy(name, num_classes=2)
            if name == "ppo":
                load_bundle(BUNDLES / "auto")  # what it goes on from
            if name in _EXTRAS:
                require(_EXTRAS[name], f"--policies {name}", "balancer[compare]")
        if self.chart is not None:
            for package in ("altair", "vl_convert"):
                require(package, "--chart", "balancer[compare]")


def role_names() -> tuple[str, ...]:
    """The flags of ``balancer train`` that name columns and what else a spec holds."""
    return tuple(field.name for field in dataclasses.fields(TrainConfig) if field.name in (*SPEC_KEYS, "gap"))


def parse_flags(program: str, arguments: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values typed: fields of :class:`CompareConfig`, and roles of columns. Exits with 2 on a wrong flag."""
    parser = argparse.ArgumentParser(prog=program, description=CompareConfig.__doc__, allow_abbrev=False)
    add_fields(parser, CompareConfig)
    roles = parser.add_argument_group("roles of columns, as of balancer train")
    docs, names = field_docs(TrainConfig), role_names()
    lists = {field.name for field in dataclasses.fields(TrainConfig) if "tuple" in str(field.type)}
    for name in names:
        # Lists stay text here: Spec splits them at their commas.
        metavar = "A,B,…" if name in lists else name.upper().replace("_", "-")
        roles.add_argument(flag_of(name), dest=name, help=docs[name].replace("%", "%%"), metavar=metavar, default=argparse.SUPPRESS)
    given = vars(parser.parse_args(arguments))
    return {key: value for key, value in given.items() if key not in names}, {key: given[key] for key in names if key in given}


def _joined(pieces: Sequence[str]) -> tuple[str, ...]:
    """Names of policies; the commas inside ``constant:share=.2,hardness=1`` don't separate. Each once, in order."""
    names: list[str] = []
    for piece in pieces:
        if names and _OPTION.match(piece):
            names[-1] += "," + piece
        else:
            names.append(piece)
    return tuple(dict.fromkeys(names))
