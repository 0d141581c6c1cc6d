"""A run that is loaded for scoring, and whether it can read the rows of another one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.data.schema import FieldCoder, Schema
from balancer.errors import InputError
from balancer.evaluation.drift import Reference
from balancer.files import read_json
from balancer.inference.decision import Decision
from balancer.inference.detector import Detector
from balancer.inference.streaming import RowState, RowStream
from balancer.inference.tree_stages import digest_of
from balancer.runs.results import REFERENCE_FILE
from balancer.runs.trained_run import TrainedRun, chosen_precision
from balancer.serving.models.run_files import run_digests


@dataclass(frozen=True)
class LoadedModel:
    """A run that is loaded for scoring."""

    name: str
    digest: str
    """SHA-256 of its files (`run_digests`): the identity of the model, to which stored states belong."""
    schema: Schema
    base: Schema
    """The schema without score fields; stored rows have these fields."""
    decision: Decision
    detector: Detector
    first_stage: str | None
    """Digest of all that the score fields depend on, to which stored scores belong; None without trees."""
    stream: RowStream | None
    """Reads the rows of an entity one after another; None without a network."""
    folder: Path
    coder: FieldCoder = field(repr=False)
    reference: Reference | None = field(repr=False)
    """The distribution of the training rows, for drift; None for runs of older versions."""
    others: frozenset[str] = field(default=frozenset(), repr=False)
    """Digests that also stand for these files (`RunDigests.others`)."""

    @classmethod
    def load(cls, folder: Path, name: str, precision: str = "auto") -> LoadedModel:
        """Read a run folder.

        Raises:
            InputError: As `TrainedRun.load`; or if the run was trained without a time, or its files changed
                meanwhile.
        """
        chosen = chosen_precision(folder, precision)
        files = run_digests(folder, chosen)
        run = TrainedRun.load(folder, precision=chosen)
        if run.schema.spec.time is None:
            raise InputError(f"{folder} was trained without a time (--time none), and the service needs one: serve a run with --time")
        reference = None
        if (folder / REFERENCE_FILE).is_file():
            reference = Reference.from_dict(read_json(folder / REFERENCE_FILE, what="it holds the distribution of the training rows"))
        if run_digests(folder, chosen) != files:
            raise InputError(f"the files of {folder} changed while they were read: wait until they are written, and try again")
        detector = run.detector
        return cls(
            name=name,
            digest=files.digest,
            schema=run.schema,
            base=run.schema.without_score_fields(),
            decision=run.decision,
            detector=detector,
            first_stage=_first_stage(detector, run.schema),
            stream=RowStream(detector.model, run.device) if detector.model is not None and detector.uses_network else None,
            folder=folder,
            coder=FieldCoder(run.schema),
            reference=reference,
            others=files.others,
        )

    def base_input(self, numeric: NDArray[np.float32], texts: Sequence[Mapping[str, str | None]]) -> NDArray[np.float32]:
        """Compute the input (n, C) of the model for n rows, without score fields.

        Args:
            numeric: (n, F) numeric fields; NaN is kept where the training rows had it too, and is replaced by
                their median in other fields.
            texts: (n) values of the categorical and context columns.
        """
        schema = self.base
        size = len(schema.numeric_fields)
        values = np.empty((len(texts), size + len(schema.categorical_fields)), np.float32)
        values[:, :size] = numeric
        for place, name in enumerate(schema.numeric_fields):
            if name in schema.fill and name not in schema.missing:
                column = values[:, place]
                column[np.isnan(column)] = np.float32(schema.fill[name])
        for place, (name, source) in enumerate(schema.categorical_columns.items(), size):
            values[:, place] = [self.coder.code(name, row[source]) for row in texts]
        return values

    def step(self, values: NDArray[np.float32], state: RowState | None) -> tuple[NDArray[np.floating], RowState | None]:
        """Score the next row of an entity.

        Args:
            values: (C,) all fields of the row.
            state: State of the network before the row, which must not be used again; None without a network.

        Returns:
            Class probabilities (1, K), and the state after the row.
        """
        if self.stream is None or state is None:
            return self.detector.combine(None, values[None]), None
        network, after = self.stream.advance(values, state)
        return self.detector.combine(network[None], values[None]), after


_ROLES = {
    "entity": "entity is",
    "time": "time is",
    "amount": "amount is",
    "id": "id is",
    "label_delay": "label delay in seconds is",
    **{role: f"{role} columns are" for role in ("numeric", "categorical", "context")},
}


def _said(role: Any) -> str:
    """Columns with a role, or a delay, in words."""
    if role is None or role == ():
        return "none"
    return ", ".join(role) if isinstance(role, tuple) else f"{role:g}" if isinstance(role, float) else str(role)


def same_rows(one: Schema, two: Schema) -> str | None:
    """Return why a model with schema `two` can't read rows that were stored for `one`; None if it can."""
    for role in ("entity", "time", "amount", "id", "numeric", "categorical", "context", "label_delay"):
        if getattr(one.spec, role) != getattr(two.spec, role):
            return f"its {_ROLES.get(role, role)} {_said(getattr(two.spec, role))}, not {_said(getattr(one.spec, role))}"
    if (one.values, one.joined) != (two.values, two.joined):
        return "it was trained by another version of balancer, which compares categories and keys in another way"
    here, there = (each.without_score_fields().numeric_fields for each in (one, two))
    if here == there:
        return None
    # With the same roles of the columns, only the version decides which fields there are.
    other = next((name for name in (*here, *there) if (name in here) != (name in there)), None)
    example = "" if other is None else f", for example {'without' if other in here else 'with'} {other!r}"
    return f"it was trained by another version of balancer and has other fields{example}"


def _first_stage(detector: Detector, schema: Schema) -> str | None:
    """Digest of the first stage, its fields and how they are encoded; None without trees."""
    if detector.stages is None:
        return None
    trees = [trees.digest for trees in detector.stages.folds]
    encoding = (digest_of(schema), sorted(schema.fill.items()), *([schema.missing] if schema.missing else []))
    return hashlib.sha256(repr((trees, detector.stages.train_end, *encoding)).encode()).hexdigest()
