"""`StoreFolder`: a prepared table on disk, read as a whole through memory maps or shard by shard.

What is special: the shards are ranges of the sorted entities, so the shards one after the other are the rows
of `load_dataset` in its order. A row's fields need no row of another shard.
"""

from __future__ import annotations

from dataclasses import dataclass

from balancer.data.loaded import Dataset
from balancer.data.schema import Schema
from balancer.data.sharded.files import StoreFiles
from balancer.data.sharded.loading import shard_dataset


@dataclass(frozen=True)
class StoreFolder(StoreFiles):
    """A folder that `balancer prepare` wrote.

    >>> store = StoreFolder.open("STORE")  # doctest: +SKIP
    >>> for number in range(store.shards):  # doctest: +SKIP
    ...     dataset = store.shard(number, schema=run.schema)
    """

    def shard(self, number: int, *, schema: Schema | None = None) -> Dataset:
        """Read the rows of a shard to memory.

        Args:
            number: From 0 to `shards` - 1.
            schema: Schema of a trained run; the rows are those to score (`Split.TEST`). None: that of the
                store, and the parts of its split.

        Raises:
            InputError: There is no such shard, or the run uses columns in other roles than the store.
        """
        return shard_dataset(self, number, schema)
