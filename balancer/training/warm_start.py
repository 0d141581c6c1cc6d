"""What a run starts from: another run's model, of which some parts stay, some are trained on and some are new.

Special: the table is brought to the base's codes where its embedding stays, so a category means the same to both; and what was kept, is new and was dropped
is told before anything is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from balancer.data.schema import Schema
from balancer.errors import InputError
from balancer.files import read_json
from balancer.models import Classifier, ModelConfig, Replacement, load_classifier
from balancer.options.train import TrainConfig
from balancer.runs.run_folder import RunFolder

SCHEMA_FILE = "schema.json"
_SIZES = {"d_model": "d_model", "layers": "num_layers", "history_length": "history_length", "form": "form"}
_SHAPES = _SIZES | {"attention_window": "attention_window", "global_nodes": "global_nodes", "attention": "attention"}
_SHARED_PROJECTIONS = frozenset({"dense", "window", "sparse"})


@dataclass(frozen=True)
class Base:
    """The run that another one starts from."""

    folder: Path
    model: Classifier
    schema: Schema
    pretrained: bool
    """Whether its head has learned nothing yet."""

    @classmethod
    def open(cls, path: Path) -> Base:
        """Read a finished run, or one that was pretrained only.

        Raises:
            InputError: It is missing, unfinished or damaged.
        """
        run = RunFolder.open(path)
        if not run.complete and not run.pretrained:
            raise InputError(f"--from {path} is not finished: continue it first, with --resume --out {path}")
        schema = Schema.from_dict(read_json(path / SCHEMA_FILE, what="it holds the fields the model was trained on"))
        return cls(path, load_classifier(path), schema, run.pretrained)

    def shapes(self, config: TrainConfig, given: dict[str, Any]) -> TrainConfig:
        """``config`` with the sizes of the base's model in place of what was not typed.

        Raises:
            InputError: A size was typed that can't change.
        """
        own = self.model.config
        for flag, field in _SIZES.items():
            if flag in given and given[flag] not in ("auto", getattr(own, field)):
                shown = "--" + flag.replace("_", "-")
                raise InputError(
                    f"{shown} {given[flag]} differs from the model in {self.folder}, which has {getattr(own, field)}: leave it out"
                )
        taken = {flag: getattr(own, field) for flag, field in _SHAPES.items() if given.get(flag, "auto") == "auto"}
        return dataclasses.replace(config, **taken)

    def keeps_embedding(self, schema: Schema, config: TrainConfig) -> bool:
        """Whether the base's embedding stays: where the fields have the same names and no other embedding is asked for.

        Raises:
            InputError: It does not, and `train_only` leaves no room for a new one.
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
            why = f"lacks {', '.join(missing[:5])}" if missing else "has other fields, or another --embedding is asked for"
            raise InputError(f"{config.dataset} {why}: the embedding of {self.folder} does not fit; add embedding to --train-only")
        return False

    def start(self, model: ModelConfig, config: TrainConfig, keeps_embedding: bool) -> Callable[[], Replacement]:
        """What makes the model to start with; new weights are drawn from torch's global generator.

        Raises:
            InputError: A part that is not to be trained would be new.
        """
        own = self.model.config
        same_attention = model.attention == own.attention
        new: dict[str, Any] = {}
        if not keeps_embedding:
            new["embedding"] = model.embedding
        if not same_attention:
            new["attention"] = model.attention
        if self.pretrained or model.classes != own.classes or model.head != own.head:
            new["head"] = model.head
        for part in new:
            if config.train_only is not None and part not in config.train_only:
                raise InputError(f"the {part} is new and has learned nothing: add {part} to --train-only")
        changes = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
        changes = {name: value for name, value in changes.items() if name not in ("embedding", "attention", "head")}
        shared = {own.attention, model.attention} <= _SHARED_PROJECTIONS

        def make() -> Replacement:
            if "attention" in new and shared:
                # The projections go over; what the other attention adds to them is new.
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
    """The model alone, every time a new one."""
    return lambda: make().model


def describe_start(make: Callable[[], Replacement]) -> str:
    """What is kept, new and dropped, in one line."""
    with torch.random.fork_rng(devices=[]):
        return make().describe()


def _only(values: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: values[name] for name in names}
