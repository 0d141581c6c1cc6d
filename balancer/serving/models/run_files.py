"""The identity of a model in service: a digest of the files of its run that scoring reads."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from balancer.files import json_text
from balancer.inference.decision import DECISION_FILE
from balancer.inference.tree_stages import TREES_FOLDER
from balancer.runs.results import REFERENCE_FILE, SCHEMA_FILE
from balancer.runs.run_folder import PLANNED
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
    if (plain := _without_plan(folder)) is not None:
        read_in_full = content | {"run.json": hashlib.sha256(plain.encode()).hexdigest()}
        mine["full"] = _digest("full", {name: read_in_full[name] for name in (*_SHARED, *_WEIGHTS["full"], *trees)})
    others = {mine[each] for each in _WEIGHTS if each != chosen} | {digest.hexdigest() for digest in earlier.values()}
    return RunDigests(mine[chosen], frozenset(others))


def _without_plan(folder: Path) -> str | None:
    """`run.json` without the digest of the precision plan, which the full network does not read.

    None if it has no such digest, or is not as this package wrote it.
    """
    try:
        text = (folder / "run.json").read_text(encoding="utf-8")
        content = json.loads(text)
        if PLANNED not in content["parts"] or json_text(content) != text:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    del content["parts"][PLANNED]
    if not content["parts"]:
        del content["parts"]
    return json_text(content)


def _digest(precision: str, content: dict[str, str | None]) -> str:
    return hashlib.sha256(repr((precision, sorted(content.items()))).encode()).hexdigest()
