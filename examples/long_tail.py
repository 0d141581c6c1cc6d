"""Long-tailed classes.

24 classes, the most frequent with 1,500 training rows and the rarest with 8. A network is trained with
plain shuffling and with the adaptive sampler, with the same first weights and steps. Each answers twice:
with probabilities of the stream as it is, and with those of equally frequent classes. For the plain network
the latter is logit adjustment: the logarithm of the class shares is subtracted.

What to see: accuracy in three groups of classes, by how many rows they have. Answers for equally frequent
classes help the tail much and cost accuracy on the stream as it is, for both networks. Logit adjustment is
a strong rival: over all classes the two are equal. It is ahead in the tail, and the sampler loses less on
the stream as it is.

    pip install balancer torch altair vl-convert-python
    python examples/long_tail.py
"""

import altair as alt
import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from balancer import AdaptiveSampler

CLASSES, EPOCHS = 24, 12
rng = np.random.default_rng(0)
count = np.round(1500 * (8 / 1500) ** (np.arange(CLASSES) / (CLASSES - 1))).astype(int)
centre = rng.normal(size=(CLASSES, 12)) * 1.1


def rows(numbers):
    """Features and classes, with this many rows of each class."""
    label = np.repeat(np.arange(CLASSES), numbers)
    features = centre[label] + rng.normal(size=(len(label), 12))
    return torch.tensor(features, dtype=torch.float32), torch.tensor(label)


(x, y), (x_valid, y_valid), (x_test, y_test) = rows(count), rows(np.maximum(count // 2, 4)), rows(np.full(CLASSES, 200))
groups = {"head, over 300 rows": count > 300, "middle": (count <= 300) & (count > 40), "tail, at most 40": count <= 40}
print(f"{len(y)} training rows; classes by group: " + ", ".join(f"{name} {inside.sum()}" for name, inside in groups.items()))

prior = torch.tensor(count / count.sum(), dtype=torch.float32)
points = []
for way in ("plain", "sampler"):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(12, 64), torch.nn.ReLU(), torch.nn.Linear(64, CLASSES))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    sampler = AdaptiveSampler(y, epochs=EPOCHS, seed=0, compensated=True)
    loader = DataLoader(TensorDataset(x, y), batch_size=128, **({"shuffle": True} if way == "plain" else {"sampler": sampler}))
    for _ in range(EPOCHS):
        for features, label in loader:
            optimizer.zero_grad()
            logits = model(features)
            loss = torch.nn.functional.cross_entropy(logits, label) if way == "plain" else sampler.loss(logits, label)
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            if way == "sampler":
                sampler.update(y_valid, sampler.probabilities(model(x_valid)))
            logits = model(x_test)
    if way == "plain":
        answers = {"plain": logits.argmax(1), "plain, logit adjustment": (logits - prior.log()).argmax(1)}
    else:
        answers = {
            "sampler": sampler.probabilities(logits).argmax(1),
            "sampler, equal classes": sampler.probabilities(logits, prior="balanced").argmax(1),
        }
    for name, answer in answers.items():
        right = (answer == y_test).reshape(CLASSES, 200).float().mean(1).numpy()  # accuracy of each class
        parts = "   ".join(f"{group.split(',')[0]} {right[inside].mean():.3f}" for group, inside in groups.items())
        print(f"{name:24} {parts}   all classes {right.mean():.3f}   the stream as it is {float(right @ prior.numpy()):.3f}")
        points += [{"group": group, "accuracy": float(right[inside].mean()), "way": name} for group, inside in groups.items()]

alt.Chart(alt.Data(values=points)).mark_bar().encode(
    x=alt.X("group:N").title(None).sort(None).axis(labelAngle=0),
    xOffset=alt.XOffset("way:N").sort(None),
    y="accuracy:Q",
    color=alt.Color("way:N").title(None).sort(None).legend(orient="bottom", columns=2),
).properties(width=380, height=240).save("long_tail.svg")
