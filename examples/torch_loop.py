"""The sampler in a plain torch loop.

A network is trained three times on a table with 3 % positive rows, with the same first weights and the same
number of steps. Once with plain shuffling, once with the usual over-sampling to 1:1, and once with the
adaptive sampler, which changes its weights after each epoch.

What to see: average precision on the test rows, and whether the mean probability is the share of positives.
Over-sampling by itself spoils the probabilities: they are far too high. Those of the sampler stay
calibrated, although it draws rare rows more often too. Plain shuffling is calibrated as well, and learns
more slowly.

    pip install balancer torch scikit-learn altair vl-convert-python
    python examples/torch_loop.py
"""

import altair as alt
import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from balancer import AdaptiveSampler

EPOCHS = 8
rng = np.random.default_rng(0)
x = torch.tensor(rng.normal(size=(36_000, 8)), dtype=torch.float32)
logit = 2.5 * x[:, 0] * x[:, 1] + 1.5 * x[:, 2] - 6.5
y = (torch.sigmoid(logit) > torch.tensor(rng.random(len(x)))).long()
train, valid, test = slice(0, 12_000), slice(12_000, 18_000), slice(18_000, 36_000)
data = TensorDataset(x[train], y[train])
print(f"share of positives: {y[test].float().mean():.4f}")

weight_of_row = torch.where(y[train] == 1, 1 / y[train].float().mean(), 1 / (1 - y[train].float().mean()))
curves = []
for way in ("plain shuffling", "over-sampling 1:1", "adaptive sampler"):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    sampler = None
    if way == "over-sampling 1:1":
        sampler = WeightedRandomSampler(weight_of_row, len(data))
    if way == "adaptive sampler":
        sampler = AdaptiveSampler(y[train], epochs=EPOCHS, seed=0)
    adaptive = isinstance(sampler, AdaptiveSampler)
    loader = DataLoader(data, batch_size=128, sampler=sampler, shuffle=sampler is None)
    for epoch in range(EPOCHS):
        for features, label in loader:
            optimizer.zero_grad()
            loss = sampler.loss if adaptive else cross_entropy
            loss(model(features), label).backward()
            optimizer.step()
        with torch.no_grad():
            logits = model(x)
        probability = sampler.probabilities(logits) if adaptive else logits.softmax(1)
        if adaptive:
            sampler.update(y[valid], probability[valid])
        precision = average_precision_score(y[test], probability[test, 1])
        curves.append({"epoch": epoch + 1, "average precision": precision, "way": way})
    print(f"{way:20} average precision {precision:.3f}   mean probability {float(probability[test, 1].mean()):.4f}")

lines = alt.Chart(alt.Data(values=curves)).mark_line(point=True)
lines.encode(
    x=alt.X("epoch:Q").axis(tickMinStep=1),
    y=alt.Y("average precision:Q").title("average precision, test rows").scale(zero=False),
    color=alt.Color("way:N").title(None).legend(orient="bottom", columns=2),
).properties(width=360, height=240).save("torch_loop.svg")
