"""Causal attention for the classifier, and sparse attention for anyone: windows and global nodes, linear in length."""

from balancer.models.attention.base import Attended, Attention
from balancer.models.attention.dense import DenseAttention
from balancer.models.attention.functional import sparse_attention
from balancer.models.attention.layout import Layout
from balancer.models.attention.selection import select_globals
from balancer.models.attention.window import WindowAttention

__all__ = ["Attended", "Attention", "DenseAttention", "Layout", "WindowAttention", "select_globals", "sparse_attention"]
