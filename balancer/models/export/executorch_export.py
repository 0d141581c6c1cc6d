"""The window classifier as an ExecuTorch program, for phones and terminals without Python: one row at a time, a window of fixed length.

The package of `balancer[executorch]` is imported where it is used.
"""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any

import torch

from balancer.dependencies import missing
from balancer.files import write_bytes
from balancer.models.classifier import Classifier
from balancer.models.export.onnx_export import traceable


def export_executorch(model: Classifier, file: Path) -> None:
    """Write a program that takes `values` (1, history, C) float32 and `lengths` (1,) int64 and gives probabilities (1, K), in float32 through XNNPACK.

    Args:
        model: of the form `rows`, with parts that ONNX can carry too.
        file: replaced atomically.

    Raises:
        UnsupportedError: The model can't be carried, executorch is not installed, or the file can't be written.
    """
    wrapped = traceable(model, "ExecuTorch")
    config = model.config
    fields = len(config.numeric_fields) + len(config.categorical_fields)
    example = (torch.zeros(1, config.history_length, fields), torch.ones(1, dtype=torch.int64))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter's own, of which a caller can mend none
        exir, partition = _package("executorch.exir"), _package("executorch.backends.xnnpack.partition.xnnpack_partitioner")
        program = torch.export.export(wrapped, example)
        lowered = exir.to_edge_transform_and_lower(program, partitioner=[partition.XnnpackPartitioner()])
        content = bytes(lowered.to_executorch().buffer)
    write_bytes(file, content)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise missing("executorch", "--target executorch") from error
