"""What a step of a stream costs in C++ and in torch, in turns, on one core.

Claims: in every form and attention the native step takes at most a twentieth of the CPU time of torch's step,
its probabilities differ by at most 1e-6, and 32 rows of different histories in one call cost less than one by
one. With all layers in INT8 it takes at most 1.15 of its time in full precision. The weights are random: the
time does not depend on them.

    python -m benchmarks.claims.stream_step          # -> benchmarks/results/stream_step.json
    python -m benchmarks.claims.stream_step --quick  # short histories and few rounds, nothing is written
"""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from balancer.inference.streaming import STEP_VARIABLE, RowState, RowStream
from balancer.models import Classifier, ModelConfig
from balancer.models.quantization.layers import find_layers
from balancer.models.quantization.swapping import convert_layer, with_module
from balancer.models.step import INSTRUCTION_SETS, instruction_set
from benchmarks.lib.commands import parser
from benchmarks.lib.recording import RESULTS, record, rounded

NUMERIC, CATEGORICAL, BINS = 94, 3, 24
"""Fields and bins of the default detector."""
TOGETHER = 32
"""Histories whose rows are read in one call."""
CASES = (("rows", "dense", 8), ("histories", "sparse", 2048), ("histories", "window", 2048), ("histories", "dense", 2048))
"""Form, attention and history length."""


def classifier(form: str, attention: str, history_length: int) -> Classifier:
    """A model of the default size with random weights."""
    torch.manual_seed(0)
    return Classifier(
        ModelConfig(
            tuple(f"number{place}" for place in range(NUMERIC)),
            tuple(f"code{place}" for place in range(CATEGORICAL)),
            (40,) * CATEGORICAL,
            [np.linspace(-2, 2, BINS + 1, dtype=np.float32)] * NUMERIC,
            history_length=history_length,
            attention=attention,
            form=form,
            margin="number0",
        )
    ).eval()


def quantized(form: str, attention: str, history_length: int) -> Classifier:
    """The model of :func:`classifier` with every layer in INT8, whatever instructions the processor has."""
    model: torch.nn.Module = classifier(form, attention, history_length).requires_grad_(False)
    for layer in find_layers(model):
        for name, module in convert_layer(model, layer, "int8").items():
            model = with_module(model, name, module)
    assert isinstance(model, Classifier)
    return model


def compare_precisions(full: RowStream, low: RowStream, values: NDArray[np.float32], count: int) -> dict[str, float]:
    """CPU milliseconds of a native step of two models after `count` rows: medians of steps in turns.

    Each measured step follows another one of the same model.
    """
    both = {"full": full, "int8": low}
    states = {name: stream.read(values[stream.first_needed(count - 1) : count], count) for name, stream in both.items()}
    times: dict[str, list[float]] = {name: [] for name in both}
    for number, row in enumerate(values[count:]):
        for name in list(both)[:: 1 if number % 2 else -1]:
            _, state = both[name].advance(row, states[name])
            begun = time.thread_time()
            _, states[name] = both[name].advance(row, state)
            times[name].append(time.thread_time() - begun)
    return {name: 1e3 * statistics.median(every) for name, every in times.items()}


def streams(model: Classifier) -> dict[str, RowStream]:
    """A stream of each kind."""
    found = {}
    before = os.environ.get(STEP_VARIABLE)
    for name in ("torch", "native"):
        os.environ[STEP_VARIABLE] = name
        found[name] = RowStream(model, torch.device("cpu"))
    if before is None:
        del os.environ[STEP_VARIABLE]
    else:
        os.environ[STEP_VARIABLE] = before
    return found


