"""The Keras callback and sequence: a small network is trained on imbalanced data, with the torch backend."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from balancer.errors import InputError
from balancer.sampling.core import SamplerCore

EPOCHS, PRIOR = 4, 0.06

# Keras converts torch tensors with np.array(tensor), and torch's tensors do not support NumPy 2's copy
# argument.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")


@pytest.fixture(scope="module")
def keras() -> Iterator[Any]:
    """Keras reads its backend once, when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "torch")
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
