"""In Keras.

`AdaptiveSequence` hands drawn batches to `fit`, `AdaptiveLoss` counts them, and `AdaptiveCallback` updates
the sampler after each epoch. It works with every backend of Keras. The same network is also trained by
plain `fit`, and with `class_weight`, the usual way in Keras; all with the same first weights and steps.

What to see: average precision on test rows, and the mean probability. `class_weight` ranks nearly as well,
and spoils the probabilities.

    pip install 'balancer[keras]' scikit-learn
    python examples/keras_fit.py
"""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
from sklearn.metrics import average_precision_score

from balancer import SamplerCore
from balancer.integrations.keras import AdaptiveCallback, AdaptiveLoss, AdaptiveSequence

EPOCHS = 5
rng = np.random.default_rng(0)
x = rng.normal(size=(20_000, 8)).astype("float32")
chance = 1 / (1 + np.exp(6.5 - 2.5 * x[:, 0] * x[:, 1] - 1.5 * x[:, 2]))
y = (rng.random(len(x)) < chance).astype("int64")
train, valid, test = slice(0, 6000), slice(6000, 9000), slice(9000, 20_000)
print(f"share of positives: {y[test].mean():.4f}")


def network():
    """A new network, with the same first weights each time."""
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.layers.Input((8,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(1)])  # logits


def show(name, probability):
    """Print the figures of one way."""
    print(f"{name:16} average precision {average_precision_score(y[test], probability):.3f}   mean probability {probability.mean():.4f}")


for name, class_weight in (("plain fit", None), ("class_weight", {0: 1.0, 1: float(1 / y[train].mean())})):
    model = network()
    model.compile(keras.optimizers.Adam(5e-3), keras.losses.BinaryCrossentropy(from_logits=True))
    model.fit(x[train], y[train], batch_size=100, epochs=EPOCHS, class_weight=class_weight, verbose=0)
    show(name, 1 / (1 + np.exp(-model.predict(x[test], batch_size=1000, verbose=0)[:, 0])))

model = network()
sampler = SamplerCore(y[train], epochs=EPOCHS, compensated=True, seed=0)
batches = AdaptiveSequence(x[train], y[train], sampler, batch_size=100)
model.compile(keras.optimizers.Adam(5e-3), AdaptiveLoss(sampler))
model.fit(batches, epochs=EPOCHS, callbacks=[AdaptiveCallback(batches, (x[valid], y[valid]), from_logits=True)], verbose=0)
show("adaptive", sampler.probabilities(model.predict(x[test], batch_size=1000, verbose=0))[:, 1])
print(f"best epoch {sampler.best_epoch}, share of positives in the draws {sampler.weights.share[1]:.3f}")
