"""In Lightning.

A `LightningModule` is trained twice with the same first weights and steps: with plain shuffling, and with
`AdaptiveSampler` in its loader. `AdaptiveCallback` updates the sampler after each validation, and
`AdaptiveModuleMixin` brings training and validation steps with the sampler's loss.

What to see: what changes in the code (the mixin, the sampler, the callback), and average precision on test
rows. `restore_best` ends the adaptive run with the weights of its best epoch, here an early one; the plain
run keeps its last weights. After so few steps plain training is not done; with more it comes closer.

    pip install 'balancer[lightning]' scikit-learn
    python examples/lightning_trainer.py
"""

import logging
import warnings

import lightning.pytorch as pl
import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch.utils.data import DataLoader, TensorDataset

from balancer import AdaptiveSampler
from balancer.integrations.lightning import AdaptiveCallback, AdaptiveModuleMixin

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # no banner about devices
warnings.filterwarnings("ignore", ".*does not have many workers.*")
warnings.filterwarnings("ignore", ".*LeafSpec.*")  # a function of torch that Lightning still uses

EPOCHS = 6
rng = np.random.default_rng(0)
x = torch.tensor(rng.normal(size=(24_000, 8)), dtype=torch.float32)
y = (torch.sigmoid(2.5 * x[:, 0] * x[:, 1] + 1.5 * x[:, 2] - 6.5) > torch.tensor(rng.random(len(x)))).long()
train, valid, test = (TensorDataset(x[part], y[part]) for part in (slice(0, 9000), slice(9000, 12_000), slice(12_000, None)))


class Plain(pl.LightningModule):
    """The plain way."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))

    def forward(self, features):
        return self.layers(features)

    def training_step(self, batch, _):
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 3e-3)


class Adaptive(AdaptiveModuleMixin, Plain):
    """The mixin's steps take the place of `training_step`."""


def fit(model, loader, validation=None, callbacks=None):
    """Train; the logits (n, 2) of the test rows."""
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(max_epochs=EPOCHS, accelerator="cpu", callbacks=callbacks, **quiet)
    trainer.fit(model, loader, validation)
    with torch.no_grad():
        return model(test.tensors[0])


pl.seed_everything(0, verbose=False)
logits = fit(Plain(), DataLoader(train, batch_size=100, shuffle=True))
print(f"plain    average precision {average_precision_score(test.tensors[1], logits.softmax(1)[:, 1]):.3f}")

pl.seed_everything(0, verbose=False)
sampler = AdaptiveSampler(train.tensors[1], epochs=EPOCHS, seed=0, compensated=True)
callback = AdaptiveCallback(sampler, restore_best=True)
logits = fit(Adaptive(), DataLoader(train, batch_size=100, sampler=sampler), DataLoader(valid, batch_size=1000), [callback])
probability = sampler.probabilities(logits)[:, 1]
print(f"adaptive average precision {average_precision_score(test.tensors[1], probability):.3f}, best epoch {sampler.best_epoch}")
print(f"mean probability {float(probability.mean()):.4f}, share of positives {float(test.tensors[1].float().mean()):.4f}")
