"""Plans of block masks: which blocks of keys a block of queries visits, and bits for those it sees in part.

A plan is made once for each `BlockMask` of torch. `mask_mod` is evaluated on the partial blocks alone, some
at a time, so no matrix of all queries and keys is held. The plan is kept in the attribute `ATTRIBUTE` of the
`BlockMask` and lives as long as that.

A plan is one tensor, int64 (N,), so that it is an ordinary input of the operator in `flex_native.py`:

- eight numbers: batch and heads of the mask (1 or more), rows and columns of blocks, queries and keys of a
  block, words of a mask's row, entries;
- for the rows of blocks: where the entries of each begin, then of each entry the column, ascending, and the
  number of its mask, or -1 if all of the block is seen;
- the same for the columns of blocks, with rows in place of columns;
- the masks, (masks, keys of a block, words): bit i of word j is query 64 j + i of the block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from balancer.errors import InputError

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Numbers: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
ATTRIBUTE = "_balancer_plan"
HEADER = 8
WORD = 64
"""Queries of a word of a mask."""
AT_A_TIME = 1 << 22
"""Pairs of query and key for which `mask_mod` is evaluated in one call."""
OF_EACH = ((None, None, None, 0), (None, None, 0, None), (None, 0, None, None), (0, None, None, None))
"""Order of `mapped` for tensors of batch, head, query and key with one dimension each."""


@dataclass(frozen=True)
class Kept:
    """A plan, and what it was made of: any other mask function or list of blocks needs another plan."""

    mask_mod: Callable[..., Tensor]
    lists: tuple[Tensor | None, ...]
    versions: tuple[int, ...]
    sizes: tuple[int, ...]
    shape: tuple[int, int]
    """Batch and heads of the query."""
    spread: bool
    """Whether the plan is for this shape only."""
    plan: Tensor

    def is_of(self, block_mask: BlockMask, shape: tuple[int, int]) -> bool:
        """Return whether the plan is that of the mask as it is now."""
        same = all(a is b for a, b in zip(self.lists, _lists(block_mask), strict=True)) and self.mask_mod is block_mask.mask_mod
        return same and self.sizes == _sizes(block_mask) and self.versions == _versions(self.lists) and self.fits(shape)

    def fits(self, shape: tuple[int, int]) -> bool:
        """Return whether the plan can be used for a query with this batch and heads."""
        return not self.spread or self.shape == shape


def prepare_block_mask(block_mask: BlockMask) -> BlockMask:
    """Make the plan of a mask before it is used, and keep it in the mask.

    `flex_attention` does this in its first call with a mask. Call it where a compiled function gets a new
    mask in every step: a prepared mask is an ordinary input of the compiled function, any other would compile
    it again.

    Args:
        block_mask: mask on a CPU.

    Returns:
        The same mask.

    Raises:
        InputError: the lists of blocks contradict each other.
    """
    plan_of(block_mask)
    return block_mask


def plan_of(block_mask: BlockMask, shape: tuple[int, int] = (1, 1)) -> Tensor:
    """Return the plan of a mask, int64 (N,); it is made if the mask has none or has changed since.

    Args:
        block_mask: the mask.
        shape: batch and heads of the query.
    """
    kept: Kept | None = getattr(block_mask, ATTRIBUTE, None)
    if kept is None or not kept.is_of(block_mask, shape):
        lists = _lists(block_mask)
        plan, spread = made(block_mask, shape)
        kept = Kept(block_mask.mask_mod, lists, _versions(lists), _sizes(block_mask), shape, spread, plan)
        setattr(block_mask, ATTRIBUTE, kept)
    return kept.plan


def made(block_mask: BlockMask, shape: tuple[int, int]) -> tuple[Tensor, bool]:
    """Make the plan of a mask, int64 (N,), and say whether it is for this batch and heads only.

    It is made in a thread of its own, where no transformation of `torch.func` and no torch mode is active: a
    plan holds plain numbers even if the mask is first used inside one.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_made, block_mask, shape).result()