def measure(form: str, attention: str, history_length: int, rounds: int) -> dict[str, Any]:
    """CPU milliseconds of a step after a whole history, and of a call for 32 histories: medians of rounds.

    In a round torch's step, the native step and the call follow one another, so each finds the caches as the
    others left them. `native_again_cpu_ms` is that of native steps of one history after one another, and the
    call of 32 histories is compared with 32 calls for as many histories.
    """
    both = streams(classifier(form, attention, history_length))
    rng = np.random.default_rng(0)
    count = history_length + history_length // 4
    values = rng.normal(size=(count + rounds, NUMERIC + CATEGORICAL)).astype(np.float32)
    values[:, NUMERIC:] = rng.integers(0, 40, (count + rounds, CATEGORICAL))
    first = both["native"].first_needed(count - 1)
    states: dict[str, RowState] = {name: stream.read(values[first:count], count) for name, stream in both.items()}
    many, others = ([both["native"].read(values[first:count], count) for _ in range(TOGETHER)] for _ in range(2))
    single: dict[str, list[float]] = {name: [] for name in both}
    together, apart, again, largest = [], [], [], 0.0
    for row in values[count:]:
        found: dict[str, NDArray[np.float32]] = {}
        for name, stream in both.items():
            begun = time.thread_time()
            found[name], states[name] = stream.advance(row, states[name])
            single[name].append(time.thread_time() - begun)
        block = np.repeat(row[None], TOGETHER, axis=0)
        begun = time.thread_time()
        probabilities, many = both["native"].advance_many(block, many)
        together.append((time.thread_time() - begun) / TOGETHER)
        assert (probabilities == found["native"]).all(), "a row depends on the others of its call"
        begun = time.thread_time()
        others = [both["native"].advance(row, state)[1] for state in others]
        apart.append((time.thread_time() - begun) / TOGETHER)
        largest = max(largest, float(np.abs(found["torch"] - found["native"]).max()))
    state = many[0]
    for row in values[count:]:
        begun = time.thread_time()
        _, state = both["native"].advance(row, state)
        again.append(time.thread_time() - begun)
    native = states["native"].native
    assert native is not None
    milliseconds = {name: 1e3 * statistics.median(times) for name, times in single.items()}
    precisions = compare_precisions(both["native"], streams(quantized(form, attention, history_length))["native"], values, count)
    return {
        "form": form,
        "attention": attention,
        "history_length": history_length,
        "rounds": rounds,
        "step_cpu_ms": milliseconds,
        "native_of_torch": milliseconds["native"] / milliseconds["torch"],
        "native_again_cpu_ms": 1e3 * statistics.median(again),
        "native_row_of_32_cpu_ms": {"in_one_call": 1e3 * statistics.median(together), "one_by_one": 1e3 * statistics.median(apart)},
        "native_cpu_ms_by_precision": precisions,
        "native_int8_of_full": precisions["int8"] / precisions["full"],
        "largest_difference_of_probabilities": largest,
        "state_bytes": len(native.to_bytes()),
    }


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--quick", action="store_true", help="short histories and few rounds, nothing is written")
    quick = options.parse_args(arguments).quick
    torch.set_num_threads(1)
    cells = []
    for form, attention, history_length in CASES:
        slow = form == "histories" and attention == "dense"  # torch reads the segment again for every row
        cells.append(measure(form, attention, min(history_length, 64) if quick else history_length, 5 if quick else 15 if slow else 300))
        cell = cells[-1]
        milliseconds = cell["step_cpu_ms"]
        print(
            f"{form} {attention}: torch {milliseconds['torch']:.3f} ms, native {milliseconds['native']:.4f} ms "
            f"({cell['native_of_torch']:.4f} of it); native steps one after another {cell['native_again_cpu_ms']:.4f} ms, "
            f"32 histories {cell['native_row_of_32_cpu_ms']['in_one_call']:.4f} ms a row in one call, "
            f"{cell['native_row_of_32_cpu_ms']['one_by_one']:.4f} one by one; INT8 {cell['native_int8_of_full']:.2f} of full precision"
        )
    best = instruction_set()
    result = {
        "instruction_set": None if best is None else INSTRUCTION_SETS[best],
        "cells": cells,
        "claims": {
            "at_most_.05_of_torch": all(cell["native_of_torch"] <= 0.05 for cell in cells),
            "int8_at_most_1.15_of_full_precision": all(cell["native_int8_of_full"] <= 1.15 for cell in cells),
            "differences_at_most_1e-6": all(cell["largest_difference_of_probabilities"] <= 1e-6 for cell in cells),
            "32_rows_cost_less_than_one_by_one": all(
                cell["native_row_of_32_cpu_ms"]["in_one_call"] < cell["native_row_of_32_cpu_ms"]["one_by_one"] for cell in cells
            ),
        },
    }
    if not quick:
        record(rounded(result, 4), RESULTS / "stream_step.json")


if __name__ == "__main__":
    main()
