"""A part of your own in the classifier.

A class with two methods replaces the attention of the classifier. This one has no attention weights: each
position is a weighted mean of itself and of earlier positions, with a decay for each channel that is
learned. `check_attention` tests a part; a failed check names the rule that was broken. Then the classifier
is trained with the package's `dense` attention and with the new part, with the same rows and steps.

What to see: the number of weights and the average precision of each. The label depends on how often one
kind of payment came lately, so a decaying mean suits it. Where one payment long ago decides, attention is
better.

    pip install 'balancer[train]' altair vl-convert-python
    python examples/own_part.py
"""

import altair as alt
import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import nn

from balancer import AdaptiveSampler
from balancer.models import Attention, Classifier, ModelConfig, SequenceBatch
from balancer.models.checks import check_attention

LENGTH = 12


class Decay(Attention):
    """Means of earlier positions that decay exponentially, each channel at its own rate."""

    def __init__(self, config):
        super().__init__()
        self.value = nn.Linear(config.d_model, config.d_model)
        self.out = nn.Linear(config.d_model, config.d_model)
        self.rate = nn.Parameter(torch.linspace(-3, 3, config.d_model))  # log-odds of the decay per position

    def forward(self, batch, *, last_only=False):
        position = torch.arange(batch.values.shape[1])
        age = (position[:, None] - position)[..., None]  # (n, n, 1); negative for later positions
        weight = torch.where(age >= 0, torch.sigmoid(self.rate) ** age.clamp(min=0), 0)
        mixed = torch.einsum("ijd,bjd->bid", weight / weight.sum(1, keepdim=True), self.value(batch.values))
        whole = batch.with_values(self.out(mixed))
        return whole.last() if last_only else whole


check_attention(Decay)
print("check_attention: passed")

rng = np.random.default_rng(0)
amount, kind = rng.normal(size=(8000, LENGTH)), rng.integers(1, 5, (8000, LENGTH))
lately = ((kind == 2) * 0.7 ** np.arange(LENGTH)[::-1]).sum(1)  # the last position counts most
y = (rng.random(8000) < 1 / (1 + np.exp(9.5 - 4.5 * lately - amount[:, -1]))).astype(int)
x = torch.tensor(np.stack([amount, kind], axis=2), dtype=torch.float32)
lengths = torch.full((8000,), LENGTH)
train, valid, test = np.arange(3000), np.arange(3000, 4000), np.arange(4000, 8000)
print(f"share of positives: {y[test].mean():.4f}")

curves = []
for name, attention in (("dense", None), ("Decay", Decay)):  # None: that of the configuration, dense
    torch.manual_seed(0)
    sizes = {"d_model": 16, "num_heads": 2, "num_layers": 1, "dropout": 0.0, "field_dropout": 0.0, "history_length": LENGTH}
    model = Classifier(ModelConfig(("amount",), ("kind",), (5,), ([-1.0, 0.0, 1.0],), **sizes), attention=attention)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    sampler = AdaptiveSampler(y[train], epochs=6, seed=0, compensated=True)
    for epoch in range(6):
        model.train()
        for rows in torch.tensor(list(sampler)).split(100):
            optimizer.zero_grad()
            sampler.loss(model(SequenceBatch.from_windows(x[rows], lengths[rows])), torch.tensor(y)[rows]).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            probability = sampler.probabilities(model(SequenceBatch.from_windows(x, lengths)))
        sampler.update(y[valid], probability[valid])
        curves.append({"epoch": epoch + 1, "average precision": average_precision_score(y[test], probability[test, 1]), "attention": name})
    weights = sum(value.numel() for value in model.parameters())
    print(f"{name:8} {weights} weights   average precision {curves[-1]['average precision']:.3f}")

alt.Chart(alt.Data(values=curves)).mark_line(point=True).encode(
    x=alt.X("epoch:Q").axis(tickMinStep=1),
    y=alt.Y("average precision:Q").title("average precision, test rows"),
    color=alt.Color("attention:N").sort(None).legend(orient="bottom"),
).properties(width=360, height=220).save("own_part.svg")
