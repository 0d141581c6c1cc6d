"""What a request can run into beside bad input: each is a status of its own."""

from __future__ import annotations

from balancer.errors import InputError


class ConflictError(InputError):
    """What was sent contradicts what is stored."""


class MissingError(InputError):
    """There is no such thing, or it is another tenant's."""