def _made(block_mask: BlockMask, shape: tuple[int, int]) -> tuple[Tensor, bool]:
    if getattr(block_mask.mask_mod, "__name__", "") == "_sliced_mask_mod_error":
        raise InputError("block_mask was sliced, which removes its mask_mod: set block_mask.mask_mod")
    query_length, key_length = block_mask.seq_lengths
    rows_of_block, keys_of_block = block_mask.BLOCK_SIZE
    height, width = min(rows_of_block, max(query_length, 1)), min(keys_of_block, max(key_length, 1))
    rows, columns = -(-query_length // height), -(-key_length // width)
    batch, heads, entries = _entries(block_mask, rows, columns)
    spread = False
    if np.any(entries[:, 4] == 0):
        # The lists may be for one batch entry or head where mask_mod asks for the true one, as in torch.
        by_batch, by_head = _arguments(block_mask.mask_mod)
        if by_batch and batch == 1:
            batch, entries, spread = shape[0], _repeated(entries, 0, shape[0]), True
        if by_head and heads == 1:
            heads, entries, spread = shape[1], _repeated(entries, 1, shape[1]), True
    words = -(-height // WORD)
    bits = np.zeros((0, width, words * WORD // 8), np.uint8)
    seen = np.full(len(entries), -1, np.int64)
    partial = np.flatnonzero(entries[:, 4] == 0)
    if len(partial):
        found = [
            _bits(block_mask.mask_mod, entries[chosen], (height, width), (query_length, key_length), words)
            for chosen in _chunks(partial, height * width)
        ]
        every, none, kept = (np.concatenate(each) for each in zip(*found, strict=True))
        # Blocks that are seen in full or not at all need no mask. Torch lists blocks at the end as partial.
        bits = kept
        number = np.cumsum(~every & ~none) - 1
        seen[partial] = np.where(every, -1, np.where(none, -2, number))
        entries, seen = entries[seen > -2], seen[seen > -2]
    masked = np.ascontiguousarray(bits).view(np.int64).reshape(-1)
    line = (entries[:, 0] * heads + entries[:, 1]) * rows + entries[:, 2]
    column = (entries[:, 0] * heads + entries[:, 1]) * columns + entries[:, 3]
    by_row, by_column = np.lexsort((entries[:, 3], line)), np.lexsort((entries[:, 2], column))
    content = [
        np.array([batch, heads, rows, columns, height, width, words, len(entries)], np.int64),
        *(_starts(line, batch * heads * rows), entries[by_row, 3], seen[by_row]),
        *(_starts(column, batch * heads * columns), entries[by_column, 2], seen[by_column]),
        masked,
    ]
    return torch.from_numpy(np.concatenate(content)), spread


def _entries(block_mask: BlockMask, rows: int, columns: int) -> tuple[int, int, Numbers]:
    """Return batch and heads of the mask, and its blocks (N, 5): batch, head, row, column, 1 if full."""
    found = []
    batch = heads = 1
    for count, index, full in (
        (block_mask.kv_num_blocks, block_mask.kv_indices, 0),
        (block_mask.full_kv_num_blocks, block_mask.full_kv_indices, 1),
    ):
        if count is None or index is None:
            continue
        counts, indices = _array(count), _array(index)
        counts, indices = (
            counts.reshape((1,) * (3 - counts.ndim) + counts.shape),
            indices.reshape((1,) * (4 - indices.ndim) + indices.shape),
        )
        if counts.shape[2] < rows or indices.shape[2] < rows:
            raise InputError(f"block_mask lists {counts.shape[2]} rows of blocks for {rows}: make it for these lengths")
        batch, heads = max(batch, indices.shape[0]), max(heads, indices.shape[1])
        listed = np.arange(indices.shape[3]) < counts[:, :, :rows, None]
        where = np.argwhere(listed)
        found.append(np.column_stack([where[:, :3], indices[:, :, :rows][listed], np.full(len(where), full)]).astype(np.int64))
    entries = np.concatenate(found)
    if len(entries) and entries[:, 3].min() < 0:
        raise InputError("block_mask lists a block of keys with a negative number: give numbers from 0")
    entries = entries[entries[:, 3] < columns]  # others have no key
    if len(np.unique(entries[:, :4], axis=0)) < len(entries):
        raise InputError("block_mask lists a block twice: list each block once, in kv_indices or in full_kv_indices")
    return batch, heads, entries


def _bits(
    mask_mod: Callable[..., Tensor],
    entries: Numbers,
    size: tuple[int, int],
    lengths: tuple[int, int],
    words: int,
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Evaluate a mask function on some blocks.

    Returns:
        Whether all of a block is seen, and whether none is, (N,) bool each; the bits of the others,
        (M, keys of a block, bytes) uint8.
    """
    queries = entries[:, 2, None] * size[0] + np.arange(size[0])
    keys = entries[:, 3, None] * size[1] + np.arange(size[1])
    # A captured tensor has no place for positions beyond the end.
    places = [torch.from_numpy(x) for x in (entries[:, 0], entries[:, 1], queries.clip(max=lengths[0] - 1), keys.clip(max=lengths[1] - 1))]
    inside = (queries < lengths[0])[:, :, None] & (keys < lengths[1])[:, None, :]
    mask = _array(evaluated(mask_mod, *places)) & inside
    every, none = np.all(mask == inside, axis=(1, 2)), ~np.any(mask, axis=(1, 2))
    chosen = mask[~every & ~none].transpose(0, 2, 1)
    padded = np.zeros((*chosen.shape[:2], words * WORD), bool)
    padded[:, :, : size[0]] = chosen
    return every, none, np.packbits(padded, axis=-1, bitorder="little")


def _repeated(entries: Numbers, column: int, times: int) -> Numbers:
    """Repeat entries for every batch entry (column 0) or head (column 1)."""
    repeated = np.repeat(entries, times, axis=0)
    repeated[:, column] = np.tile(np.arange(times), len(entries))
    return repeated


def _arguments(mask_mod: Callable[..., Tensor]) -> tuple[bool, bool]:
    """Return whether the value of a mask function depends on the batch, and whether on the head."""
    functions = torch._C._functorch
    found = [True, True]

    def traced(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        mask = inner = mask_mod(batch, head, query, key)
        levels = set()
        while functions.is_batchedtensor(inner):
            levels.add(functions.maybe_get_level(inner))
            inner = functions.get_unwrapped(inner)
        found[:] = [functions.maybe_get_level(x) in levels for x in (batch, head)]
        return mask

    first = torch.zeros(1, dtype=torch.int64)
    with torch.no_grad(), _Constants():
        mapped(traced, OF_EACH)(first, first, first, first)
    return found[0], found[1]


class _Constants(TorchFunctionMode):
    """Make constants that do not depend on the tensor whose method makes them.

    `and_masks` and `or_masks` of torch begin with `batch.new_ones(())`, which is no use of the batch.
    """

    FUNCTIONS = frozenset(
        {
            *(torch.Tensor.new_ones, torch.Tensor.new_zeros, torch.Tensor.new_full, torch.Tensor.new_tensor),
            *(torch.ones_like, torch.zeros_like, torch.full_like),
        }
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.FUNCTIONS and args:
            args = (torch.zeros(args[0].shape, dtype=args[0].dtype), *args[1:])
        return func(*args, **(kwargs or {}))


def mapped(function: Callable[..., Tensor], order: Iterable[Sequence[int | None]]) -> Callable[..., Tensor]:
    """Map a function of single numbers, a mask function or `score_mod`, over tensors.

    Args:
        function: the function.
        order: the mapped dimension of each argument, or None; for the last dimension of the result first.
    """
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    for dims in order:
        function = torch.vmap(function, in_dims=tuple(dims))

    def computed(*arguments: Tensor) -> Tensor:
        with TransformGetItemToIndex():  # a captured tensor may be indexed by mapped numbers
            return function(*arguments)

    return computed


def evaluated(mask_mod: Callable[..., Tensor], batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Evaluate a mask function for N blocks: batch and head (N,), queries (N, Q), keys (N, K).

    Returns:
        Whether the query sees the key, bool (N, Q, K).
    """
    with torch.no_grad():
        mask = mapped(mask_mod, ((None, None, None, 0), (None, None, 0, None), (0, 0, 0, 0)))(batch, head, query, key)
    return mask.to(torch.bool)


def _chunks(numbers: Numbers, pairs: int) -> Iterator[Numbers]:
    """Divide numbers of blocks: a call of `mask_mod` is for at most `AT_A_TIME` pairs, or one block."""
    step = max(1, AT_A_TIME // max(1, pairs))
    for begin in range(0, len(numbers), step):
        yield numbers[begin : begin + step]


def _starts(line: Numbers, lines: int) -> Numbers:
    """Return where the entries of each line begin, and the end, (lines + 1,)."""
    return np.concatenate([[0], np.cumsum(np.bincount(line, minlength=lines))]).astype(np.int64)


def _array(x: Tensor) -> np.ndarray[Any, Any]:
    return x.detach().cpu().numpy()


def _lists(block_mask: BlockMask) -> tuple[Tensor | None, ...]:
    return block_mask.kv_num_blocks, block_mask.kv_indices, block_mask.full_kv_num_blocks, block_mask.full_kv_indices


def _sizes(block_mask: BlockMask) -> tuple[int, ...]:
    return (*block_mask.seq_lengths, *block_mask.BLOCK_SIZE)


def _versions(lists: tuple[Tensor | None, ...]) -> tuple[int, ...]:
    # Tensors made under torch.inference_mode have no version.
    return tuple(0 if x is None or x.is_inference() else x._version for x in lists)


@dataclass(frozen=True)
class Blocks:
    """The contents of a plan, as views of its numbers."""

    batch: int
    heads: int
    rows: int
    height: int
    width: int
    starts: Numbers
    columns: Numbers
    masks: Numbers
    bits: np.ndarray[Any, np.dtype[np.uint8]]
    """(masks, keys of a block, bytes)"""

    def visited(self, row: int) -> Numbers:
        """Columns of blocks that any batch entry and head visits in a row of blocks, ascending."""
        lines = np.arange(self.batch * self.heads) * self.rows + row
        return np.unique(np.concatenate([self.columns[self.starts[line] : self.starts[line + 1]] for line in lines]))

    def seen(self, row: int, begin: int, end: int, length: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which of the keys in the `visited` blocks of a row are seen.

        Args:
            row: row of blocks.
            begin: first query, counted from that of the row; a multiple of eight.
            end: end of the queries.
            length: number of keys of the whole sequence.

        Returns:
            bool (batch, heads, end - begin, keys).
        """
        visited = self.visited(row)
        mask = np.zeros((self.batch * self.heads, end - begin, len(visited) * self.width), bool)
        for line in range(self.batch * self.heads):
            first = line * self.rows + row
            for entry in range(self.starts[first], self.starts[first + 1]):
                place = int(np.searchsorted(visited, self.columns[entry])) * self.width
                number = self.masks[entry]
                if number < 0:
                    mask[line, :, place : place + self.width] = True
                    continue
                block = np.unpackbits(self.bits[number, :, begin // 8 : -(-end // 8)], axis=-1, bitorder="little")
                mask[line, :, place : place + self.width] = block.T[: end - begin]
        inside = positions(visited, self.width) < length
        return mask[:, :, inside].reshape(self.batch, self.heads, end - begin, -1)


def read(plan: Tensor) -> Blocks:
    """Read a plan, int64 (N,)."""
    numbers = _array(plan)
    batch, heads, rows, columns, height, width, words, entries = (int(x) for x in numbers[:HEADER])
    sizes = (batch * heads * rows + 1, entries, entries, batch * heads * columns + 1 + 2 * entries)
    starts, listed, masks, _, bits = np.split(numbers[HEADER:], np.cumsum(sizes))
    return Blocks(batch, heads, rows, height, width, starts, listed, masks, bits.view(np.uint8).reshape(-1, width, words * WORD // 8))


def positions(columns: Numbers, width: int) -> Numbers:
    """Positions of the keys of some columns of blocks, those beyond the end of the sequence included."""
    return (columns[:, None] * width + np.arange(width)).reshape(-1)
