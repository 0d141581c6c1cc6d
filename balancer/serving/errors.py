"""Errors of a request besides bad input; each has its own HTTP status."""

from __future__ import annotations

from balancer.errors import InputError


class ConflictError(InputError):
    """The request contradicts stored data."""


class MissingError(InputError):
    """The object does not exist, or belongs to another tenant."""


class TooLargeError(InputError):
    """The request has more rows than one request may have."""


class EncodingError(InputError):
    """The body of the request is not UTF-8."""
