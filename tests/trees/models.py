"""Models for the tests: trained by LightGBM on random data, or written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import lightgbm
import numpy as np
from numpy.typing import NDArray


def random_values(generator: np.random.Generator, rows: int, columns: int, codes: Sequence[int] = ()) -> NDArray[np.float32]:
    """(rows, columns) with all that float32 offers: NaN, infinities, zeros of both signs, denormal numbers.
    Columns in `codes` are categorical codes."""
    values = generator.normal(size=(rows, columns)).astype(np.float32)
    odd = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 1e-40, -1e-40, 1e-35, -1e-35, 2e-35, 3e38, -3e38, 1], np.float32)
    values = np.where(generator.random(values.shape) < 0.3, generator.choice(odd, values.shape), values)
    for column in codes:
        values[:, column] = np.where(generator.random(rows) < 0.1, np.nan, generator.integers(0, 90, rows))
    return values


def train(
    values: NDArray[np.float32], *, classes: int = 2, rounds: int = 5, codes: Sequence[int] = (), seed: int = 0, **settings: Any
) -> lightgbm.Booster:
    """A model for random labels that depend on the first two columns."""
    generator = np.random.default_rng(seed)
    clean = np.nan_to_num(values, nan=0.5, posinf=2, neginf=-2).clip(-100, 100)
    score = clean[:, 0] + (clean[:, -1] % 3 == 0) * 1.5 + generator.normal(size=len(values))
    labels = np.digitize(score, np.quantile(score, np.arange(1, classes) / classes))
    parameters = {"objective": "binary"} if classes == 2 else {"objective": "multiclass", "num_class": classes}
    parameters |= {
        "verbose": -1,
        "num_threads": 1,
        "min_data_in_leaf": 3,
        "min_data_per_group": 3,
        "cat_smooth": 1,
        "cat_l2": 0.1,
        "seed": seed,
    } | settings
    data = lightgbm.Dataset(values, labels, categorical_feature=list(codes), params=parameters)
    return lightgbm.train(parameters, data, rounds)


@dataclass
class HandTree:
    """A tree in the words of LightGBM's text. The rows per leaf are 1 unless they are given."""

    feature: list[int]
    threshold: list[float]
    left: list[int]
    right: list[int]
    leaf_value: list[float]
    decision: list[int] = field(default_factory=list)
    leaf_count: list[int] = field(default_factory=list)

    def text(self, index: int) -> str:
        splits = len(self.feature)
        leaves = self.leaf_count or [1] * (splits + 1)
        counts = [0] * splits + leaves[::-1]
        for split in reversed(range(splits)):
            counts[split] = counts[self.left[split]] + counts[self.right[split]]
        lines = {
            "num_leaves": [splits + 1],
            "num_cat": [0],
            "split_feature": self.feature,
            "split_gain": [1] * splits,
            "threshold": self.threshold,
            "decision_type": self.decision or [2] * splits,
            "left_child": self.left,
            "right_child": self.right,
            "leaf_value": self.leaf_value,
            "leaf_weight": [1] * (splits + 1),
            "leaf_count": leaves,
            "internal_value": [0] * splits,
            "internal_weight": [1] * splits,
            "internal_count": counts[:splits],
            "is_linear": [0],
            "shrinkage": [1],
        }
        return f"Tree={index}\n" + "".join(f"{key}={' '.join(map(str, numbers))}\n" for key, numbers in lines.items()) + "\n\n"


def chain(splits: int, fields: int) -> HandTree:
    """A tree that is one long path, over `fields` fields in turn."""
    return HandTree(
        feature=[split % fields for split in range(splits)],
        threshold=[0.1 * ((split * 7) % 5 - 1) for split in range(splits)],
        left=[*range(1, splits), -(splits + 1)],
        right=[-(split + 1) for split in range(splits)],
        leaf_value=[((leaf * 13) % 11 - 5) / 7 for leaf in range(splits + 1)],
    )


def written(trees: Sequence[HandTree], fields: int) -> str:
    """The text of a model."""
    blocks = [tree.text(index) for index, tree in enumerate(trees)]
    header = (
        "tree\nversion=v4\nnum_class=1\nnum_tree_per_iteration=1\nlabel_index=0\n"
        f"max_feature_idx={fields - 1}\nobjective=binary sigmoid:1\n"
        f"feature_names={' '.join(f'f{i}' for i in range(fields))}\nfeature_infos={' '.join(['[-9:9]'] * fields)}\n"
        f"tree_sizes={' '.join(str(len(block)) for block in blocks)}\n\n"
    )
    tail = "end of trees\n\nfeature_importances:\n\nparameters:\n[boosting: gbdt]\n\nend of parameters\n\npandas_categorical:null\n"
    return header + "".join(blocks) + tail


def resized(text: str) -> str:
    """The text with the lengths of its trees written anew, so that what is wrong besides is found."""
    head, _, rest = text.partition("\n\n")
    body, _, tail = rest.partition("end of trees\n")
    blocks = ["Tree=" + part for part in body.split("Tree=")[1:]]
    lines = [line for line in head.split("\n") if not line.startswith("tree_sizes=")]
    sizes = " ".join(str(len(block.encode())) for block in blocks)
    return "\n".join([*lines, f"tree_sizes={sizes}"]) + "\n\n" + body + "end of trees\n" + tail
