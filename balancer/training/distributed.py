"""The processes that train one run together: who leads, and what they exchange.

All processes run the same code on the same table. The leader alone writes files, prints, and does what can't
be divided, while the others wait and then read what it wrote. Gradients and scores are computed in parts and
summed. ``torchrun`` or Ray starts the processes; a plain run has one (`ALONE`) and exchanges nothing.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch

from balancer.errors import InputError, LostWorkerError, UnsupportedError

WAIT = timedelta(days=7)
"""Longest wait for another process: the leader may fit trees and learn a policy for hours. A process that
ends is noticed at once, because its connection is closed."""
JOIN = timedelta(minutes=10)
"""Longest wait at the start until all processes have been started."""
POLL_SECONDS = 0.05
BACKEND = "cpu:gloo,cuda:nccl"
"""Tensors on CPUs are exchanged with gloo, and those on CUDA devices with NCCL."""

Result = TypeVar("Result")


class Workers:
    """This process as one of ``size`` that train a run together.

    With more than one, ``torch.distributed`` is initialized, and every method must be called by all of them
    in the same order.

    Args:
        rank: Number of this process, from 0 on.
        size: Number of processes.
        together: Whether a launcher for several processes started them; then a run is divided so that another
            number of processes can continue it, even if this is the only one.
        again: Whether they were started again, because one of them had ended.
    """

    def __init__(self, rank: int = 0, size: int = 1, *, together: bool = False, again: bool = False) -> None:
        self.rank, self.size, self.together, self.again = rank, size, together, again

    @property
    def leads(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def lead(self, work: Callable[[], Result]) -> Result | None:
        """Call a function in the leader, while the other processes wait.

        Returns:
            Its result; None in the other processes.

        Raises:
            InputError: The function raised one; the other processes get the same text.
        """
        if self.size == 1:
            return work()
        if not self.leads:
            failed = self._from_leader({})
            if "error" in failed:
                raise InputError(failed["error"])
            return None
        try:
            result = work()
        except Exception as error:
            self._from_leader({"error": str(error) if isinstance(error, InputError) else f"worker 0 failed: {error!r}"})
            raise
        self._from_leader({})
        return result

    def each(self, work: Callable[[], Result]) -> Result:
        """Call a function in every process.

        Raises:
            InputError: It raised one in some process; the others get the text of the first of these.
        """
        if self.size == 1:
            return work()
        failed, results = None, []
        try:
            results.append(work())
        except InputError as error:
            failed = error
        texts = self._of_each(None if failed is None else str(failed))
        if failed is not None:
            raise failed
        first = next((rank for rank, text in enumerate(texts) if text is not None), None)
        if first is not None:
            raise InputError(f"worker {first}: {texts[first]}")
        return results[0]

    def agreed(self, value: Any) -> Any:
        """The leader's value, for all; it must be a JSON value."""
        return value if self.size == 1 else self._from_leader({"value": value})["value"]

    def all_same(self, value: str) -> bool:
        """Whether all processes have the same text."""
        return self.size == 1 or len(set(self._of_each(value))) == 1

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replace a tensor by its sum over all processes, in place, and return it."""
        if self.size > 1:
            with _exchange() as dist:
                dist.all_reduce(tensor)
        return tensor

    def added(self, scores: np.ndarray) -> np.ndarray:
        """The sum of arrays of which each process has computed a part, with zeros elsewhere.

        A sum with zeros is exact, so the result has the same bits for every number of processes.
        """
        return scores if self.size == 1 else self.add(torch.from_numpy(scores)).numpy()

    def stacked(self, tensor: torch.Tensor) -> torch.Tensor:
        """Stack the tensors (...) of all processes, which have the same shape: (W, ...)."""
        if self.size == 1:
            return tensor[None]
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        with _exchange() as dist:
            dist.all_gather(parts, tensor)
        return torch.stack(parts)

    def _from_leader(self, content: dict[str, Any]) -> dict[str, Any]:
        """The leader's ``content``; what the others give is ignored."""
        packed = _packed(json.dumps(content))
        length = torch.tensor(len(packed))
        with _exchange() as dist:
            dist.broadcast(length, 0)
            if not self.leads:
                packed = torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(packed, 0)
        received: dict[str, Any] = json.loads(bytes(packed.numpy()).decode())
        return received

    def _of_each(self, value: str | None) -> list[str | None]:
        """The texts of all processes by rank."""
        packed = _packed(json.dumps(value))
        lengths = self.stacked(torch.tensor(len(packed))).tolist()
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(packed)] = packed
        return [json.loads(bytes(row[:length].numpy()).decode()) for row, length in zip(self.stacked(padded), lengths, strict=True)]


