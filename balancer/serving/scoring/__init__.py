"""Score transactions with a trained run: parsing, history from the database, states, the model in service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balancer.deprecation import deprecated_attribute

if not TYPE_CHECKING:  # names of version 0.1, when this was one module

    def __getattr__(name: str) -> object:
        return deprecated_attribute(__name__, name)
