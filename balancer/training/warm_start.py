"""Start a run from the model of another one, of which some parts are kept, some trained further and some new.

Where the embedding is kept, the table is encoded with the codes of the first run, so a category means the
same to both models. What is kept, new and dropped is printed before anything is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from balancer.data.schema import Schema
from balancer.errors import InputError
from balancer.inference.decision import NETWORK, Decision
from balancer.inference.tree_stages import load_stages
from balancer.models import Classifier, ModelConfig, Replacement, load_classifier
from balancer.options.fit import StartOptions
from balancer.options.flags import flag_of
from balancer.options.train import TrainConfig
from balancer.runs.run_folder import RunFolder
from balancer.runs.trained_run import read_schema

_SIZES = {"d_model": "d_model", "layers": "num_layers", "history_length": "history_length", "form": "form"}
_SHAPES = _SIZES | {"attention_window": "attention_window", "global_nodes": "global_nodes", "attention": "attention"}
_SHARED_PROJECTIONS = frozenset({"dense", "window", "sparse"})


@dataclass(frozen=True)
class Base:
    """The run that another run starts from."""

    folder: Path
    model: Classifier
    schema: Schema
    pretrained: bool
    """Whether it was only pretrained, so that its head is untrained."""

    @classmethod
    def open(cls, path: Path) -> Base:
        """Read a finished or pretrained run.

        Raises:
            InputError: The run is missing, unfinished or damaged.
        """
        run = RunFolder.open(path)
        if not run.complete and not run.pretrained:
            raise InputError(f"--from {path} is not finished: continue it first with --resume --out {path}")
        if run.complete and NETWORK not in (Decision.load(path).members or {NETWORK}):
            raise InputError(f"--from {path} has boosted trees and no network to start from: give a run of --learner hybrid or network")
        schema = read_schema(path)
        load_stages(path, schema)  # not used, but a damaged run is refused as `balancer score` refuses it
        model = load_classifier(path)
        run.refuse_other_parts()
        return cls(path, model, schema, run.pretrained)

    def sizes(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The options that follow from the model.

        Args:
            given: Fields of the configuration that were typed.

        Returns:
            Values of the fields that were not typed.

        Raises:
            InputError: A size was typed that differs from the model's and can't be changed.
        """
        config = self.model.config
        for name, field in _SIZES.items():
            if name in given and given[name] not in ("auto", getattr(config, field)):
                raise InputError(
                    f"{flag_of(name)} {given[name]} differs from the model in {self.folder}, "
                    f"which has {getattr(config, field)}: leave it out"
                )
        return {name: getattr(config, field) for name, field in _SHAPES.items() if given.get(name, "auto") == "auto"}

    def margin(self, given: Mapping[str, Any]) -> Literal["trees", "none"]:
        """The margin of the model, which can't change while its embedding is kept.

        Args:
            given: Fields of the configuration that were typed.

        Raises:
            InputError: Another one was typed.
        """
        own: Literal["trees", "none"] = "trees" if self.model.config.margin else "none"
        if self.schema.score_fields and given.get("margin", own) != own:
            raise InputError(f"--margin {given['margin']} differs from the model in {self.folder}, which has {own}: leave it out")
        return own

    def keeps_embedding(self, schema: Schema, config: TrainConfig) -> bool:
        """Whether the embedding can be kept: the fields have the same names, and ``config`` asks for no other
        embedding.

        Raises:
            InputError: It can't, and ``train_only`` does not allow a new one.
        """
        base = self.schema
        same = (schema.numeric_fields, schema.categorical_fields) == (base.numeric_fields, base.categorical_fields)
        if same and config.embedding in ("auto", self.model.config.embedding):
            return True
        if config.train_only is not None and "embedding" not in config.train_only:
            missing = [
                name
                for name in base.numeric_fields + base.categorical_fields
                if name not in schema.numeric_fields + schema.categorical_fields
            ]
            why = f"lacks {', '.join(missing[:5])}" if missing else "has other fields, or --embedding names another embedding"
            raise InputError(f"{config.dataset} {why}: the embedding of {self.folder} does not fit; add embedding to --train-only")
        return False

    def needs_head(self, model: ModelConfig) -> bool:
        """Whether the head of ``model`` would be new: none was trained, or one of another kind or classes."""
        base = self.model.config
        return self.pretrained or model.classes != base.classes or model.head != base.head

    def start(self, model: ModelConfig, options: StartOptions, keeps_embedding: bool) -> Callable[[], Replacement]:
        """A function that makes the model to start with; new weights come from torch's global random
        generator.

        Args:
            model: Configuration of the model to make.
            options: The parts to train.
            keeps_embedding: The answer of :meth:`keeps_embedding`.

        Raises:
            InputError: A part would be new that ``train_only`` does not train.
        """
        base = self.model.config
        same_attention = model.attention == base.attention
        new: dict[str, Any] = {}
        if not keeps_embedding:
            new["embedding"] = model.embedding
        if not same_attention:
            new["attention"] = model.attention
        if self.needs_head(model):
            new["head"] = model.head
        for part in new:
            if options.train_only is not None and part not in options.train_only:
                raise InputError(f"the {part} is new and untrained: add {part} to --train-only")
        changes = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
        changes = {name: value for name, value in changes.items() if name not in ("embedding", "attention", "head")}
        shared = {base.attention, model.attention} <= _SHARED_PROJECTIONS

        def make() -> Replacement:
            if "attention" in new and shared:
                # The projections are kept; what the other attention has beside them is new.
                first = self.model.replace(attention=new["attention"], keep_matching=True, **_only(changes, _ATTENTION_FIELDS))
                rest = {kind: part for kind, part in new.items() if kind != "attention"}
                second = first.model.replace(**rest, **changes)
                drawn = {name for name in first.new if name in set(second.kept)}
                kept = tuple(name for name in second.kept if name not in drawn)
                return Replacement(second.model, kept, (*second.new, *sorted(drawn)), tuple({*first.dropped, *second.dropped}))
            return self.model.replace(**new, **changes)

        return make


_ATTENTION_FIELDS = ("attention_window", "global_nodes", "score")


def starter(make: Callable[[], Replacement]) -> Callable[[], Classifier]:
    """The function ``make`` without its description; each call makes a new model."""
    return lambda: make().model


def describe_start(make: Callable[[], Replacement]) -> str:
    """A line that says what is kept, new and dropped; the random generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        return make().describe()


def _only(values: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: values[name] for name in names}
