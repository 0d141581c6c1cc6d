"""Keras 3 with any backend: batches drawn by a :class:`~balancer.sampling.core.SamplerCore`, which a callback
updates, and the loss that goes with them.

    sampler = SamplerCore(labels, epochs=10, compensated=True)
    batches = AdaptiveSequence(x, y, sampler, batch_size=256)
    model.compile("adam", AdaptiveLoss(sampler))  # the model's output is logits
    callback = AdaptiveCallback(batches, (x_valid, y_valid), from_logits=True)
    model.fit(batches, epochs=10, callbacks=[callback])
    p = sampler.probabilities(model.predict(x_later))

**Loss.** With :class:`AdaptiveLoss` the rows that are drawn more often count less, and the model's logits
don't depend on what was drawn. With any other loss, leave ``compensated`` out: the sampler then draws as
usual over-sampling does, and the batches have no weights.

**Epochs.** The callback draws the rows of an epoch when it begins, so every epoch is trained on its own rows,
by its own weights. Keras itself makes batches ahead across the end of an epoch and trains on what is left
over. So Keras gets one worker, and :class:`AdaptiveSequence` lets its own workers make the batches, in a
queue for each epoch.
"""

from __future__ import annotations

import functools
import math
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.errors import InputError, MissingDependencyError
from balancer.integrations.callback_base import (
    POOL,
    check_pool,
    pool_rows,
    read_state,
    sampler_scores,
    sampling_metrics,
    save_state,
    two_columns,
)
from balancer.integrations.prefetch import BatchQueue
from balancer.sampling.core import SamplerCore
from balancer.sampling.inputs import whole_number
from balancer.sampling.seeding import integer_seed
from balancer.sampling.weights import Floats

try:
    import keras  # type: ignore[import-untyped]  # ships no types
except ImportError as error:
    reason = f"AdaptiveCallback needs Keras and a backend ({error}; KERAS_BACKEND=torch selects torch)"
    missing_keras = MissingDependencyError(reason, "balancer[keras]")
    missing_keras.name = "keras"
    raise missing_keras from error

BEST = "best_weights"
"""Key of the best epoch's weights in a state file."""


