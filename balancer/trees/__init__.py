"""Boosted trees without LightGBM: its text format, checked; raw scores with its bits; contributions.

It needs NumPy only. `TreeEnsemble.read` reads a file, `raw` and `contributions` evaluate it.
"""

from balancer.trees.evaluator import TreeEnsemble
from balancer.trees.model_text import Tree, TreeModel

__all__ = ["Tree", "TreeEnsemble", "TreeModel"]
