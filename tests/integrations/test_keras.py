"""The Keras callback and sequence: a small network is trained on imbalanced data, with the torch backend."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from balancer.errors import InputError
from balancer.integrations.callback_base import logits_to_scores
from balancer.integrations.prefetch import BatchQueue
from balancer.sampling.core import SamplerCore

EPOCHS, PRIOR = 4, 0.06

# Keras converts torch tensors with np.array(tensor), and torch's tensors do not support NumPy 2's copy
# argument.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")


@pytest.fixture(scope="module")
def keras() -> Iterator[Any]:
    """Keras reads its backend once, when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", os.environ.get("KERAS_BACKEND", "torch"))
        import keras

        yield keras


def _table(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = (rng.random(n) < PRIOR).astype(np.int64)
    return (rng.normal(size=(n, 4)) + 1.5 * label[:, None]).astype(np.float32), label


def _model(keras: Any, output: str = "sigmoid") -> Any:
    keras.utils.set_random_seed(1)
    last = keras.layers.Dense(2 if output == "softmax" else 1, activation=None if output == "logits" else output)
    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(16, "tanh"), last])
    loss: Any = keras.losses.BinaryCrossentropy(from_logits=output == "logits")
    if output == "softmax":
        loss = keras.losses.SparseCategoricalCrossentropy()
    model.compile(keras.optimizers.Adam(0.02), loss)
    return model


def _parts(policy: str = "rule", **options: Any) -> tuple[Any, Any, SamplerCore]:
    from balancer.integrations.keras import AdaptiveCallback, AdaptiveSequence

    x, y = _table(600, 0)
    sampler = SamplerCore(y, policy=policy, epochs=EPOCHS, seed=5)
    batches = AdaptiveSequence(x, y, sampler, batch_size=100)
    return batches, AdaptiveCallback(batches, options.pop("valid", _table(300, 1)), **options), sampler


def _watch(keras: Any, batches: Any) -> Any:
    """Callback that records the rows of each epoch and the weights that they were drawn with."""

    class Watch(keras.callbacks.Callback):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.rows: list[list[int]] = []
            self.shares: list[np.ndarray] = []

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.rows.append(batches.rows.tolist())
            self.shares.append(batches.sampler.weights.share)

    return Watch()


@pytest.mark.parametrize("output", ["sigmoid", "logits", "softmax"])
def test_the_weights_change_after_each_epoch_and_the_draws_follow_them(keras: Any, output: str) -> None:
    batches, callback, sampler = _parts(from_logits=output == "logits")
    watch, model = _watch(keras, batches), _model(keras, output)
    history = model.fit(batches, epochs=EPOCHS, verbose=0, callbacks=[callback, watch]).history
    assert sampler.updates == EPOCHS
    assert sampler.epoch == EPOCHS
    shares = [share[1] for share in watch.shares]
    assert np.abs(np.diff(shares))[:2].min() > 1e-3
    for rows, share in zip(watch.rows, shares, strict=True):
        assert batches.y[rows].mean() == pytest.approx(share, abs=0.08)  # 600 draws: four standard deviations
    np.testing.assert_allclose(history["sampling_share_1"], [*shares[1:], sampler.weights.share[1]])
    assert history["sampling_hardness"] == [0.0] * EPOCHS
    x, y = _table(2000, 2)
    assert average_precision_score(y, model.predict(x, verbose=0)[:, -1]) > PRIOR + 0.4


def test_labels_of_validation_may_be_a_column_or_one_hot(keras: Any) -> None:
    x, y = _table(300, 1)
    ends = []
    for valid in (y, y[:, None], np.eye(2)[y]):
        batches, callback, sampler = _parts(valid=(x, valid), pool=100)
        _model(keras).fit(batches, epochs=2, verbose=0, callbacks=[callback])
        ends.append(sampler.weights.share)
    np.testing.assert_array_equal(ends[0], ends[1])
    np.testing.assert_array_equal(ends[0], ends[2])


