"""The source of a stream: its items from a position on, the shard of a worker, and the class of an item."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from balancer.errors import InputError
from balancer.sampling.labels import is_missing
from balancer.sampling.stream_board import NOW, POSITION, UNLABELLED, Line

if TYPE_CHECKING:
    from torch.utils.data import Dataset


class StreamSource:
    """Reads the labelled items of a source.

    Args:
        source: As for :class:`~balancer.sampling.stream.AdaptiveStream`.
        names: The K classes, sorted.
        label: As for :class:`~balancer.sampling.stream.AdaptiveStream`.
        unlabelled: A label that marks items that are never drawn.
        epochs: Number of epochs of the training.
        sharded: Whether the source divides its items among workers and ranks itself.

    Raises:
        InputError: ``source`` is neither an iterable, nor a data set with indices, nor a function; or an
            iterator, which can be read only once, for several epochs.
    """

    def __init__(
        self,
        source: Iterable[Any] | Dataset[Any] | Callable[[int, int], Iterable[Any]],
        names: list[Any],
        label: Callable[[Any], Any] | str | int | None,
        unlabelled: Any,
        *,
        epochs: int,
        sharded: bool,
    ) -> None:
        if not callable(source) and not hasattr(source, "__iter__") and not (hasattr(source, "__getitem__") and hasattr(source, "__len__")):
            raise InputError(f"source must be an iterable of items or a function (shard, num_shards), not {type(source).__name__}")
        self._source, self._label, self._unlabelled, self._sharded = source, label, unlabelled, sharded
        self._index = {name: number for number, name in enumerate(names)}
        self._once = hasattr(source, "__next__")
        if self._once and epochs > 1:
            raise InputError(
                f"source is a {type(source).__name__}, which can be read only once, but there are {epochs} epochs; give an iterable that "
                "can be read again (a list, an object with __iter__) or a function (shard, num_shards) that opens it"
            )
        self._head: list[Any] = []  # of an iterator: items that were read to estimate the prior
        self._reading: tuple[int, Iterator[Any]] | None = None  # position and iterator of this process

    def first_codes(self, most: int) -> list[int | None]:
        """Class index of each of the first ``most`` items, None without a label; none is lost."""
        first = list(itertools.islice(self._shard(0, 1), most))
        if self._once:
            self._head = first
        return [self._code(item) for item in first]

    def forget(self) -> None:
        """Read from the beginning again, up to the position that is asked for; an iterator can't."""
        if not self._once:
            self._reading = None

    def read(self, line: Line, shard: int, shards: int, *, whole: bool) -> Iterator[tuple[int, Any]]:
        """Class index and item of the shard, from where the last epoch ended.

        Args:
            line: Where this worker counts.
            shard: Number of the shard.
            shards: Number of shards.
            whole: Whether to end where the source ends.

        Raises:
            InputError: The shard has no labelled items, or an iterator has none left.
        """
        numbers, begun = line.numbers[NOW], int(line.numbers[NOW, POSITION])
        while True:
            start, items = self._opened(int(numbers[POSITION]), shard, shards)
            position, labelled = start, False
            for item in items:
                position += 1
                numbers[POSITION] = position
                self._reading = position, items
                code = self._code(item)
                if code is None:
                    numbers[UNLABELLED] += 1
                else:
                    labelled = True
                    yield code, item
            if self._once:
                if position == begun:
                    raise InputError("the source has no items left; give an iterable that can be read again, or fewer epochs")
                return
            numbers[POSITION], self._reading = 0, None
            if not labelled and start == 0 and (shards == 1 or not whole):
                where = "the source has" if shards == 1 else f"the source has, for share {shard} of {shards},"
                raise InputError(f"{where} no labelled items; check source, classes and label, or use fewer workers")
            if whole:
                return

    def _opened(self, position: int, shard: int, shards: int) -> tuple[int, Iterator[Any]]:
        """The items of the shard after ``position`` of them, and how many there were before."""
        if self._reading is not None and (self._reading[0] == position or self._once):
            read, items = self._reading
            if read > position:
                raise InputError("the source is an iterator, which can't go back; give an iterable that can be read again")
        else:
            read, items = 0, self._shard(shard, shards)
        read += sum(1 for _ in itertools.islice(items, position - read))
        self._reading = read, items
        return read, items

    def _shard(self, shard: int, shards: int) -> Iterator[Any]:
        """The items of a shard, from the beginning."""
        if callable(self._source):
            return iter(self._source(shard, shards))
        if not hasattr(self._source, "__iter__"):
            indexed: Any = self._source
            return map(indexed.__getitem__, range(shard, len(indexed), shards))
        whole = itertools.chain(self._head, self._source) if self._once else self._source
        return iter(whole) if self._sharded else itertools.islice(whole, shard, None, shards)

    def _code(self, item: Any) -> int | None:
        """Index of the item's class, None without a label."""
        given = self._label
        try:
            value = _plain(given(item) if callable(given) else item[1 if given is None else given])
        except (KeyError, IndexError, TypeError) as error:
            if callable(given):  # an error of the user's own function
                raise
            what = "is no pair (x, y)" if given is None else f"has no {given!r}"
            raise InputError(
                f"an item of the source {what} ({type(item).__name__}); give label, a function from an item to its class"
            ) from error
        if is_missing(value) or (self._unlabelled is not None and value == self._unlabelled):
            return None
        try:
            return self._index[value]
        except (KeyError, TypeError):
            shown = ", ".join(map(repr, list(self._index)[:10]))
            raise InputError(f"the source holds class {value!r}, which is not among classes ({shown})") from None


def _plain(label: Any) -> Any:
    """A label as a plain Python value: a tensor or an array of one element becomes it.

    Raises:
        InputError: It has several elements.
    """
    item = getattr(label, "item", None)
    if item is None or isinstance(label, (str, bytes)):
        return label
    try:
        return item()
    except (ValueError, RuntimeError) as error:
        raise InputError(f"the class of an item must be one value, not {type(label).__name__} of several; give label") from error


def checked_classes(classes: Sequence[Any], unlabelled: Any) -> list[Any]:
    """The classes, sorted.

    Raises:
        InputError: Fewer than two, some are equal or of different kinds, or one means no label.
    """
    names = [_plain(name) for name in classes]
    if len(set(names)) < 2 or len(set(names)) != len(names):
        raise InputError(f"classes must be two or more different classes, not {names!r}")
    if any(is_missing(name) or (unlabelled is not None and name == unlabelled) for name in names):
        raise InputError(f"classes must not hold a value that means no label, as {names!r} does")
    try:
        return sorted(names)
    except TypeError as error:
        raise InputError(f"classes must be of one kind, numbers or text, not {names!r}") from error