ALONE = Workers()
"""A plain run: one process."""


@contextmanager
def joined_workers(device: str) -> Iterator[Workers]:
    """Join the processes that ``torchrun`` started, until the block ends.

    Args:
        device: Value of ``--device``. On CUDA every process of a machine gets a device of its own.

    Raises:
        UnsupportedError: There are fewer CUDA devices than processes on this machine.
    """
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    use_device(device)
    on_cuda = device != "cpu" and torch.cuda.is_available()
    store, rank, size = next(rendezvous("env://", timeout=JOIN))
    again = rank == 0 and store.check([_STARTED])
    store.set(_STARTED, "")
    dist.init_process_group(
        BACKEND if on_cuda else "gloo", store=_store_of_this_start(store, rank, size), rank=rank, world_size=size, timeout=WAIT
    )
    try:
        workers = initialized_workers()
        workers.again = workers.agreed(again)
        yield workers
    finally:
        dist.destroy_process_group()


_STARTED = "balancer/started"
"""Key in the launcher's store; it is there only if processes of the same job were started before."""


def _store_of_this_start(store: Any, rank: int, size: int) -> Any:
    """A part of the launcher's store that only the processes of this start use.

    The store of ``torchrun`` outlives its processes. After a restart a process could otherwise read the
    address of one that has ended. The number of restarts is no name for a start, because every machine counts
    its own. So each process shows a random number, and the first one gives the start a name when it has seen
    all numbers.

    Args:
        store: The launcher's store.
        rank: Number of this process.
        size: Number of processes.
    """
    from torch.distributed.distributed_c10d import PrefixStore

    own, meeting, others = secrets.token_hex(8), PrefixStore("balancer/meeting", store), range(1, size)
    meeting.set(f"number/{rank}", own)
    if rank == 0:
        name = own
        while True:
            # A number may be of a process that has ended, until its successor has shown its own.
            numbers = {str(other): meeting.get(f"number/{other}").decode() for other in others}
            meeting.set("start", json.dumps({"name": name, "numbers": numbers}))
            if all(meeting.check([f"{name}/{other}"]) for other in others):
                break
            time.sleep(POLL_SECONDS)
    else:
        while (start := json.loads(meeting.get("start")))["numbers"].get(str(rank)) != own:
            time.sleep(POLL_SECONDS)
        name = start["name"]
        meeting.set(f"{name}/{rank}", "")
    return PrefixStore(f"balancer/{name}", store)


def initialized_workers() -> Workers:
    """The processes of the group that ``torch.distributed`` has been initialized with."""
    import torch.distributed as dist

    return Workers(dist.get_rank(), dist.get_world_size(), together=True)


def use_device(device: str) -> None:
    """Choose the CUDA device of this process by its number on this machine; without effect on a CPU.

    Raises:
        UnsupportedError: There are fewer CUDA devices than processes on this machine.
    """
    if device == "cpu" or not torch.cuda.is_available():
        return
    number, devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if local > devices:
        raise UnsupportedError(
            f"{local} processes share this machine's {devices} CUDA devices: start at most one for each device, or use --device cpu"
        )
    torch.cuda.set_device(number)


@contextmanager
def _exchange() -> Iterator[Any]:
    """``torch.distributed``, whose errors become those of a lost process.

    Raises:
        LostWorkerError: The exchange failed.
    """
    import torch.distributed as dist

    try:
        yield dist
    except RuntimeError as error:
        raise LostWorkerError(
            f"the connection to another worker is lost ({' '.join(str(error).split())[:200]}): continue the run with --resume"
        ) from error


def _packed(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