def test_workers_get_the_rows_of_their_epoch(keras: Any) -> None:
    from balancer.integrations.keras import AdaptiveCallback, AdaptiveSequence

    x, y = _table(600, 0)
    got: list[np.ndarray] = []

    class Recording(AdaptiveSequence):
        def __getitem__(self, index: int) -> Any:
            batch = super().__getitem__(index)
            got.append(batch[0]["a"])
            return batch

    sampler = SamplerCore(y, policy="rule", epochs=EPOCHS)
    batches = Recording({"a": x, "b": x[:, :1]}, y, sampler, batch_size=100, workers=2)
    inputs = {"a": keras.layers.Input((4,), name="a"), "b": keras.layers.Input((1,), name="b")}
    model = keras.Model(inputs, keras.layers.Dense(1, "sigmoid")(inputs["a"]))
    model.compile("sgd", "binary_crossentropy")
    watch = _watch(keras, batches)
    valid = ({"a": x, "b": x[:, :1]}, y)
    model.fit(batches, epochs=2, verbose=0, callbacks=[AdaptiveCallback(batches, valid, pool=0), watch], shuffle=False)
    assert sampler.updates == 2
    drawn = np.concatenate([x[rows] for rows in watch.rows])
    seen = {row.tobytes() for batch in got for row in batch}
    assert {row.tobytes() for row in drawn} <= seen


def _augmenting(keep: list[str]) -> Any:
    """A sequence whose own ``__getitem__`` adds a column and notes the thread that it runs in."""
    from balancer.integrations.keras import AdaptiveSequence

    class Augmenting(AdaptiveSequence):
        def __getitem__(self, index: int) -> Any:
            keep.append(threading.current_thread().name)
            x, *rest = super().__getitem__(index)
            return np.concatenate([x, np.ones((len(x), 1), np.float32)], axis=1), *rest

    return Augmenting


def _watched(keras: Any) -> Any:
    """A model that notes the rows it is trained on: the first column of ``x`` names the row."""

    class Watched(keras.Model):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.seen = keras.layers.Dense(1, activation="sigmoid"), []

        def build(self, shape: Any) -> None:
            self.layer.build(shape)
            super().build(shape)

        def call(self, x: Any) -> Any:
            return self.layer(x)

        def train_step(self, data: Any) -> Any:
            self.seen.extend(np.asarray(data[0])[:, 0].astype(int).tolist())
            return super().train_step(data)

    model = Watched()
    model.build((None, 3))
    model.compile(loss="binary_crossentropy", optimizer=keras.optimizers.SGD(0.0), run_eagerly=keras.backend.backend() != "torch")
    return model


