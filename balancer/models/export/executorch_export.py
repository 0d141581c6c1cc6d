"""Export a classifier of the form `rows` to an ExecuTorch program, for devices without Python.

The program scores one row at a time, from a window of fixed length. The packages of `balancer[executorch]`
are imported only when they are used.
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
    """Write a program in float32 that runs through XNNPACK.

    Its inputs are `values` (1, history_length, C) float32 and `lengths` (1,) int64; its output is the
    probabilities (1, K).

    Args:
        model: a classifier of the form `rows`, with parts that ONNX supports too.
        file: replaced atomically.

    Raises:
        UnsupportedError: The model has a form or a part that can't be exported.
        MissingDependencyError: executorch is not installed.
        UnwritableFileError: The file can't be written.
    """
    wrapped = traceable(model, "ExecuTorch")
    config = model.config
    fields = len(config.numeric_fields) + len(config.categorical_fields)
    example = (torch.zeros(1, config.history_length, fields), torch.ones(1, dtype=torch.int64))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # warnings of the exporter, which the caller can't act on
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
