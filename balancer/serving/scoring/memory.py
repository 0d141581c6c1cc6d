"""Entities and context values that a worker remembers, the least recently used of which are forgotten."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from balancer.serving.scoring.context_memory import ContextMemory
from balancer.serving.scoring.entity_memory import EntityMemory

DEFAULT_BYTES = 512_000_000
Remembered = EntityMemory | ContextMemory
Name = tuple[str, ...]


class Memory:
    """What a worker remembers, up to a size.

    Args:
        limit: About how many bytes may be remembered.
    """

    def __init__(self, limit: int = DEFAULT_BYTES) -> None:
        self._limit, self._total = limit, 0
        self._kept: OrderedDict[Name, tuple[Remembered, int]] = OrderedDict()

    def entity(self, tenant: str, name: str) -> EntityMemory | None:
        """Return an entity, if it is remembered."""
        found = self._kept.get((tenant, name))
        return found[0] if found is not None and isinstance(found[0], EntityMemory) else None

    def context(self, tenant: str, column: str, value: str) -> ContextMemory | None:
        """Return a context value, if it is remembered."""
        found = self._kept.get((tenant, column, value))
        return found[0] if found is not None and isinstance(found[0], ContextMemory) else None

    def keep(self, name: Name, remembered: Remembered) -> None:
        """Remember something, or take note of its size now, and forget what was not used for longest."""
        before = self._kept.pop(name, None)
        size = remembered.size
        self._kept[name] = remembered, size
        self._total += size - (0 if before is None else before[1])
        while self._total > self._limit and len(self._kept) > 1:
            _, (_, gone) = self._kept.popitem(last=False)
            self._total -= gone

    def forget(self, names: Iterable[Name]) -> None:
        """Forget these."""
        for name in names:
            found = self._kept.pop(name, None)
            self._total -= 0 if found is None else found[1]
