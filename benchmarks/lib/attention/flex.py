"""`flex_attention` of this package against torch's functions on a CPU: time, memory and error, by mask.

A time is the median of the processor seconds of rounds in which every contender runs once (see
``benchmarks.lib.timing``), with one thread: other work on the machine hardly changes them. Block masks and
boolean masks are made before, and so are compiled functions; what that takes is recorded beside.
"""

from __future__ import annotations

import math
import multiprocessing
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask
from torch.nn.attention.flex_attention import flex_attention as of_torch

from balancer.models.attention import flex_attention, flex_native
from balancer.models.attention.flex import prepare_block_mask
from benchmarks.lib.timing import PASSES, Call, interleaved

Mask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
OURS = "balancer"
NO_BACKWARD = ("torch flex, eager", "torch flex, compiled")
CONTENDERS = (OURS, "SDPA, is_causal", "SDPA, boolean mask", *NO_BACKWARD)


@cache
def compiled() -> Any:
    """Return torch's function, compiled for the same instructions as the kernel."""
    options: dict[str, Any] = {"cpp.simdlen": {"avx512": 512, "avx2": 256}.get(instructions())}
    return torch.compile(of_torch, dynamic=False, options=options)


@dataclass(frozen=True)
class Setting:
    """Sizes and seed of the inputs; the same for all contenders."""

    batch: int = 1
    heads: int = 4
    width: int = 64
    """Channels of a head."""
    seed: int = 0

    def inputs(self, length: int) -> tuple[list[Tensor], Tensor]:
        """Leaves query, key and value, and a gradient of the output, (B, H, n, E) each."""
        generator = torch.Generator().manual_seed(self.seed + length)
        *leaves, gradient = (torch.randn(self.batch, self.heads, length, self.width, generator=generator) for _ in range(4))
        return [leaf.requires_grad_() for leaf in leaves], gradient


def functions(length: int) -> dict[str, Mask]:
    """The masks by name, for sequences of a length."""
    document = torch.arange(length) * 8 // length
    return {
        "causal": lambda b, h, q, k: q >= k,
        "sliding 256": lambda b, h, q, k: (q >= k) & (q - k < 256),
        "8 documents": lambda b, h, q, k: (q >= k) & (document[q] == document[k]),
        "prefix 128": lambda b, h, q, k: (q >= k) | (k < 128),
        "global nodes": lambda b, h, q, k: (q >= k) & ((q - k < 64) | (k < 16)),
    }


MASKS = tuple(functions(8))


@dataclass
class Problem:
    """One mask of one length."""

    name: str
    length: int
    setting: Setting

    def __post_init__(self) -> None:
        self.function = functions(self.length)[self.name]
        self.leaves, self.gradient = self.setting.inputs(self.length)
        started = time.process_time()
        self.block_mask: BlockMask = create_block_mask(self.function, None, None, self.length, self.length, device="cpu")
        made = time.process_time()
        prepare_block_mask(self.block_mask)
        self.seconds = {"create_block_mask": made - started, "plan": time.process_time() - made}

    @cache  # noqa: B019 (a problem lives as long as the process)
    def dense_mask(self) -> Tensor:
        """The mask as bool (1, 1, n, n)."""
        return create_mask(self.function, 1, 1, self.length, self.length, device="cpu")

    def __hash__(self) -> int:
        return id(self)

    def attend(self, contender: str, leaves: list[Tensor]) -> Tensor:
        """Compute the output of a contender."""
        query, key, value = leaves
        if contender == OURS:
            out: Tensor = flex_attention(query, key, value, block_mask=self.block_mask)
            return out
        if contender == "SDPA, is_causal":
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)
        if contender == "SDPA, boolean mask":
            return F.scaled_dot_product_attention(query, key, value, attn_mask=self.dense_mask())
        function: Any = of_torch if contender == "torch flex, eager" else compiled()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it should be compiled
            theirs: Tensor = function(*(x.detach() for x in leaves), block_mask=self.block_mask)
        return theirs

    def call(self, contender: str, passes: str) -> Call:
        """Return a call of a contender without gradients, or with those of all inputs."""

        def forward() -> None:
            with torch.no_grad():
                self.attend(contender, self.leaves)

        def forward_backward() -> None:
            torch.autograd.grad(self.attend(contender, self.leaves), self.leaves, self.gradient)

        return forward if passes == "forward" else forward_backward

    def contenders(self, passes: str) -> list[str]:
        """Return who can compute it; dense causal attention is timed for every mask, for comparison."""
        return [name for name in CONTENDERS if passes == "forward" or name not in NO_BACKWARD]


