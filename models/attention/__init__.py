"""Causal attention: the interface, the dense reference and a plain window."""

from balancer.models.attention.base import Attention
from balancer.models.attention.dense import DenseAttention
from balancer.models.attention.window import WindowAttention

__all__ = ["Attention", "DenseAttention", "WindowAttention"]
