"""LightGBM under the policy.

`AdaptiveClassifier` trains LightGBM with rows that count as a policy says, then corrects the probabilities
and tunes a threshold on held-out rows. It is compared with LightGBM as it is, and with `is_unbalance=True`,
which gives both classes the same weight.

What to see: `is_unbalance` spoils the log loss, and its ranking is no better. The adaptive classifier keeps
the probabilities, and its F1 is that of a tuned threshold. Its average precision is close to that of
LightGBM alone: boosted trees gain little from sampling.

    pip install 'balancer[sklearn]' altair vl-convert-python
    python examples/lightgbm_policy.py
"""

import altair as alt
import numpy as np
from lightgbm import LGBMClassifier
from sklearn.metrics import average_precision_score, f1_score, log_loss, precision_recall_curve

from balancer import AdaptiveClassifier

rng = np.random.default_rng(1)
x = rng.normal(size=(40_000, 10))
logit = 2 * x[:, 0] * x[:, 1] + 1.5 * np.abs(x[:, 2]) + x[:, 3] - 7
y = (rng.random(len(x)) < 1 / (1 + np.exp(-logit))).astype(int)
train, test = slice(0, 15_000), slice(15_000, 40_000)
print(f"{y[train].sum()} positives in 15,000 training rows")

trees = {"n_estimators": 120, "num_leaves": 8, "learning_rate": 0.08, "verbosity": -1, "n_jobs": 1, "random_state": 0}
models = {
    "LightGBM": LGBMClassifier(**trees),
    "LightGBM, is_unbalance": LGBMClassifier(is_unbalance=True, **trees),
    "AdaptiveClassifier": AdaptiveClassifier(LGBMClassifier(**trees), epochs=4, random_state=0),
}
curves = []
for name, model in models.items():
    model.fit(x[train], y[train])
    probability = model.predict_proba(x[test])[:, 1]
    print(
        f"{name:24} average precision {average_precision_score(y[test], probability):.3f}"
        f"   log loss {log_loss(y[test], probability):.4f}   F1 of predict {f1_score(y[test], model.predict(x[test])):.3f}"
    )
    precision, recall, _ = precision_recall_curve(y[test], probability)
    at = np.searchsorted(-recall, -np.linspace(0.02, 1, 50))  # recall falls along the curve
    curves += [{"recall": float(recall[i]), "precision": float(precision[i]), "model": name} for i in at]
adaptive = models["AdaptiveClassifier"]
print(f"threshold {adaptive.threshold_:.3f}, share of positives in the draws {adaptive.weights_.share[1]:.3f}")

alt.Chart(alt.Data(values=curves)).mark_line().encode(
    x="recall:Q",
    y="precision:Q",
    color=alt.Color("model:N").title(None).sort(None).legend(orient="bottom", columns=2),
).properties(width=360, height=240).save("lightgbm_policy.svg")
