"""The identity of a model in service: a digest of the files of its run that scoring reads."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from balancer.inference.decision import DECISION_FILE
from balancer.inference.tree_stages import TREES_FOLDER
from balancer.runs.results import REFERENCE_FILE, SCHEMA_FILE
from balancer.runs.trained_run import Precision, chosen_precision

_SHARED = ("run.json", SCHEMA_FILE, DECISION_FILE, REFERENCE_FILE, "model.json")
_WEIGHTS: dict[Precision, tuple[str, ...]] = {
    "full": ("model.safetensors",),
    "quantized": ("model.quantized.safetensors", "precision.json"),
}
# What the digest of versions before the states of models covered, in this order.
_EARLIER = ("model.json", "model.safetensors", "model.quantized.safetensors", "precision.json", SCHEMA_FILE, DECISION_FILE)


@dataclass(frozen=True)
class RunDigests:
    """Digests of the files of one run folder."""

    digest: str
    """SHA-256 of the files that scoring reads at the precision of the service."""
    others: frozenset[str]
    """What the same files have at the other precision, and what earlier versions recorded for them."""

    def includes(self, recorded: str) -> bool:
        """Whether a recorded digest is of these files."""
        return recorded == self.digest or recorded in self.others


def run_digests(folder: Path, precision: str) -> RunDigests:
    """Read the files of a run folder, for one of `PRECISIONS`. A file that is missing counts as absent."""
    chosen = chosen_precision(folder, precision)
    trees = tuple(f"{TREES_FOLDER}/{file.name}" for file in sorted((folder / TREES_FOLDER).glob("*")))
    weights = tuple(name for names in _WEIGHTS.values() for name in names)
    content: dict[str, str | None] = {}
    earlier = {each: hashlib.sha256(each.encode()) for each in _WEIGHTS}
    for name in (*_EARLIER, *trees, *(each for each in (*_SHARED, *weights) if each not in _EARLIER)):
        file = folder / name
        read = file.read_bytes() if file.is_file() else None
        content[name] = None if read is None else hashlib.sha256(read).hexdigest()
        if name in _EARLIER or name in trees:
            for digest in earlier.values():
                digest.update(file.name.encode() + (read or b""))
    mine = {each: _digest(each, {name: content[name] for name in (*_SHARED, *_WEIGHTS[each], *trees)}) for each in _WEIGHTS}
    others = {mine[each] for each in _WEIGHTS if each != chosen} | {digest.hexdigest() for digest in earlier.values()}
    return RunDigests(mine[chosen], frozenset(others))


def _digest(precision: str, content: dict[str, str | None]) -> str:
    return hashlib.sha256(repr((precision, sorted(content.items()))).encode()).hexdigest()