@pytest.mark.parametrize(
    "options",
    [
        {"workers": 1},
        {"workers": 2},
        {"workers": 3, "max_queue_size": 1},
        {"workers": 2, "max_queue_size": 100},
        {"workers": 1, "use_multiprocessing": True},
        {"workers": 2, "use_multiprocessing": True, "max_queue_size": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("validated", [False, True])
def test_each_epoch_is_trained_on_the_rows_drawn_for_it(keras: Any, options: dict[str, Any], validated: bool) -> None:
    from balancer.integrations.keras import AdaptiveCallback

    if keras.backend.backend() == "jax":
        pytest.skip("the model that notes its rows needs eager tensors")
    y = np.repeat([0, 1], [270, 30])
    x = np.stack([np.arange(300), y], 1).astype("float32")
    where: list[str] = []
    batches = _augmenting(where)(x, y, SamplerCore(y, policy="rule", epochs=6, seed=0), batch_size=32, **options)
    callback, watch, model = AdaptiveCallback(batches, (np.c_[x, y], y), pool=0), _watch(keras, batches), _watched(keras)
    more = {"validation_data": (np.c_[x, y].astype("float32"), y)} if validated else {}
    for epochs in (2, 1, 2):  # fit is called three times, with one sampler
        model.fit(batches, epochs=epochs, verbose=0, callbacks=[callback, watch], **more)
    assert len(model.seen) == 5 * 300
    for trained, drawn in zip(np.array(model.seen).reshape(5, 300), watch.rows, strict=True):
        assert sorted(trained) == sorted(drawn)
    assert len({tuple(rows) for rows in watch.rows}) == 5
    assert batches.sampler.epoch == 5
    threads = {name for name in where if name.startswith("balancer batch")}
    if options.get("use_multiprocessing"):
        assert len(where) <= 2 * 3  # what Keras asks for before it begins, once a fit; the rest was made in processes
    else:
        assert bool(threads) == (options["workers"] > 1)


@pytest.mark.usefixtures("keras")
def test_a_batch_can_be_looked_at_whatever_the_workers() -> None:
    from balancer.integrations.keras import AdaptiveSequence

    x, y = _table(100, 0)
    sampler = SamplerCore(y, policy="start", epochs=2)
    batches = AdaptiveSequence(x, y, sampler, batch_size=30, workers=2, use_multiprocessing=True)
    for index in (3, 0):
        np.testing.assert_array_equal(batches[index][0], x[batches.rows[index * 30 : (index + 1) * 30]])
    batches.workers = 5
    assert (batches.workers, batches.num_workers) == (1, 5)
    batches.on_epoch_begin()
    first = batches[0][0]
    batches.draw(1)
    np.testing.assert_array_equal(batches[0][0], x[batches.rows[:30]])
    assert not np.array_equal(batches[0][0], first)
    batches.on_epoch_end()


def test_a_queue_gives_batches_in_order_and_passes_errors_on() -> None:
    def make(number: int) -> int:
        if number == 3:
            raise ValueError("batch 3")
        return number

    for ahead in (0, 1, 10):
        queue = BatchQueue(make, 5, workers=2, processes=False, ahead=ahead)
        assert [queue.next() for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="batch 3"):
            queue.next()
        assert queue.next() == 4 and queue.empty
        with pytest.raises(InputError, match="all 5 batches"):
            queue.next()
        queue.close()


def test_the_sampler_must_be_what_fit_trains_on(keras: Any) -> None:
    batches, callback, _ = _parts()
    with pytest.raises(InputError, match=r"model\.fit\(batches"):
        _model(keras).fit(batches.x, batches.y, epochs=1, verbose=0, callbacks=[callback])
    if keras.backend.backend() != "torch":
        with pytest.raises(InputError, match="steps_per_epoch"):
            _model(keras).fit(batches, epochs=1, steps_per_epoch=3, verbose=0, callbacks=[callback])


def _classes(num_classes: int, names: Any = None) -> Any:
    rng = np.random.default_rng(7)
    code = rng.choice(num_classes, 400, p=np.array([0.7, 0.2, 0.1]) if num_classes == 3 else np.array([0.9, 0.1]))
    code[:num_classes] = np.arange(num_classes)
    return code if names is None else np.asarray(names)[code]


@pytest.mark.usefixtures("keras")
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("form", ["column", "vector", "softmax", "one-hot", "text", "names", "probabilities"])
def test_the_loss_is_that_of_the_torch_sampler(form: str, smoothing: float) -> None:
    torch = pytest.importorskip("torch")
    from balancer.integrations.keras import AdaptiveLoss
    from balancer.sampling.torch_sampler import AdaptiveSampler

    wide = form in ("softmax", "one-hot", "text", "names")
    names = {"text": ["a", "b", "c"], "names": [-5, 7, 20_000_003]}.get(form)
    labels = _classes(3 if wide else 2, names)
    options: Any = {"policy": "auto", "epochs": 2, "seed": 1, "compensated": True}
    core, sampler = SamplerCore(labels, **options), AdaptiveSampler(labels, **options)
    logits = np.random.default_rng(2).normal(size=(400, 3 if wide else 1)).astype(np.float32)
    code = np.searchsorted(core.classes_, labels)
    target = code if form == "text" else labels
    wanted = sampler.loss(torch.as_tensor(logits), torch.as_tensor(target), reduction="sum", label_smoothing=smoothing)
    loss = AdaptiveLoss(core, label_smoothing=smoothing, reduction="sum", from_logits=form != "probabilities")
    output, given = logits[:, 0] if form == "vector" else logits, target[:, None] if form == "column" else target
    if form == "one-hot":
        given = np.eye(3, dtype=np.float32)[code]
    if form == "probabilities":
        output = 1 / (1 + np.exp(-logits))
    assert float(loss(given, output)) == pytest.approx(float(wanted), rel=1e-5)
    rows = np.arange(400)
    by_row = sampler.loss(torch.as_tensor(logits), torch.as_tensor(target), rows=rows, reduction="sum", label_smoothing=smoothing)
    assert float(loss(given, output, core.sample_weight(rows))) == pytest.approx(float(by_row), rel=1e-5)


def test_in_evaluation_the_loss_is_that_of_the_natural_stream(keras: Any) -> None:
    from balancer.integrations.keras import AdaptiveCallback, AdaptiveLoss, AdaptiveSequence

    (x, y), valid = _table(600, 0), _table(300, 1)
    sampler = SamplerCore(y, epochs=3, seed=5, compensated=True)
    batches = AdaptiveSequence(x, y, sampler, batch_size=100)
    assert [part.shape for part in batches[0]] == [(100, 4), (100,), (100,)]
    np.testing.assert_allclose(batches[0][2], sampler.sample_weight(batches.rows[:100]), rtol=1e-6)
    model = _model(keras, "logits")
    model.compile(keras.optimizers.Adam(0.02), AdaptiveLoss(sampler), weighted_metrics=[])
    callback = AdaptiveCallback(batches, valid, from_logits=True)
    shares = []

    class Offsets(keras.callbacks.Callback):  # type: ignore[misc, name-defined]
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            shares.append(np.exp(keras.ops.convert_to_numpy(model.loss._offset)))

    history = model.fit(batches, epochs=3, verbose=0, callbacks=[callback, Offsets()], validation_data=valid).history
    assert np.ptp([share[1] for share in shares]) < 1e-6  # a constant policy
    np.testing.assert_allclose(shares[0], np.exp(sampler.logit_offset), rtol=1e-5)
    logits = model.predict(valid[0], verbose=0)
    natural_p = logits_to_scores(logits[:, 0] + np.log(sampler.prior[1] / sampler.prior[0]))
    natural = -np.log(natural_p[np.arange(300), valid[1]]).mean()
    p = sampler.probabilities(logits)
    assert history["val_loss"][-1] == pytest.approx(natural, rel=1e-4)
    assert model.evaluate(*valid, verbose=0) == pytest.approx(natural, rel=1e-4)
    assert p[:, 1].mean() == pytest.approx(valid[1].mean(), abs=0.03)
    assert history["sampling_average_precision"][-1] == pytest.approx(sampler.metrics["average_precision"])
    assert average_precision_score(valid[1], p[:, 1]) > PRIOR + 0.4


def test_the_offset_of_a_new_epoch_reaches_a_compiled_training(keras: Any) -> None:
    """With a learning rate of 0 the loss of an epoch depends on nothing but its weights."""
    from balancer.integrations.keras import AdaptiveCallback, AdaptiveLoss, AdaptiveSequence

    class Steps:
        name = "steps"

        def act(self, observation: Any) -> Any:
            from balancer.sampling.weights import SamplingWeights

            rare = 0.5 if observation.started else 0.1
            return SamplingWeights(np.array([1 - rare, rare]), class_importance=0.5)

    x, y = _table(600, 0)
    sampler = SamplerCore(y, policy=Steps(), epochs=2, seed=5, compensated=True)
    batches = AdaptiveSequence(x, y, sampler, batch_size=100)
    model = _model(keras, "logits")
    model.compile(keras.optimizers.SGD(0.0), AdaptiveLoss(sampler))
    logits = model.predict(x, verbose=0)[:, 0]
    wanted = []

    class Expected(keras.callbacks.Callback):  # type: ignore[misc, name-defined]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            rows, offset = batches.rows, sampler.logit_offset
            z = logits[rows] + offset[1] - offset[0]
            wanted.append((np.logaddexp(0, np.where(y[rows] == 1, -z, z)) * sampler.sample_weight(rows)).mean())

    callbacks = [AdaptiveCallback(batches, (x, y), from_logits=True, pool=0), Expected()]
    history = model.fit(batches, epochs=2, verbose=0, callbacks=callbacks, validation_data=(x, y)).history
    np.testing.assert_allclose(history["loss"], wanted, rtol=1e-4)
    assert abs(wanted[1] - wanted[0]) > 0.02


def test_a_saved_model_keeps_the_loss_of_an_evaluation(keras: Any, tmp_path: Path) -> None:
    from balancer.integrations.keras import AdaptiveLoss

    x, y = _table(300, 1)
    sampler = SamplerCore(y, epochs=3, compensated=True)
    model = _model(keras, "logits")
    model.compile("sgd", AdaptiveLoss(sampler))
    assert model.loss.for_evaluation() and not model.loss.for_evaluation()
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.evaluate(x, y, verbose=0) == pytest.approx(model.evaluate(x, y, verbose=0), rel=1e-5)


@pytest.mark.usefixtures("keras")
def test_weights_are_given_where_the_loss_counts_them() -> None:
    from balancer.integrations.keras import AdaptiveLoss, AdaptiveSequence

    x, y = _table(300, 1)
    plain = AdaptiveSequence(x, y, SamplerCore(y, epochs=3))
    assert len(plain[0]) == 2
    AdaptiveLoss(plain.sampler)
    assert len(plain[0]) == 3
    assert len(AdaptiveSequence(x, y, SamplerCore(y, epochs=3, compensated=True), compensated=False)[0]) == 2
    late = AdaptiveSequence(x, y, SamplerCore(y, epochs=3))
    AdaptiveLoss(late.sampler)  # nothing was drawn yet, so the first epoch is drawn for it
    assert late.sampler.weights.class_importance > 0
    asked = AdaptiveSequence(x, y, SamplerCore(y, epochs=3), compensated=True)
    assert asked.sampler.compensated and len(asked[0]) == 3
    many = AdaptiveSequence(x, y, SamplerCore(y, epochs=3, compensated=True), workers=2, use_multiprocessing=True)
    many.on_epoch_begin()
    np.testing.assert_allclose(np.concatenate([many[i][2] for i in range(len(many))]), many.row_weight(), rtol=1e-6)
    many.on_epoch_end()


def test_targets_that_the_loss_would_not_count_are_refused(keras: Any) -> None:
    from balancer.integrations.keras import AdaptiveCallback, AdaptiveLoss, AdaptiveSequence

    x, y = _table(300, 1)
    for targets, names, match in ((y + 1, y, "which is no class"), (np.where(y, "b", "a"), np.where(y, "b", "a"), "as numbers")):
        sampler = SamplerCore(names, epochs=3)
        batches = AdaptiveSequence(x, targets, sampler)
        model = _model(keras, "logits")
        model.compile("sgd", AdaptiveLoss(sampler))
        callback = AdaptiveCallback(batches, (x, names))
        callback.set_model(model)
        with pytest.raises(InputError, match=match):
            callback.on_train_begin()
    loss = AdaptiveLoss(SamplerCore(y, epochs=3))
    with pytest.raises(InputError, match="2 columns"):
        loss(y, np.zeros((300, 3), np.float32))
    with pytest.raises(InputError, match="one-hot"):
        loss(np.zeros((300, 3)), np.zeros((300, 2), np.float32))
    with pytest.raises(InputError, match="label_smoothing"):
        AdaptiveLoss(SamplerCore(y, epochs=3), label_smoothing=2)


class _Figures:
    """Replaces a sampler's ``update`` by one that reports given average precisions."""

    def __init__(self, sampler: Any, figures: list[float]) -> None:
        core = getattr(sampler, "_core", sampler)
        self._stopping, self._figures = core._stopping, iter(figures)

    def __call__(self, *_: Any, **__: Any) -> None:
        self._stopping.update(next(self._figures))


def test_training_stops_when_the_sampler_has_finished_and_ends_with_the_best_weights(keras: Any) -> None:
    from balancer.integrations.keras import AdaptiveCallback, AdaptiveSequence

    def trained(figures: list[float], **options: Any) -> tuple[int, Any, list[Any]]:
        x, y = _table(100, 0)
        sampler = SamplerCore(y, policy="start", epochs=8, patience=2)
        sampler.update = _Figures(sampler, figures)  # type: ignore[method-assign, assignment]
        batches, model, kept = AdaptiveSequence(x, y, sampler, batch_size=50), _model(keras), []
        keep = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: kept.append(model.get_weights()[0]))
        callback = AdaptiveCallback(batches, (x, y), pool=0, **options)
        history = model.fit(batches, epochs=6, verbose=0, callbacks=[callback, keep])
        return len(history.epoch), model.get_weights()[0], kept

    figures = [0.1, 0.5, 0.4, 0.3, 0.2, 0.9]
    epochs, end, kept = trained(figures)
    assert epochs == 6
    np.testing.assert_array_equal(end, kept[5])
    epochs, end, kept = trained(figures, stop_when_finished=True)
    assert epochs == 4
    np.testing.assert_array_equal(end, kept[3])
    epochs, end, kept = trained(figures, stop_when_finished=True, restore_best=True)
    assert epochs == 4
    np.testing.assert_array_equal(end, kept[1])


def test_the_best_weights_survive_an_interruption(keras: Any, tmp_path: Path) -> None:
    class StopError(RuntimeError):
        pass

    class Stop(keras.callbacks.Callback):  # type: ignore[misc, name-defined]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 2:
                raise StopError

    def run(figures: list[float], *more: Any) -> tuple[Any, Any]:
        batches, callback, sampler = _parts(state_file=tmp_path / "s.safetensors", restore_best=True, pool=0)
        sampler.update = _Figures(sampler, figures)  # type: ignore[method-assign, assignment]
        model = _model(keras)
        model.fit(batches, epochs=EPOCHS, verbose=0, callbacks=[keras.callbacks.BackupAndRestore(tmp_path / "b"), callback, *more])
        return model, sampler

    with pytest.raises(StopError):
        run([0.9, 0.1], Stop())
    from balancer.integrations.callback_base import read_state

    best = read_state(tmp_path / "s.safetensors")["best_weights"]
    model, sampler = run([0.1, 0.1])
    assert sampler.best_epoch == 0
    for one, other in zip(model.get_weights(), best, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_resumed_training_draws_the_same_rows_as_an_uninterrupted_one(keras: Any, tmp_path: Path) -> None:
    class StopError(RuntimeError):
        pass

    class Kill(keras.callbacks.Callback):  # type: ignore[misc, name-defined]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 2:
                raise StopError

    def callbacks(folder: str) -> tuple[Any, Any, list[Any]]:
        batches, callback, _ = _parts(state_file=tmp_path / f"{folder}.safetensors")
        watch = _watch(keras, batches)
        return batches, watch, [keras.callbacks.BackupAndRestore(tmp_path / folder), callback, watch]

    straight, whole, own = callbacks("a")
    _model(keras).fit(straight, epochs=EPOCHS, verbose=0, callbacks=own, shuffle=False)
    batches, _, own = callbacks("b")
    with pytest.raises(StopError):
        _model(keras).fit(batches, epochs=EPOCHS, verbose=0, callbacks=[*own, Kill()], shuffle=False)
    assert (tmp_path / "b.safetensors").is_file()
    batches, rest, own = callbacks("b")
    _model(keras).fit(batches, epochs=EPOCHS, verbose=0, callbacks=own, shuffle=False)
    assert rest.rows == whole.rows[2:]
    np.testing.assert_allclose(rest.shares, whole.shares[2:])
    assert not (tmp_path / "b.safetensors").exists()


def test_errors_for_wrong_arguments(keras: Any) -> None:
    from balancer.integrations.keras import AdaptiveSequence

    x, y = _table(60, 0)
    sampler = SamplerCore(y, policy="rule", epochs=1)
    with pytest.raises(InputError, match="60 labels"):
        AdaptiveSequence(x[:50], y, sampler)
    with pytest.raises(InputError, match="batch_size"):
        AdaptiveSequence(x, y, sampler, batch_size=0)
    with pytest.raises(InputError, match="pool"):
        _parts(pool=0.5)
    with pytest.raises(InputError, match="pair"):
        _parts(valid=x)
    with pytest.raises(InputError, match="one-hot"):
        _parts(valid=(x, np.zeros((60, 3))))
    batches, callback, _ = _parts()
    with pytest.raises(InputError, match="sigmoid or softmax"):
        _model(keras, "logits").fit(batches, epochs=1, verbose=0, callbacks=[callback])


@pytest.mark.parametrize(
    ("module", "library", "extra"),
    [("keras", "keras", "keras"), ("hugging_face", "transformers", "transformers"), ("lightning", "lightning", "lightning")],
)
def test_a_missing_library_is_named_with_its_extra(module: str, library: str, extra: str) -> None:
    code = (
        f"import sys; sys.modules[{library!r}] = None; sys.modules['lightning.pytorch'] = sys.modules['pytorch_lightning'] = None\n"
        f"import balancer.integrations.{module}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert "MissingDependencyError" in done.stderr  # an InputError and an ImportError
    assert f"balancer[{extra}]" in done.stderr
