"""`TreeEnsemble`: boosted trees that LightGBM trained, evaluated without LightGBM."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from balancer.errors import CorruptFileError, InputError
from balancer.trees import native, reference
from balancer.trees.layout import Paths, find_paths, lay_out
from balancer.trees.model_text import TreeModel, parse_model, read_model


class TreeEnsemble:
    """Boosted trees, which can't be changed. Make one with `read` or `from_text`.

    Without the compiled kernel it computes in NumPy: the same bits, in many times the time. `note` then says
    so.

    Args:
        model: a checked model.

    Attributes:
        model: the checked model: names, trees and thresholds, for example for an export.
    """

    def __init__(self, model: TreeModel) -> None:
        self.model = model
        self._nodes = lay_out(model)
        self._native = None if native.absence() else native.NativeTrees(self._nodes, model.outputs, len(model.feature_names))

    @classmethod
    def from_text(cls, text: str | bytes, *, source: str = "the text of the trees") -> TreeEnsemble:
        """Make it from what LightGBM's ``Booster.model_to_string`` returns.

        Args:
            text: the text, or its UTF-8 bytes.
            source: name of the file, for error messages.

        Raises:
            CorruptFileError: It is truncated, damaged, not such a text, or a kind of model that is not read.
        """
        return cls(parse_model(text, source=source))

    @classmethod
    def read(cls, path: Path | str, *, feature_names: Sequence[str] | None = None, digest: str | None = None) -> TreeEnsemble:
        """Read a file in LightGBM's text format.

        Args:
            path: the file.
            feature_names: names that the columns must have. LightGBM writes a space as ``_``.
            digest: the `digest` that the trees had when they were written. Without it a digit that changed in
                a file may go unnoticed.

        Raises:
            MissingFileError: The file does not exist.
            CorruptFileError: It is truncated, damaged, another kind of file or a kind of model that is not
                read, or it is whole and does not have this digest or these names.
        """
        model = read_model(path)
        if digest is not None and model.digest != digest:
            raise CorruptFileError(f"{path} was changed, or is from another run; train the run again, or restore the file")
        if feature_names is not None:
            expected = [name.replace(" ", "_") for name in feature_names]
            found = list(model.feature_names)
            if found != expected:
                column = next((i for i, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), None)
                difference = (
                    f"{len(found)} fields instead of {len(expected)}"
                    if column is None
                    else f"field {column} is {found[column]!r} instead of {expected[column]!r}"
                )
                raise CorruptFileError(f"{path} holds trees for other fields ({difference}); train the run again, or restore the file")
        return cls(model)

    def __reduce__(self) -> tuple[type[TreeEnsemble], tuple[TreeModel]]:
        return type(self), (self.model,)  # the kernel's pointers are those of one process

    @property
    def num_features(self) -> int:
        """Number of columns F."""
        return len(self.model.feature_names)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return self.model.feature_names

    @property
    def num_trees(self) -> int:
        """Number of trees, over all outputs."""
        return len(self.model.trees)

    @property
    def num_outputs(self) -> int:
        """Number of raw scores per row K: 1 for two classes, else the number of classes."""
        return self.model.outputs

    @property
    def digest(self) -> str:
        """SHA-256 of the text, hexadecimal."""
        return self.model.digest

    @property
    def note(self) -> str | None:
        """What a user should know about the speed, or None where the kernel is used."""
        return None if self._native else f"trees are evaluated slowly, because the compiled evaluator can't be used: {native.absence()}"

    def raw(self, values: NDArray[np.float32], *, threads: int = 1) -> NDArray[np.float64]:
        """Compute raw scores: log-odds or the logits of the classes, with the bits of LightGBM's.

        Args:
            values: (n, F) float32. A slice of the columns of a larger array is read where it is.
            threads: most threads; the result does not depend on it. Fewer are used for few rows.

        Returns:
            (n,) float64, or (n, K) with more than two classes.

        Raises:
            InputError: `values` is not such an array, or `threads` is below 1.
        """
        values = self._checked(values, threads)
        out = self._native.raw(values, threads) if self._native else reference.raw(self._nodes, self.num_outputs, values)
        return out[:, 0] if self.num_outputs == 1 else out

    def contributions(self, values: NDArray[np.float32], *, threads: int = 1) -> NDArray[np.float64]:
        """Compute what every column adds to the raw score, as LightGBM's ``pred_contrib`` does.

        They are Shapley values of the trees, given the shares of the training rows at every split
        (path-dependent TreeSHAP, Lundberg et al. 2020).

        Args:
            values: (n, F) float32.
            threads: most threads; the result does not depend on it.

        Returns:
            (n, F + 1) float64, or (n, K, F + 1) with more than two classes. The last column is the mean raw
            score over the training rows; with it the row adds up to `raw`, apart from rounding.

        Raises:
            InputError: `values` is not such an array, or `threads` is below 1.
            UnsupportedError: A path of a tree has more than `balancer.trees.layout.MOST_ON_PATH` fields.
        """
        values = self._checked(values, threads)
        paths = self._paths
        if self._native:
            out = self._native.contributions(values, paths, threads)
        else:
            out = reference.contributions(self._nodes, paths, self.num_outputs, values)
        return out[:, 0] if self.num_outputs == 1 else out

    @cached_property
    def _paths(self) -> Paths:
        return find_paths(self.model)

    def _checked(self, values: NDArray[np.float32], threads: int) -> NDArray[np.float32]:
        """The values with their columns side by side: the array itself, or a copy if it is laid out else."""
        if not isinstance(values, np.ndarray) or values.dtype != np.float32 or values.ndim != 2 or values.shape[1] != self.num_features:
            given = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else type(values).__name__
            raise InputError(f"values must be a float32 array (rows, {self.num_features}) for these trees, given {given}; convert it")
        if threads < 1:
            raise InputError(f"threads must be at least 1, given {threads}; give the number of CPU cores")
        row, column = values.strides
        aligned = values.flags.aligned and row % 4 == 0 and values.dtype.isnative
        return values if aligned and (column == 4 or values.shape[1] == 1) else np.array(values, np.float32, order="C")
