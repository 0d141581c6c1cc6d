"""Trees for the tests of a detector, written by hand, so that each score is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from balancer.data.dataset import Dataset
from balancer.inference.tree_stages import TreeStages
from balancer.trees import TreeEnsemble
from tests.trees.models import HandTree, written

TRAIN_END = 5.0 * 86400.0


def two_leaves(fields: int, column: int, threshold: float, low: float, high: float) -> str:
    """Trees that give `low` where the column is at most `threshold`, and else `high`."""
    tree = HandTree(feature=[column], threshold=[threshold], left=[-1], right=[-2], leaf_value=[low, high])
    return written([tree], fields)


def stages_of(dataset: Dataset, folder: Path, *, folds: Sequence[float] = (1.0, 2.0, 4.0)) -> TreeStages:
    """Stages whose fold k gives plus or minus `folds[k]`, by the first base field; files are in `folder`.

    The second stage has two members, plus or minus 3 by the sign of the first stage's log-odds, and plus or
    minus 0.5 by the previous ones.
    """
    columns = dataset.store.values.shape[1]
    base = columns - len(dataset.schema.score_fields)
    middle = float(sorted(dataset.store.values[:, columns - base])[len(dataset.store) // 2])
    folder.mkdir(exist_ok=True)
    for number, level in enumerate(folds):
        (folder / f"first-{number}.txt").write_text(two_leaves(base, 0, middle, -level, level))
    (folder / "second-0.txt").write_text(two_leaves(columns, 0, 0.0, -3.0, 3.0))
    (folder / "second-1.txt").write_text(two_leaves(columns, 1, -1.0, -0.5, 0.5))
    first = tuple(TreeEnsemble.read(folder / f"first-{number}.txt") for number in range(len(folds)))
    second = tuple(TreeEnsemble.read(folder / f"second-{number}.txt") for number in range(2))
    return TreeStages(first, second, TRAIN_END)