class AdaptiveSequence(keras.utils.PyDataset):  # type: ignore[misc]
    """Batches of ``x`` and ``y`` for ``model.fit``; an epoch has ``sampler.num_samples`` rows.

    With ``workers`` the batches come in their order, whichever index is asked for: the rows of an epoch are a
    random draw, so shuffling its batches has no effect. A derived class may override ``__getitem__``, for
    example to augment the batch of ``super().__getitem__(index)``; the workers run it.

    Args:
        x: (N, ...) inputs, or a dict, list or tuple of them: arrays that NumPy can index.
        y: (N, ...) targets in the form that the model's loss needs.
        sampler: Sampler made from the classes of the N rows.
        batch_size: Rows of a batch; the last batch may be smaller.
        compensated: Whether a batch is ``(x, y, sample_weight)``, with the loss weight of each row
            (:meth:`.SamplerCore.sample_weight`). None: where ``sampler.compensated``, that is, where the
            sampler was made so, or :class:`AdaptiveLoss` is used. Weights without :class:`AdaptiveLoss` suit
            a loss of your own that adds ``sampler.logit_offset`` to the logits.
        workers: Threads or processes that make batches ahead of their use; 1 makes each when it is needed.
        use_multiprocessing: Whether they are processes, which are started anew for each epoch.
        max_queue_size: Batches that are made ahead, at most.

    Raises:
        InputError: The lengths differ, or ``batch_size`` or ``workers`` is out of range.
    """

    def __init__(
        self,
        x: Any,
        y: Any,
        sampler: SamplerCore,
        *,
        batch_size: int = 32,
        compensated: bool | None = None,
        workers: int = 1,
        use_multiprocessing: bool = False,
        max_queue_size: int = 10,
    ) -> None:
        super().__init__(workers=1)
        self.num_workers = whole_number(workers, "workers", 0)
        """Threads or processes that make batches."""
        self._processes, self._ahead = bool(use_multiprocessing), whole_number(max_queue_size, "max_queue_size", 0)
        lengths = {len(part) for part in (*_parts(x), y)}
        if lengths != {sampler.num_rows}:
            raise InputError(f"x and y must have one row for each of the sampler's {sampler.num_rows} labels, not {sorted(lengths)}")
        self.x, self.y, self.sampler, self.batch_size = x, y, sampler, whole_number(batch_size, "batch_size", 1)
        self._compensated = compensated
        if compensated:
            sampler.use_compensation()
        self._queue: BatchQueue | None = None
        self._in_epoch = False  # between the first and the last batch that Keras asks for
        self._making = threading.local()  # has an attribute while a batch is made in this thread
        self.requests = 0
        """Batches that were asked for so far."""
        self._rows: NDArray[np.int64] | None = None  # drawn when they are first needed
        self._row_weight: Floats | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if isinstance(vars(cls).get("__getitem__"), types.FunctionType):
            cls.__getitem__ = _by_workers(cls.__getitem__)  # type: ignore[method-assign]

    def __repr__(self) -> str:
        """Sampler and batch size."""
        return f"AdaptiveSequence({self.sampler!r}, batch_size={self.batch_size})"

    def __getstate__(self) -> dict[str, Any]:
        """What a worker process needs."""
        return {name: value for name, value in vars(self).items() if name not in ("_queue", "_making")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._queue, self._making = None, threading.local()

    @property
    def workers(self) -> int:
        """Workers of Keras: always 1, see the module's docstring; ours are :attr:`num_workers`."""
        return 1

    @workers.setter
    def workers(self, value: int) -> None:
        self.num_workers = whole_number(value, "workers", 0)

    @property
    def use_multiprocessing(self) -> bool:
        """Whether Keras uses processes: never; ours may be."""
        return False

    @use_multiprocessing.setter
    def use_multiprocessing(self, value: bool) -> None:
        self._processes = bool(value)

    @property
    def compensated(self) -> bool:
        """Whether a batch has weights."""
        return self.sampler.compensated if self._compensated is None else self._compensated

    @property
    def rows(self) -> NDArray[np.int64]:
        """(num_samples,) rows of the epoch."""
        return self.draw(self.sampler.epoch) if self._rows is None else self._rows

    def draw(self, epoch: int) -> NDArray[np.int64]:
        """Draw the rows of ``epoch`` (counted from 0) by the present weights."""
        self._drop_queue()
        self._rows, self._row_weight = self.sampler.draw(epoch), None
        return self._rows

    def __len__(self) -> int:
        return math.ceil(self.sampler.num_samples / self.batch_size)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        chosen = slice(index * self.batch_size, (index + 1) * self.batch_size)
        rows = self.rows[chosen]
        batch = take(self.x, rows), self.y[rows]
        return (*batch, self.row_weight()[chosen].astype(np.float32)) if self.compensated else batch

    def row_weight(self) -> Floats:
        """(num_samples,) loss weights of :attr:`rows`."""
        if self._row_weight is None:
            self._row_weight = self.sampler.sample_weight(self.rows)
        return self._row_weight

    def on_epoch_begin(self) -> None:
        """Called by Keras before it asks for the first batch of an epoch."""
        self._drop_queue()
        self._in_epoch = True

    def on_epoch_end(self) -> None:
        """Called by Keras after the last batch of an epoch."""
        self._drop_queue()
        self._in_epoch = False

    def _drop_queue(self) -> None:
        queue, self._queue = getattr(self, "_queue", None), None
        if queue is not None:
            queue.close()

    def _batch(self, make: Callable[[Any, int], Any], index: int) -> Any:
        """A batch for whoever asks: made at once, or taken from the queue of the epoch."""
        if getattr(self._making, "active", False):  # a derived class has asked for the batch of this class
            return make(self, index)
        self.requests += 1
        if self._in_epoch and (self.num_workers > 1 or (self.num_workers and self._processes)):
            if self._queue is None:
                if self.compensated:
                    self.row_weight()  # before the workers need them
                made = functools.partial(_made_batch, self)
                self._queue = BatchQueue(
                    made,
                    math.ceil(len(self.rows) / self.batch_size),
                    workers=self.num_workers,
                    processes=self._processes,
                    ahead=self._ahead,
                )
            if not self._queue.empty:
                return self._queue.next()
        return _made_batch(self, index)


def _by_workers(make: Callable[[Any, int], Any]) -> Callable[[Any, int], Any]:
    """``__getitem__`` that takes its batches from the queue of the epoch, where there are workers."""

    @functools.wraps(make)
    def batch(self: AdaptiveSequence, index: int) -> Any:
        return self._batch(make, index)

    return batch


def _made_batch(batches: AdaptiveSequence, index: int) -> Any:
    """Batch ``index``, made in this thread by the ``__getitem__`` of the object's own class."""
    batches._making.active = True
    try:
        return batches[index]
    finally:
        batches._making.active = False


AdaptiveSequence.__getitem__ = _by_workers(AdaptiveSequence.__getitem__)  # type: ignore[method-assign]


@keras.saving.register_keras_serializable("balancer")
class AdaptiveLoss(keras.losses.Loss):  # type: ignore[misc]
    """Cross-entropy of the rows that a sampler has drawn, counted so that sampling is compensated.

    In training, ``sampler.logit_offset`` is added to the logits. Rows are counted by the weights of the
    batch, or, where it has none, by the weight of their class. In evaluation the log prior is added instead,
    and all rows count alike: the loss then is the cross-entropy on the stream as it is, without the
    correction for hardness of :meth:`.SamplerCore.probabilities`.

    :class:`AdaptiveCallback` changes between both, and it takes the weights of each new epoch over. In a loop
    of your own call :meth:`for_training` after ``sampler.update``, and :meth:`for_evaluation`.

    A model is saved with it. A loaded loss has no sampler: it is that of an evaluation.

    Args:
        sampler: Sampler that the training rows are drawn by.
        from_logits: Whether the model's output is logits. If False, it is the probabilities of a softmax, or
            of a sigmoid for the second class: those of a stream of equally frequent classes.
        label_smoothing: Part of the target that is divided equally among the classes, in [0, 1].
        reduction: As for ``keras.losses.Loss``.
        name: Name of the loss.

    The model's output is (B, K) in the order of ``sampler.classes_``; with two classes also (B,) or (B, 1).
    Targets are (B,) or (B, 1) classes, named as in the labels, or indices into ``classes_`` where these are
    text; or (B, K) one-hot. Rows with any other target don't count.

    Raises:
        InputError: An argument is out of range, or a shape does not fit.
    """

    def __init__(
        self,
        sampler: SamplerCore,
        *,
        from_logits: bool = True,
        label_smoothing: float = 0.0,
        reduction: str | None = "sum_over_batch_size",
        name: str = "adaptive_loss",
    ) -> None:
        super().__init__(name=name, reduction=reduction)
        if not 0 <= label_smoothing <= 1:
            raise InputError(f"label_smoothing must lie in [0, 1], not {label_smoothing}")
        self.sampler, self.from_logits, self.label_smoothing = sampler, bool(from_logits), label_smoothing
        classes = sampler.classes_
        names = range(len(classes)) if isinstance(classes[0], (str, bytes)) else map(int, classes)
        self._names = np.fromiter(names, dtype=np.int64)
        weight, offset = self._training_numbers()
        # Variables, so that compiled functions see their values change.
        self._class_weight, self._offset = (
            keras.Variable(values, trainable=False, dtype="float32", name=name)
            for name, values in (("class_weight", weight), ("logit_offset", offset))
        )

    def for_training(self) -> bool:
        """Take the weights of the sampler's present epoch over; return whether anything has changed."""
        return self._assign(*self._training_numbers())

    def for_evaluation(self) -> bool:
        """Measure the stream as it is from now on; return whether anything has changed."""
        return self._assign(np.ones(len(self._names)), np.log(np.maximum(self.sampler.prior, 1e-12)))

    def _training_numbers(self) -> tuple[Floats, Floats]:
        return self.sampler.class_weight, self.sampler.logit_offset

    def _assign(self, weight: Floats, offset: Floats) -> bool:
        changed = False
        for variable, values in ((self._class_weight, weight), (self._offset, offset)):
            new = np.asarray(values, dtype=np.float32)
            if not np.array_equal(keras.ops.convert_to_numpy(variable.value), new):
                variable.assign(new)
                changed = True
        return changed

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """The loss of a batch."""
        target = self._target(keras.ops.convert_to_tensor(y_true))
        if sample_weight is None:
            sample_weight = keras.ops.sum(target * self._class_weight, axis=-1)
        return super().__call__(target, y_pred, sample_weight)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """(B,) loss of each row from targets (B, K)."""
        ops, num_classes = keras.ops, len(self._names)
        output = ops.cast(y_pred, "float32")
        if len(output.shape) == 1 or (len(output.shape) == 2 and output.shape[1] == 1 and num_classes == 2):
            second = ops.reshape(output, (-1,))
            logits = ops.stack([ops.zeros_like(second), second], axis=1)
            if not self.from_logits:
                logits = ops.stack([1.0 - second, second], axis=1)
        else:
            logits = output
        if len(logits.shape) != 2 or logits.shape[1] != num_classes:
            one = ", or one column" if num_classes == 2 else ""
            raise InputError(
                f"the model's output must have {num_classes} columns, one for each class{one}, not shape {tuple(y_pred.shape)}"
            )
        if not self.from_logits:
            logits = ops.log(ops.clip(logits, keras.backend.epsilon(), 1.0))
        log_p = ops.log_softmax(logits + self._offset, axis=-1)
        target = ops.cast(y_true, "float32")
        if self.label_smoothing:
            total = ops.sum(target, axis=-1, keepdims=True)
            target = (1.0 - self.label_smoothing) * target + self.label_smoothing * total / num_classes
        return -ops.sum(target * log_p, axis=-1)

    def _target(self, y_true: Any) -> Any:
        """(B, K) one-hot."""
        ops, num_classes = keras.ops, len(self._names)
        if len(y_true.shape) == 2 and y_true.shape[1] == num_classes:
            return ops.cast(y_true, "float32")
        if len(y_true.shape) == 2 and y_true.shape[1] == 1:
            y_true = y_true[:, 0]
        if len(y_true.shape) != 1:
            raise InputError(f"targets must be (B,), (B, 1) or one-hot (B, {num_classes}), not of shape {tuple(y_true.shape)}")
        names = ops.convert_to_tensor(self._names, dtype=keras.backend.standardize_dtype(y_true.dtype))
        return ops.cast(ops.equal(y_true[:, None], names[None, :]), "float32")

    def get_config(self) -> dict[str, Any]:
        """What a saved model keeps: the classes, their prior, and how the output is read."""
        names = [name if isinstance(name, str) else int(name) for name in self._names_of_classes()]
        config: dict[str, Any] = super().get_config()
        return config | {
            "from_logits": self.from_logits,
            "label_smoothing": self.label_smoothing,
            "classes": names,
            "prior": np.asarray(self.sampler.prior).tolist(),
        }

    def _names_of_classes(self) -> list[Any]:
        return [name.decode(errors="replace") if isinstance(name, bytes) else name for name in self.sampler.classes_]

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> AdaptiveLoss:
        """The loss of a loaded model, for evaluation."""
        given = dict(config)
        classes, prior = given.pop("classes"), np.array(given.pop("prior"), dtype=np.float64)
        loss = cls(_NoSampler(classes, prior), **given)  # type: ignore[arg-type]
        loss.for_evaluation()
        return loss


class _NoSampler:
    """What a loaded loss knows of the sampler: no weights, but the classes and their prior."""

    def __init__(self, classes: list[Any], prior: Floats) -> None:
        self.classes_, self.prior = classes, prior
        self.class_weight, self.logit_offset = np.ones(len(classes)), np.log(np.maximum(prior, 1e-12))


class AdaptiveCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Draw the rows of each epoch, and update the sampler after it.

    Adds ``sampling_share_<class>``, ``sampling_hardness``, ``sampling_average_precision`` and
    ``sampling_f1`` to the logs; callbacks that come after it, such as ``ModelCheckpoint`` or
    ``EarlyStopping``, can monitor them with ``mode="max"``.

    Epochs are counted by the sampler: where ``fit`` is called again, its first epoch is the sampler's next
    one, and draws other rows.

    Args:
        batches: The batches that ``model.fit`` trains on.
        validation_data: Pair ``(x, y)``. ``y`` is (n,) or (n, 1) with the class names of the sampler's
            labels, or one-hot in the order of ``sampler.classes_``.
        pool: Number of training rows to predict after each epoch. With 0 none are predicted, and hardness has
            no effect.
        from_logits: Whether the model's output is logits, without sigmoid or softmax.
        predict_batch_size: Batch size of the predictions.
        stop_when_finished: Whether to stop when ``sampler.finished``: after ``patience`` epochs without a
            better average precision, or after ``epochs`` of the sampler. By default ``fit`` decides.
        restore_best: Whether the model ends with its weights of ``sampler.best_epoch``, of which a copy is
            kept. By default it ends with those of the last epoch.
        state_file: File in which the sampler's state is saved after each epoch, for use together with
            ``keras.callbacks.BackupAndRestore``: if the file exists when training begins, the state is
            restored from it, and it is deleted when training ends. With ``restore_best`` it holds the best
            epoch's weights too.

    Raises:
        MissingDependencyError: Keras or its backend is not installed.
        InputError: ``pool`` is out of range; in training, the errors of ``sampler.update``, or ``fit`` does
            not train on ``batches``, or divides their epochs by ``steps_per_epoch``.
    """

    def __init__(
        self,
        batches: AdaptiveSequence,
        validation_data: tuple[Any, Any],
        *,
        pool: int = POOL,
        from_logits: bool = False,
        predict_batch_size: int = 1024,
        stop_when_finished: bool = False,
        restore_best: bool = False,
        state_file: str | Path | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(validation_data, (tuple, list)) or len(validation_data) != 2:
            raise InputError("validation_data must be a pair (x, y) of held-out rows")
        self.batches, self.sampler = batches, batches.sampler
        self.x_valid = validation_data[0]
        self.y_valid = _classes(validation_data[1], self.sampler)
        self.pool, self.from_logits, self.predict_batch_size = check_pool(pool), from_logits, predict_batch_size
        self.stop_when_finished, self.restore_best = stop_when_finished, restore_best
        self.state_file = None if state_file is None else Path(state_file)
        self._before: int | None = None  # epochs of the sampler before the first one of this training
        self._requests: int | None = None  # those before this training, until its first batch
        self._training = False
        self._best: list[NDArray[Any]] | None = None

    def __repr__(self) -> str:
        """Sampler, pool and state file."""
        return f"AdaptiveCallback({self.sampler!r}, pool={self.pool}, state_file={self.state_file and str(self.state_file)!r})"

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Restore the state of an interrupted training."""
        if self.state_file is not None and self.state_file.is_file():
            state = read_state(self.state_file)
            self.sampler.load_state_dict(state)
            self._best = state.get(BEST)
        self._before, self._training = None, True
        self._requests = self.batches.requests
        if self._losses():
            _check_targets(self.batches.y, self.sampler)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Draw the rows of the epoch."""
        if self._before is None:
            self._before = max(self.sampler.epoch - epoch, 0)
        self.batches.draw(epoch + self._before)
        self._set_losses(training=True)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """After the first batch: check that it is one of ours, and that epochs are whole."""
        if self._requests is None:
            return
        if self.batches.requests == self._requests:
            raise InputError("fit does not train on the batches of AdaptiveCallback; call model.fit(batches, ...) with the same object")
        self._requests = None
        steps = (self.params or {}).get("steps")
        if steps not in (None, len(self.batches)) and keras.backend.backend() != "torch":
            raise InputError(
                f"with steps_per_epoch={steps} Keras would train on batches of an earlier epoch; leave it out and give the sampler "
                f"num_samples={steps * self.batches.batch_size}"
            )

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Measure the stream as it is."""
        self._set_losses(training=False)

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Go on with the loss of the training."""
        if self._training:
            self._set_losses(training=True)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Predict validation rows and pool, and update the sampler."""
        sampler, number = self.sampler, epoch + (self._before or 0)
        rows = pool_rows(sampler.num_rows, self.pool, integer_seed(sampler.seed, "keras pool"), number) if self.pool else None
        row_score = None if rows is None else self._predict(take(self.batches.x, rows))
        sampler.update(self.y_valid, self._predict(self.x_valid), rows=rows, row_score=row_score)
        sampler.epoch = number + 1
        if logs is not None:
            logs.update(sampling_metrics(sampler.classes_, sampler.weights, "sampling_", sampler.metrics))
        if self.restore_best and sampler.improved:
            self._best = self.model.get_weights()
        if self.stop_when_finished and sampler.finished:
            self.model.stop_training = True
        if self.state_file is not None:
            save_state(self.state_file, sampler.state_dict() | ({BEST: self._best} if self._best else {}))

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Restore the best weights if asked to, and delete the state file: nothing is left to resume."""
        self._training = False
        self._set_losses(training=False)
        if self.restore_best and self._best is not None:
            self.model.set_weights(self._best)
            self.sampler.use_best_epoch()
        if self.state_file is not None:
            self.state_file.unlink(missing_ok=True)

    def _losses(self) -> list[AdaptiveLoss]:
        """The losses of the model that belong to the sampler."""
        flat = keras.tree.flatten(getattr(self.model, "loss", None))
        return [loss for loss in flat if isinstance(loss, AdaptiveLoss) and loss.sampler is self.sampler]

    def _set_losses(self, *, training: bool) -> None:
        """Let the losses of the model be those of training or evaluation."""
        changed = [loss.for_training() if training else loss.for_evaluation() for loss in self._losses()]
        if any(changed) and keras.backend.backend() == "jax":
            # JAX compiles the values of variables that are not the model's into its functions.
            make = self.model.make_train_function if training else self.model.make_test_function
            make(force=True)

    def _predict(self, x: Any) -> NDArray[np.float64]:
        output = np.asarray(self.model.predict(x, batch_size=self.predict_batch_size, verbose=0))
        if self.from_logits:
            return sampler_scores(self.sampler, output)
        scores = two_columns(output)
        if self._losses():  # the probabilities of a stream of equally frequent classes
            scores = sampler_scores(self.sampler, np.log(np.maximum(scores, 1e-12)))
        return scores


def _check_targets(y: Any, sampler: SamplerCore) -> None:
    """Refuse targets that :class:`AdaptiveLoss` would not count."""
    given = np.asarray(y)
    if given.ndim == 2 and given.shape[1] == 1:
        given = given[:, 0]
    if given.ndim != 1:
        return
    text = isinstance(sampler.classes_[0], (str, bytes))
    known = list(range(len(sampler.classes_))) if text else [int(name) for name in sampler.classes_]
    if sampler.unlabelled is not None and not text:
        known.append(sampler.unlabelled)
    if given.dtype.kind not in "iubf" or not np.isin(given, known).any():
        raise InputError(f"y must hold the classes as numbers for AdaptiveLoss ({', '.join(map(str, known[:10]))}), not {given.dtype}")
    unknown = given[~np.isin(given, known)]
    unknown = unknown[~np.isnan(unknown)] if unknown.dtype.kind == "f" else unknown
    if len(unknown):
        raise InputError(
            f"y holds {unknown[0]!r}, which is no class of the sampler ({', '.join(map(str, known[:10]))}): it would not be trained on"
        )


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
