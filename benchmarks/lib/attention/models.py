"""Whole classifiers with sparse attention: their time over the dense one's, and scores per second by `step`; measures for attention.py.

A kernel's gain is not a model's: projections, feed-forward and norms cost the same whatever the attention. Here the classifier judges every transaction of
its histories at once, embedding and head included. To stream is compared with what a model without a state must do for each new transaction: read the last n
again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from attention_timing import Call, claim, compared, interleaved, said

from balancer.models import Classifier, ModelConfig, SequenceBatch
from balancer.models.attention import Layout
from balancer.models.attention.functional import resolve

LAYERS, HEADS, WINDOW, GLOBALS = 4, 4, 64, 8
MOST_TOKENS, MOST_ROWS = 16_384, 8
"""In a batch: it has fewer rows where histories are long."""
NUMERIC, CODES = 6, (20, 50)
WANTED = 3.2
CARDS, TURNS = 32, 16
"""Streaming: cards that have a new transaction at once, and how many of them one after another make one timed call."""
SEED = 0


def classifier(attention: str, width: int, history: int, window: int = WINDOW, global_nodes: int = GLOBALS) -> Classifier:
    """A classifier over made-up fields, with seeded weights and no dropout; ``attention`` chooses its backend itself."""
    torch.manual_seed(SEED)
    edges = [list(np.linspace(-2, 2, 16))] * NUMERIC
    config = ModelConfig(
        tuple(f"numeric {number}" for number in range(NUMERIC)),
        tuple(f"code {number}" for number in range(len(CODES))),
        CODES,
        edges,
        history=history,
        d_model=width,
        num_heads=HEADS,
        num_layers=LAYERS,
        dropout=0.0,
        field_dropout=0.0,
        attention=attention,
        window=window,
        global_nodes=global_nodes,
        form="sequence",
    )
    return Classifier(config).eval()


def fields(rows: int, length: int) -> SequenceBatch:
    """Random transactions, all real."""
    rng = np.random.default_rng(SEED)
    codes = [rng.integers(0, size, (rows, length, 1)) for size in CODES]
    values = np.concatenate([rng.normal(size=(rows, length, NUMERIC)), *codes], axis=2)
    return SequenceBatch.from_windows(values.astype(np.float32), np.full(rows, length))


def every_target(rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and positions of all transactions."""
    return torch.arange(rows).repeat_interleave(length), torch.arange(length).repeat(rows)


def judging(model: Classifier, rows: int, length: int, passes: str) -> Call:
    """One pass over ``rows`` histories with every transaction judged, with its gradients if so asked."""
    batch, targets = fields(rows, length), every_target(rows, length)
    label = torch.arange(rows * length) % 2

    def forward() -> None:
        with torch.no_grad():
            model(batch, targets)

    def forward_backward() -> None:
        model.zero_grad(set_to_none=True)
        model.loss(model(batch, targets), label).backward()

    return forward if passes == "forward" else forward_backward


def taken(width: int, length: int, passes: str) -> str:
    """Name of the backend that `auto` takes; what it measures for that at first use isn't in the times."""
    with torch.set_grad_enabled(passes != "forward"):
        query = torch.empty(1, length, HEADS, width // HEADS, requires_grad=True)
        return resolve("auto", query, Layout(WINDOW, WINDOW), GLOBALS)


def model(lengths: Iterable[int], widths: Iterable[int], windows: Iterable[int], *, budget: float) -> dict[str, Any]:
    """The part ``model``: histories of ``lengths``, models of ``widths`` channels, streaming against reading ``windows`` transactions again.

    ``budget`` is in seconds for one length, width and kind of passes.
    """
    torch.set_num_threads(1)
    started = time.monotonic()
    cells = []
    for width in widths:
        for length in lengths:
            rows = max(1, min(MOST_ROWS, MOST_TOKENS // length))
            pair = {name: classifier(name, width, length) for name in ("dense", "sparse")}
            for passes in ("forward", "forward_backward"):
                backend = taken(width, length, passes)
                calls = {name: judging(own, rows, length, passes) for name, own in pair.items()}
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


def times_faster(shapes: Iterable[tuple[int, int]], history: int, *, budget: float) -> list[float]:
    """A whole classifier's forward pass, all transactions judged, against dense attention, for each pair of window and global nodes; in turns."""
    torch.set_num_threads(1)
    width, rows = 64, max(1, min(MOST_ROWS, MOST_TOKENS // history))
    names = {shape: f"{shape[0]} {shape[1]}" for shape in shapes}
    calls = {"dense": judging(classifier("dense", width, history), rows, history, "forward")}
    calls |= {name: judging(classifier("sparse", width, history, *shape), rows, history, "forward") for shape, name in names.items()}
    found = compared(interleaved(calls, budget))["times_faster"]
    return [found[name] for name in names.values()]


def passed(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each width and kind of passes, whether a whole model gets 3.2 times faster, and from which of the measured lengths on."""
    found = []
    for width, passes in dict.fromkeys((cell["width"], cell["passes"]) for cell in cells):
        own = [cell for cell in cells if (cell["width"], cell["passes"]) == (width, passes)]
        figures = {cell["tokens"]: cell["times_faster"]["sparse"] for cell in own}
        text = f"whole model, d {width}, {said(passes)}: at least {WANTED} times faster than dense at some measured length"
        # From a length on: there and at every longer one.
        at = [tokens for tokens in figures if all(figure >= WANTED for longer, figure in figures.items() if longer >= tokens)]
        found.append(claim(text, max(figures.values()), WANTED) | {"from_tokens": min(at, default=None)})
    return found


def streaming(width: int, windows: Iterable[int], *, budget: float) -> dict[str, Any]:
    """Scores per second of one new transaction on each of 32 cards: by `step`, and by reading the last n transactions again."""
    stream = fields(CARDS, 2 * WINDOW + GLOBALS).values
    stepping = classifier("sparse", width, stream.shape[1])
    state = stepping.init_state(CARDS)
    for position in range(stream.shape[1]):  # windows and global nodes are full before the clock runs
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
    scores = {name: CARDS * (TURNS if name == "step" else 1) / float(np.median(own)) for name, own in times.items()}
    return {"width": width, "cards": CARDS, "rounds": len(times["step"]), "scores_per_second": scores}


def _again(reader: Classifier, length: int) -> Call:
    """The last transaction of a window of ``length`` of each card judged."""
    batch = fields(CARDS, length)

    def read() -> None:
        with torch.no_grad():
            reader(batch)

    return read
