"""Range checks that the option groups share. Each error names the flag and the allowed values."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from balancer.data.spec import nearest
from balancer.errors import InputError
from balancer.options.flags import flag_of


def check_whole(options: Any, *names: str, least: int = 1, most: int | None = None) -> None:
    """Check that fields are whole numbers from ``least`` to ``most``; None is allowed.

    Raises:
        InputError: A value is outside the range.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and (value < least or (most is not None and value > most)):
            limit = "up" if most is None else f"to {most}"
            raise InputError(f"{flag_of(name)} is {value}: give a whole number from {least} {limit}")


def check_share(options: Any, *names: str) -> None:
    """Check that fields are numbers from 0 to below 1.

    Raises:
        InputError: A value is outside the range.
    """
    for name in names:
        if not 0 <= getattr(options, name) < 1:
            raise InputError(f"{flag_of(name)} is {getattr(options, name)}: give a number from 0 to below 1")


def check_names(names: Iterable[str], known: Collection[str], flag: str, kind: str) -> None:
    """Check that all ``names`` are in ``known``.

    Args:
        names: Names that were given.
        known: Allowed names.
        flag: Flag they were given by.
        kind: What they name, for the message.

    Raises:
        InputError: A name is unknown; the message contains the most similar known name.
    """
    for name in names:
        if name not in known:
            raise InputError(f"{flag}: unknown {kind} '{name}'; {nearest(name, known)}")
