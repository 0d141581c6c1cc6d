"""The modular transaction-sequence classifier: fields, attention, heads, and their assembly.

`SequenceBatch` is the one currency between the parts; `Classifier(ModelConfig(...))` puts them together; see models/README.md.
"""

from balancer.models.attention import Attention, DenseAttention, SparseAttention, WindowAttention
from balancer.models.batch import SequenceBatch, Targets
from balancer.models.blocks import Block
from balancer.models.classifier import ATTENTIONS, EMBEDDINGS, HEADS, Classifier, autocast
from balancer.models.config import ModelConfig
from balancer.models.embedding import TransactionEmbedding
from balancer.models.encoding import PiecewiseLinearEncoder, fit_edges
from balancer.models.heads import BinaryHead, Head, MulticlassHead
from balancer.models.storage import load_classifier, save_classifier

__all__ = [
    "ATTENTIONS",
    "EMBEDDINGS",
    "HEADS",
    "Attention",
    "BinaryHead",
    "Block",
    "Classifier",
    "DenseAttention",
    "Head",
    "ModelConfig",
    "MulticlassHead",
    "PiecewiseLinearEncoder",
    "SequenceBatch",
    "SparseAttention",
    "Targets",
    "TransactionEmbedding",
    "WindowAttention",
    "autocast",
    "fit_edges",
    "load_classifier",
    "save_classifier",
]
