"""Keras 3 with any backend: batches drawn by a :class:`~balancer.sampling.core.SamplerCore`, which a callback
updates.

    sampler = SamplerCore(labels, epochs=10)
    batches = AdaptiveSequence(x, y, sampler, batch_size=256)
    model.fit(batches, epochs=10, callbacks=[AdaptiveCallback(batches, (x_valid, y_valid))])

The callback draws the rows of an epoch before Keras starts its workers, so several workers can make the
batches.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.errors import InputError, MissingDependencyError
from balancer.integrations.callback_base import (
    POOL,
    check_pool,
    logits_to_scores,
    pool_rows,
    read_state,
    sampling_metrics,
    save_state,
    two_columns,
)
from balancer.sampling.core import SamplerCore
from balancer.sampling.seeding import integer_seed

try:
    import keras  # type: ignore[import-untyped]  # ships no types
except ImportError as error:
    reason = f"AdaptiveCallback needs Keras and a backend ({error}; KERAS_BACKEND=torch selects torch)"
    raise MissingDependencyError(reason, "balancer[keras]") from error


class AdaptiveSequence(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches of ``x`` and ``y`` for ``model.fit``; an epoch has ``sampler.num_samples`` rows.

    Args:
        x: (N, ...) inputs, or a dict, list or tuple of them: arrays that NumPy can index.
        y: (N, ...) targets in the form that the model's loss needs.
        sampler: Sampler made from the classes of the N rows.
        batch_size: Rows of a batch; the last batch may be smaller.
        options: ``workers``, ``use_multiprocessing``, ``max_queue_size`` of ``keras.utils.PyDataset``.

    Raises:
        InputError: The lengths differ, or ``batch_size`` is below 1.
    """

    def __init__(self, x: Any, y: Any, sampler: SamplerCore, *, batch_size: int = 32, **options: Any) -> None:
        super().__init__(**options)
        lengths = {len(part) for part in (*_parts(x), y)}
        if lengths != {sampler.num_rows}:
            raise InputError(f"x and y must have one row for each of the sampler's {sampler.num_rows} labels, not {sorted(lengths)}")
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {batch_size}")
        self.x, self.y, self.sampler, self.batch_size = x, y, sampler, batch_size
        self.rows = self.draw(sampler.epoch)
        """(num_samples,) rows of the epoch."""

    def __repr__(self) -> str:
        """Sampler and batch size."""
        return f"AdaptiveSequence({self.sampler!r}, batch_size={self.batch_size})"

    def draw(self, epoch: int) -> NDArray[np.int64]:
        """Draw the rows of ``epoch`` (counted from 0) by the present weights."""
        self.rows = self.sampler.draw(epoch)
        return self.rows

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        rows = self.rows[index * self.batch_size : (index + 1) * self.batch_size]
        return take(self.x, rows), self.y[rows]


class AdaptiveCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Draw the rows of each epoch, and update the sampler after it.

    Adds ``sampling_share_<class>`` and ``sampling_hardness`` to the logs.

    Args:
        batches: The batches that ``model.fit`` trains on.
        validation_data: Pair ``(x, y)``. ``y`` is (n,) or (n, 1) with the class names of the sampler's
            labels, or one-hot in the order of ``sampler.classes_``.
        pool: Number of training rows to predict after each epoch. With 0 none are predicted, and hardness has
            no effect.
        from_logits: Whether the model's output is logits, without sigmoid or softmax.
        predict_batch_size: Batch size of the predictions.
        state_file: File in which the sampler's state is saved after each epoch, for use together with
            ``keras.callbacks.BackupAndRestore``: if the file exists when training begins, the state is
            restored from it, and it is deleted when training ends.

    Raises:
        MissingDependencyError: Keras or its backend is not installed.
        InputError: ``pool`` is out of range; in training, the errors of ``sampler.update``.
    """

    def __init__(
        self,
        batches: AdaptiveSequence,
        validation_data: tuple[Any, Any],
        *,
        pool: int = POOL,
        from_logits: bool = False,
        predict_batch_size: int = 1024,
        state_file: str | Path | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(validation_data, (tuple, list)) or len(validation_data) != 2:
            raise InputError("validation_data must be a pair (x, y) of held-out rows")
        self.batches, self.sampler = batches, batches.sampler
        self.x_valid = validation_data[0]
        self.y_valid = _classes(validation_data[1], self.sampler)
        self.pool, self.from_logits, self.predict_batch_size = check_pool(pool), from_logits, predict_batch_size
        self.state_file = None if state_file is None else Path(state_file)

    def __repr__(self) -> str:
        """Sampler, pool and state file."""
        return f"AdaptiveCallback({self.sampler!r}, pool={self.pool}, state_file={self.state_file and str(self.state_file)!r})"

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Restore the state of an interrupted training."""
        if self.state_file is not None and self.state_file.is_file():
            self.sampler.load_state_dict(read_state(self.state_file))

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Draw the rows of the epoch."""
        self.batches.draw(epoch)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Predict validation rows and pool, and update the sampler."""
        rows = pool_rows(self.sampler.num_rows, self.pool, integer_seed(self.sampler.seed, "keras pool"), epoch) if self.pool else None
        row_score = None if rows is None else self._predict(take(self.batches.x, rows))
        self.sampler.update(self.y_valid, self._predict(self.x_valid), rows=rows, row_score=row_score)
        self.sampler.epoch = epoch + 1
        if logs is not None:
            logs.update(sampling_metrics(self.sampler.classes_, self.sampler.weights, "sampling_"))
        if self.state_file is not None:
            save_state(self.state_file, self.sampler.state_dict())

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Delete the state file: nothing is left to resume."""
        if self.state_file is not None:
            self.state_file.unlink(missing_ok=True)

    def _predict(self, x: Any) -> NDArray[np.float64]:
        output = np.asarray(self.model.predict(x, batch_size=self.predict_batch_size, verbose=0))
        return logits_to_scores(output) if self.from_logits else two_columns(output)


def take(x: Any, rows: NDArray[np.int64]) -> Any:
    """Select rows of an array, or of each array of a dict, list or tuple."""
    if isinstance(x, dict):
        return {name: part[rows] for name, part in x.items()}
    return type(x)(part[rows] for part in x) if isinstance(x, (list, tuple)) else x[rows]


def _parts(x: Any) -> list[Any]:
    return list(x.values()) if isinstance(x, dict) else list(x) if isinstance(x, (list, tuple)) else [x]


def _classes(y: Any, sampler: SamplerCore) -> NDArray[Any]:
    given = np.asarray(y)
    if given.ndim == 2 and given.shape[1] == len(sampler.classes_):
        names: NDArray[Any] = np.asarray(sampler.classes_)[given.argmax(axis=1)]
        return names
    if given.ndim == 2 and given.shape[1] == 1:
        given = given[:, 0]
    if given.ndim != 1:
        raise InputError(f"y of validation_data must be (n,), (n, 1) or one-hot (n, {len(sampler.classes_)}), not of shape {given.shape}")
    return given
