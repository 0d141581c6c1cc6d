"""Streaming data, without a table of labels.

Items come one by one, as from files or a queue; little more than 1 % are positive. `AdaptiveStream` reads
on, keeps a bounded number of items of each class, and hands out batches with the shares that the policy
sets. The plain way trains on the items as they come. Both get the same number of steps.

What to see: how many items of each class were read, drawn, and drawn again, and average precision on later
items. The price: for the same number of steps, more than three times as many items are read. So the plain
way is also given as many items as were read; it then takes more than three times as many steps.

    pip install balancer torch scikit-learn altair vl-convert-python
    python examples/streaming.py
"""

from itertools import islice

import altair as alt
import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch.utils.data import DataLoader, IterableDataset

from balancer import AdaptiveStream

EPOCHS, ITEMS, BATCH = 6, 3000, 100  # items that are trained on in an epoch


def items(seed):
    """Endless items: features (6,), and a label that is 1 for little more than 1 in 100."""
    rng = np.random.default_rng(seed)
    while True:
        x = rng.normal(size=(1000, 6)).astype("float32")
        chance = 1 / (1 + np.exp(7.5 - 2.2 * x[:, 0] * x[:, 1] - 1.5 * x[:, 2]))
        yield from zip(x, (rng.random(1000) < chance).astype(int), strict=True)


class Source(IterableDataset):
    """The stream, as a data set of torch."""

    def __iter__(self):
        return items(seed=1)


def held_out(seed, number):
    """Items of another seed, as arrays."""
    x, y = zip(*islice(items(seed), number), strict=True)
    return torch.tensor(np.array(x)), np.array(y)


def train(batches, loss, model, optimizer):
    """Train one step for each batch."""
    for features, label in batches:
        optimizer.zero_grad()
        loss(model(features), label).backward()
        optimizer.step()


def network():
    """A new network, with the same first weights each time."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    return model, torch.optim.Adam(model.parameters(), 3e-3)


(x_valid, y_valid), (x_test, y_test) = held_out(2, 8000), held_out(3, 20_000)
results = []


def evaluate(name, probability, read):
    """Print the figures of one way, and keep them for the picture."""
    precision = average_precision_score(y_test, probability[:, 1])
    print(f"{name:34} average precision {precision:.3f}   mean probability {float(probability[:, 1].mean()):.4f}   read {read}")
    results.append({"way": name, "average precision": precision})


model, optimizer = network()
stream = AdaptiveStream(Source(), classes=[0, 1], epochs=EPOCHS, num_samples=ITEMS, repeats=4, compensated=True, seed=0)
for _ in range(EPOCHS):
    train(DataLoader(stream, batch_size=BATCH), stream.loss, model, optimizer)
    with torch.no_grad():
        stream.update(y_valid, stream.probabilities(model(x_valid)))
with torch.no_grad():
    adaptive = stream.probabilities(model(x_test))
read = int(stream.seen.sum())
print(f"read {stream.seen.tolist()}, drawn {stream.kept.tolist()}, drawn again {stream.repeated.tolist()}")
print(f"estimated share of positives {stream.prior[1]:.4f}, share in the test items {y_test.mean():.4f}")

for name, number in (("plain, as many steps", EPOCHS * ITEMS), ("plain, as many items read", read)):
    model, optimizer = network()
    train(islice(DataLoader(Source(), batch_size=BATCH), number // BATCH), torch.nn.functional.cross_entropy, model, optimizer)
    with torch.no_grad():
        evaluate(name, model(x_test).softmax(1), number)
evaluate("AdaptiveStream", adaptive, read)

alt.Chart(alt.Data(values=results)).mark_bar().encode(x="average precision:Q", y=alt.Y("way:N").title(None).sort(None)).properties(
    width=360, height=100
).save("streaming.svg")
