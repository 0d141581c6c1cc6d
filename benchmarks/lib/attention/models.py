"""Whole classifiers: time with sparse attention against dense attention, and speed of streaming.

A faster kernel does not make a whole model faster by the same factor: projections, feed-forward layers and
norms take the same time with any attention. Here the classifier scores every transaction of its histories at
once, embedding and head included. Streaming is compared with what a model without a state must do for each
new transaction: read the last n transactions again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from balancer.models import Classifier, ModelConfig, SequenceBatch
from balancer.models.attention import Layout
from balancer.models.attention.functional import resolve
from benchmarks.lib.checks import claim
from benchmarks.lib.timing import Call, compared, in_words, interleaved

LAYERS, HEADS, WINDOW, GLOBALS = 4, 4, 64, 8
MOST_TOKENS, MOST_ROWS = 16_384, 8
"""Limits of a batch: it has fewer rows when histories are long."""
NUMERIC, CODES = 6, (20, 50)
WANTED = 3.2
"""Claim: at some length a whole model is at least this many times faster than with dense attention."""
CARDS, TURNS = 32, 16
"""Streaming: cards that get a new transaction at the same time, and how many steps one timed call makes."""
SEED = 0


def classifier(attention: str, width: int, history_length: int, window: int = WINDOW, global_nodes: int = GLOBALS) -> Classifier:
    """A classifier over invented fields, with seeded weights and without dropout."""
    torch.manual_seed(SEED)
    edges = [list(np.linspace(-2, 2, 16))] * NUMERIC
    config = ModelConfig(
        tuple(f"numeric {number}" for number in range(NUMERIC)),
        tuple(f"code {number}" for number in range(len(CODES))),
        CODES,
        edges,
        history_length=history_length,
        d_model=width,
        num_heads=HEADS,
        num_layers=LAYERS,
        dropout=0.0,
        field_dropout=0.0,
        attention=attention,
        attention_window=window,
        global_nodes=global_nodes,
        form="histories",
    )
    return Classifier(config).eval()


def fields(rows: int, length: int) -> SequenceBatch:
    """Random transactions; none of them is padding."""
    rng = np.random.default_rng(SEED)
    codes = [rng.integers(0, size, (rows, length, 1)) for size in CODES]
    values = np.concatenate([rng.normal(size=(rows, length, NUMERIC)), *codes], axis=2)
    return SequenceBatch.from_windows(values.astype(np.float32), np.full(rows, length))


def every_target(rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and positions of all transactions, (rows * length,) each."""
    return torch.arange(rows).repeat_interleave(length), torch.arange(length).repeat(rows)


def scoring(model: Classifier, rows: int, length: int, passes: str) -> Call:
    """One pass over ``rows`` histories in which every transaction is scored."""
    batch, targets = fields(rows, length), every_target(rows, length)
    label = torch.arange(rows * length) % 2

    def forward() -> None:
        with torch.no_grad():
            model(batch, targets)

    def forward_backward() -> None:
        model.zero_grad(set_to_none=True)
        model.loss(model(batch, targets), label).backward()

    return forward if passes == "forward" else forward_backward


