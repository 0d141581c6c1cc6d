"""The transaction-sequence classifier: embedding of fields, attention blocks and head.

All parts exchange `SequenceBatch`, and `Classifier(ModelConfig(...))` assembles them. See models/README.md.
"""

from typing import TYPE_CHECKING

from balancer.dependencies import require
from balancer.deprecation import deprecated_attribute

require("torch", "balancer.models")  # before the parts, which import it

from balancer.models.attention import Attention, DenseAttention, SparseAttention, WindowAttention
from balancer.models.batch import SequenceBatch, Targets
from balancer.models.blocks import Block
from balancer.models.classifier import ATTENTIONS, EMBEDDINGS, HEADS, Classifier, Replacement, autocast
from balancer.models.config import ModelConfig
from balancer.models.embedding import TransactionEmbedding
from balancer.models.encoding import PiecewiseLinearEncoder, fit_edges
from balancer.models.heads import BinaryHead, Head, MulticlassHead
from balancer.models.parts import PARTS, part_of
from balancer.models.storage import load_classifier, save_classifier, save_delta, weights_digest
from balancer.models.tabular import TabularEmbedding
from balancer.models.tasks import AuxiliaryTask
from balancer.models.text import TokenEmbedding, Tokenizer, load_tokenizer, train_tokenizer

__all__ = [
    "ATTENTIONS",
    "EMBEDDINGS",
    "HEADS",
    "PARTS",
    "Attention",
    "AuxiliaryTask",
    "BinaryHead",
    "Block",
    "Classifier",
    "DenseAttention",
    "Head",
    "ModelConfig",
    "MulticlassHead",
    "PiecewiseLinearEncoder",
    "Replacement",
    "SequenceBatch",
    "SparseAttention",
    "TabularEmbedding",
    "Targets",
    "TokenEmbedding",
    "Tokenizer",
    "TransactionEmbedding",
    "WindowAttention",
    "autocast",
    "fit_edges",
    "load_classifier",
    "load_tokenizer",
    "part_of",
    "save_classifier",
    "save_delta",
    "train_tokenizer",
    "weights_digest",
]

if not TYPE_CHECKING:  # the name of version 0.1

    def __getattr__(name: str) -> object:
        return deprecated_attribute(__name__, name)
