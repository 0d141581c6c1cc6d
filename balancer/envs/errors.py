"""The error of a step at the wrong time."""

from __future__ import annotations

import gymnasium

from balancer.errors import InputError


class ResetNeededError(InputError, gymnasium.error.ResetNeeded):
    """A step before ``reset``, or after the end of an episode.

    Its second base class is what Gymnasium's wrappers raise.
    """