def chosen_backend(width: int, length: int, passes: str) -> str:
    """Name of the backend that `auto` chooses, after the measurements of its first use."""
    with torch.set_grad_enabled(passes != "forward"):
        query = torch.empty(1, length, HEADS, width // HEADS, requires_grad=True)
        return resolve("auto", query, Layout(WINDOW, WINDOW), GLOBALS)


def model(lengths: Iterable[int], widths: Iterable[int], windows: Iterable[int], *, budget: float) -> dict[str, Any]:
    """Measure the part ``model``.

    Args:
        lengths: lengths of the histories.
        widths: channels of the models.
        windows: streaming is compared with reading this many last transactions again.
        budget: seconds for one length, width and kind of passes.

    Returns:
        The part as it is recorded: setting, cells, claims, streaming and seconds.
    """
    torch.set_num_threads(1)
    started = time.monotonic()
    cells = []
    for width in widths:
        for length in lengths:
            rows = max(1, min(MOST_ROWS, MOST_TOKENS // length))
            pair = {name: classifier(name, width, length) for name in ("dense", "sparse")}
            for passes in ("forward", "forward_backward"):
                backend = chosen_backend(width, length, passes)
                calls = {name: scoring(each, rows, length, passes) for name, each in pair.items()}
                times = compared(interleaved(calls, budget))
                cells.append({"width": width, "tokens": length, "rows": rows, "passes": passes, "backend": backend} | times)
                print(cells[-1], flush=True)
    return {
        "setting": {
            "layers": LAYERS,
            "heads": HEADS,
            "window": WINDOW,
            "global_nodes": GLOBALS,
            "threads": torch.get_num_threads(),
            "seed": SEED,
        },
        "cells": cells,
        "claims": passed(cells),
        "streaming": streaming(min(widths), windows, budget=budget),
        "seconds": round(time.monotonic() - started),
    }


def times_faster(shapes: Iterable[tuple[int, int]], history_length: int, *, budget: float) -> list[float]:
    """How many times faster than with dense attention a forward pass is, by window and global nodes.

    Every transaction is scored. All pairs are timed in turns, in ``budget`` seconds altogether.
    """
    torch.set_num_threads(1)
    width, rows = 64, max(1, min(MOST_ROWS, MOST_TOKENS // history_length))
    names = {shape: f"{shape[0]} {shape[1]}" for shape in shapes}

    def call(attention: str, *shape: int) -> Call:
        return scoring(classifier(attention, width, history_length, *shape), rows, history_length, "forward")

    calls = {"dense": call("dense")} | {name: call("sparse", *shape) for shape, name in names.items()}
    found = compared(interleaved(calls, budget))["times_faster"]
    return [found[name] for name in names.values()]


def passed(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Check whether a whole model gets 3.2 times faster, and from which measured length on."""
    found = []
    for width, passes in dict.fromkeys((cell["width"], cell["passes"]) for cell in cells):
        chosen = [cell for cell in cells if (cell["width"], cell["passes"]) == (width, passes)]
        figures = {cell["tokens"]: cell["times_faster"]["sparse"] for cell in chosen}
        text = f"whole model, d {width}, {in_words(passes)}: at least {WANTED} times faster than dense at some measured length"
        # From a length on: at this length and at every longer one.
        at = [tokens for tokens in figures if all(figure >= WANTED for longer, figure in figures.items() if longer >= tokens)]
        found.append(claim(text, max(figures.values()), WANTED) | {"from_tokens": min(at, default=None)})
    return found


def streaming(width: int, windows: Iterable[int], *, budget: float) -> dict[str, Any]:
    """Scores per second for one new transaction on each of 32 cards, by `step` and by reading again."""
    stream = fields(CARDS, 2 * WINDOW + GLOBALS).values
    stepping = classifier("sparse", width, stream.shape[1])
    state = stepping.init_state(CARDS)
    for position in range(stream.shape[1]):  # windows and global nodes are full before the timing starts
        _, state = stepping.step(stream[:, position], state)

    def step() -> None:
        nonlocal state
        for turn in range(TURNS):
            _, state = stepping.step(stream[:, turn], state)

    calls: dict[str, Call] = {"step": step}
    for length in windows:
        for name in ("dense", "sparse"):
            calls[f"{name}, {length} again"] = _again(classifier(name, width, length), length)
    times = interleaved(calls, 2 * budget)
    scores = {name: CARDS * (TURNS if name == "step" else 1) / float(np.median(seconds)) for name, seconds in times.items()}
    return {"width": width, "cards": CARDS, "rounds": len(times["step"]), "scores_per_second": scores}


def _again(reader: Classifier, length: int) -> Call:
    """Score the last transaction of each card by reading its last ``length`` transactions."""
    batch = fields(CARDS, length)

    def read() -> None:
        with torch.no_grad():
            reader(batch)

    return read
