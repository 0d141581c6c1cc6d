"""Causal attention for the classifier, and sparse attention with windows and global nodes for any sequences.

The cost of sparse attention is linear in the length.
"""

from balancer.models.attention.base import Attended, Attention
from balancer.models.attention.dense import DenseAttention
from balancer.models.attention.distillation import distillation_loss, warm_up
from balancer.models.attention.flex import flex_attention, prepare_block_mask
from balancer.models.attention.functional import sparse_attention
from balancer.models.attention.layout import Layout
from balancer.models.attention.scores import SCORES, TokenScore
from balancer.models.attention.selection import select_globals
from balancer.models.attention.sparse import SparseAttention, SparseSelfAttention, WindowAttention

__all__ = [
    "SCORES",
    "Attended",
    "Attention",
    "DenseAttention",
    "Layout",
    "SparseAttention",
    "SparseSelfAttention",
    "TokenScore",
    "WindowAttention",
    "distillation_loss",
    "flex_attention",
    "prepare_block_mask",
    "select_globals",
    "sparse_attention",
    "warm_up",
]
