"""The ranks of ``torch.distributed``, with gloo or nccl, and the place of a process among them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from balancer.errors import InputError, UnsupportedError
from balancer.sampling.core_view import HAS_TORCH
from balancer.sampling.inputs import whole_number
from balancer.sampling.ranks import Group, OneRank

if TYPE_CHECKING or HAS_TORCH:
    import torch


class TorchGroup:
    """Ranks of ``torch.distributed``.

    Tensors are exchanged where the backend takes them: with nccl on the current GPU, else in main memory.

    Args:
        group: Process group; None: the default one.

    Raises:
        InputError: This process is not in the group.
    """

    def __init__(self, group: Any = None) -> None:
        self._group = group
        self.rank = int(torch.distributed.get_rank(group))
        self.size = int(torch.distributed.get_world_size(group))
        if self.rank < 0:
            raise InputError("this process is not in the process group given as group; make the sampler on its ranks only")

    def __repr__(self) -> str:
        """Rank and number of ranks."""
        return f"TorchGroup(rank={self.rank} of {self.size})"

    def __deepcopy__(self, memo: dict[int, Any]) -> TorchGroup:
        """The same group: a process group can't be copied."""
        return self

    def sum(self, values: NDArray[Any]) -> NDArray[Any]:
        """As :meth:`Group.sum`."""
        tensor = torch.from_numpy(np.array(values)).to(self._device())
        torch.distributed.all_reduce(tensor, group=self._group)
        return np.asarray(tensor.cpu().numpy())

    def gather(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """As :meth:`Group.gather`; the arrays travel as bytes, padded to the longest."""
        device, own = self._device(), np.ascontiguousarray(values)
        sizes = torch.zeros(self.size, dtype=torch.int64, device=device)
        sizes[self.rank] = own.nbytes
        torch.distributed.all_reduce(sizes, group=self._group)
        lengths = sizes.tolist()
        padded = np.zeros(max(lengths), dtype=np.uint8)
        padded[: own.nbytes] = own.reshape(-1).view(np.uint8)
        if not len(padded):
            return [own] * self.size
        sent = torch.from_numpy(padded).to(device)
        received = [torch.empty_like(sent) for _ in lengths]
        torch.distributed.all_gather(received, sent, group=self._group)
        parts = (tensor[:length].cpu().numpy() for tensor, length in zip(received, lengths, strict=True))
        return [np.frombuffer(part.tobytes(), dtype=own.dtype).reshape(-1, *own.shape[1:]) for part in parts]

    def _device(self) -> torch.device:
        backend = str(torch.distributed.get_backend(self._group))
        if "gloo" in backend or "mpi" in backend or "nccl" not in backend:
            return torch.device("cpu")
        own = torch.distributed.group.WORLD if self._group is None else self._group
        bound = getattr(own, "bound_device_id", None)  # where init_process_group was given device_id
        return torch.device("cuda", torch.cuda.current_device()) if bound is None else torch.device(bound)


def is_distributed() -> bool:
    """Whether ``torch.distributed`` is initialised."""
    return HAS_TORCH and torch.distributed.is_available() and torch.distributed.is_initialized()


def place_of(rank: int | None, num_replicas: int | None, group: Any = None) -> tuple[int, int]:
    """Rank and number of ranks; where neither is given, those of the group or of ``torch.distributed``.

    Raises:
        InputError: Only one of them is given, the rank is out of range, or they are not those of ``group``.
    """
    if (rank is None) != (num_replicas is None):
        raise InputError("give rank and num_replicas together, or neither")
    given = as_group(group)
    if rank is None or num_replicas is None:
        found = TorchGroup() if given is None and is_distributed() else given
        return (0, 1) if found is None else (found.rank, found.size)
    replicas = whole_number(num_replicas, "num_replicas", 1)
    if whole_number(rank, "rank", 0) >= replicas:
        raise InputError(f"rank {rank} must be less than num_replicas, {replicas}")
    if given is not None and (given.rank, given.size) != (rank, replicas):
        raise InputError(f"group has rank {given.rank} of {given.size}, but rank={rank}, num_replicas={replicas} are given; leave them out")
    return int(rank), replicas


def as_group(group: Any) -> Group | None:
    """A :class:`Group` from one, or from a process group of torch; None stays None.

    Raises:
        UnsupportedError: ``torch.distributed`` is not initialised.
    """
    if group is None or isinstance(group, Group):
        return group
    if not is_distributed():
        raise UnsupportedError("group is given, but torch.distributed is not initialised; call init_process_group first")
    return TorchGroup(group)


def group_of(group: Group | None, rank: int, num_replicas: int) -> Group | None:
    """The ranks that a sampler exchanges scores with: ``group``, or the default group if it fits."""
    if group is not None or not is_distributed():
        return group
    found = TorchGroup()
    return found if (found.rank, found.size) == (rank, num_replicas) else None


def shard_group(rank: int | None, num_replicas: int | None, group: Any = None) -> Group:
    """The ranks that hold the shards of a table.

    Raises:
        InputError: There are several, but ``torch.distributed`` is not initialised, or has others.
    """
    place = place_of(rank, num_replicas, group)
    found = group_of(as_group(group), *place)
    if found is not None:
        return found
    if place[1] != 1:
        raise UnsupportedError("shards on several ranks need torch.distributed; call init_process_group with these ranks first")
    return OneRank()