def instructions() -> str:
    """Return the instruction set that the kernel uses here."""
    best = flex_native.instruction_set()
    return "none" if best is None else flex_native.INSTRUCTION_SETS[best]


def cell(name: str, length: int, *, budget: float) -> dict[str, Any]:
    """Measure one mask at one length.

    Args:
        name: one of `MASKS`.
        length: number of tokens.
        budget: seconds for timing one kind of passes; three rounds are made in any case.

    Returns:
        Milliseconds, how many times faster than each contender, and the error up to 2,048 tokens.
    """
    torch.set_num_threads(1)
    problem = Problem(name, length, Setting())
    found: dict[str, Any] = {
        "mask": name,
        "tokens": length,
        "blocks_visited": round(1 - float(problem.block_mask.sparsity()) / 100, 4),
        "milliseconds_once": {key: 1000 * value for key, value in problem.seconds.items()},
    }
    started = time.process_time()
    problem.call("torch flex, compiled", "forward")()
    found["milliseconds_once"]["compile torch flex"] = 1000 * (time.process_time() - started)
    for passes in PASSES:
        calls = {contender: problem.call(contender, passes) for contender in problem.contenders(passes)}
        times = interleaved(calls, budget, clock=_processor_seconds)
        ours = np.array(times[OURS])
        found[passes] = {
            "rounds": len(ours),
            "milliseconds": {key: 1000 * float(np.median(values)) for key, values in times.items()},
            "times_faster_than": {key: float(np.median(np.array(values) / ours)) for key, values in times.items() if key != OURS},
        }
        found[passes]["times_faster_than"] |= {} if passes == "forward" else dict.fromkeys(NO_BACKWARD, "no backward")
    if length <= 2048:
        found["errors"] = errors(problem)
    return found


def _processor_seconds(call: Call) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


def errors(problem: Problem) -> dict[str, float]:
    """Return the largest errors: of the output absolute, of a gradient relative to its largest number.

    The truth is dense attention in float64; the outputs are compared with torch's too.
    """
    exact = [x.detach().double().requires_grad_() for x in problem.leaves]
    scores = exact[0] @ exact[1].mT / math.sqrt(problem.setting.width)
    expected = scores.masked_fill(~problem.dense_mask(), -math.inf).softmax(-1) @ exact[2]
    wanted = torch.autograd.grad(expected, exact, problem.gradient.double())
    out = problem.attend(OURS, problem.leaves)
    found = torch.autograd.grad(out, problem.leaves, problem.gradient)
    theirs, out, expected = problem.attend("torch flex, eager", problem.leaves), out.detach(), expected.detach()
    return {
        "output": float((out - expected).abs().max()),
        "output of torch": float((theirs - expected).abs().max()),
        "output against torch": float((out - theirs).abs().max()),
        "gradients": max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted, strict=True)),
    }


def memory(name: str, length: int) -> dict[str, Any]:
    """Measure how far the memory of a child process grows in one computation, in MiB for each contender.

    Inputs and masks are not counted. A value is None where the operating system does not report it.
    """
    found: dict[str, Any] = {"mask": name, "tokens": length}
    for passes in PASSES:
        found[passes] = {}
        for contender in CONTENDERS:
            if passes == "forward" or contender not in NO_BACKWARD:
                with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver")) as child:
                    found[passes][contender] = child.submit(partial(_peak, name, length, contender, passes)).result()
    return found


def _peak(name: str, length: int, contender: str, passes: str) -> float | None:
    torch.set_num_threads(1)
    if contender != "torch flex, compiled":  # it is compiled for one length
        Problem(name, 256, Setting()).call(contender, passes)()
    problem = Problem(name, length, Setting())
    if contender == "SDPA, boolean mask":
        problem.dense_mask()
    call = problem.call(contender, passes)
    if contender == "torch flex, compiled":
        call()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the recorded peak
    except OSError:
        return None
    before = _status("VmRSS")
    call()
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> float:
    """Value of a line of /proc/self/status, in KiB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return float(line.split()[1])


def summary(setting: Setting = Setting()) -> dict[str, Any]:
    """Return what all cells have in common."""
    return asdict(setting) | {"threads": 1, "dtype": "float32", "block": 128}
