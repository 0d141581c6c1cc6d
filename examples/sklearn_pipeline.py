"""In a pipeline of scikit-learn or imbalanced-learn.

Two ways to use the policy without a training loop. `AdaptiveResampler` stands in a pipeline of
imbalanced-learn, in the place of `RandomOverSampler`. `AdaptiveClassifier` takes a whole pipeline of
scikit-learn and corrects its probabilities. A random forest is trained in each case.

What to see: average precision (higher is better) and the Brier score (lower is better). Both over-samplers
spoil the probabilities, the adaptive one too: a pipeline resamples only while it is fitted, so nothing
corrects the scores afterwards. The classifier corrects them. The plain forest is the best here: on small
tables the choice of sampling hardly matters, and this example shows how to use the classes, not a gain.

    pip install 'balancer[imblearn]' altair vl-convert-python
    python examples/sklearn_pipeline.py
"""

import altair as alt
from imblearn.over_sampling import RandomOverSampler
from imblearn.pipeline import make_pipeline as make_imblearn_pipeline
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import average_precision_score, brier_score_loss
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from balancer import AdaptiveClassifier, AdaptiveResampler

x, y = make_classification(9000, n_features=10, n_informative=6, weights=[0.97], flip_y=0.01, class_sep=0.7, random_state=0)
x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.5, stratify=y, random_state=0)
print(f"{len(y_train)} rows to train on, {y_train.sum()} of them positive")


def forest():
    """The same forest for each way."""
    return RandomForestClassifier(60, min_samples_leaf=3, random_state=0)


models = {
    "plain": make_pipeline(StandardScaler(), forest()),
    "RandomOverSampler": make_imblearn_pipeline(StandardScaler(), RandomOverSampler(random_state=0), forest()),
    "AdaptiveResampler": make_imblearn_pipeline(StandardScaler(), AdaptiveResampler(epochs=3, random_state=0), forest()),
    "AdaptiveClassifier": AdaptiveClassifier(make_pipeline(StandardScaler(), forest()), epochs=3, random_state=0),
}
results = []
for name, model in models.items():
    model.fit(x_train, y_train)
    probability = model.predict_proba(x_test)[:, 1]
    precision, brier = average_precision_score(y_test, probability), brier_score_loss(y_test, probability)
    print(f"{name:20} average precision {precision:.3f}   Brier score {brier:.4f}   mean probability {probability.mean():.4f}")
    results.append({"model": name, "average precision": precision, "Brier score (lower is better)": brier})
print(f"{'share of positives':20} {y_test.mean():.4f}")

bars = alt.Chart(alt.Data(values=results)).mark_bar().encode(y=alt.Y("model:N").title(None).sort(None)).properties(width=200, height=140)
(
    bars.encode(x=alt.X("average precision:Q"))
    | bars.encode(x="Brier score (lower is better):Q", y=alt.Y("model:N").title(None).sort(None).axis(labels=False))
).save("sklearn_pipeline.svg")
