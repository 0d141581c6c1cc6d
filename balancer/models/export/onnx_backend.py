"""ONNX Runtime: export, quantize and score a classifier without torch at inference.

The packages of `balancer[export]` are imported only when they are used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.models.export.onnx_export import export_onnx
from balancer.models.export.onnx_files import META, check_feed, corrupt, package, read_about, read_content, runtime_errors
from balancer.models.export.onnx_quantize import quantize_onnx

__all__ = ["OnnxClassifier", "export_onnx", "quantize_onnx"]


class OnnxClassifier:
    """Score windows with a model written by `export_onnx` or `quantize_onnx`, on the CPU.

    The result for a row is bit-identical whatever the other rows of the batch are, as long as windows are
    padded to the same n.

    Args:
        file: the ONNX file.
        threads: number of threads per call.

    Attributes:
        size: size of the file in bytes.
        history_length: maximum number of transactions in a window.
        fields: names of the C fields, in the order of the columns.
        classes: names of the K classes.
        layers: names of the layers whose precision can be chosen.

    Raises:
        MissingFileError: The file does not exist.
        CorruptFileError: The file is damaged or was not written by balancer.
        MissingDependencyError: onnxruntime is not installed.
    """

    def __init__(self, file: Path, threads: int = 1) -> None:
        runtime = package("onnxruntime")
        content = read_content(file)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # errors are raised as exceptions; the runtime would print them too
        # Without VNNI, sums of u8 x s8 products saturate at 16 bits. This option computes them exactly.
        options.add_session_config_entry("session.x64quantprecision", "1")
        errors: tuple[type[Exception], ...] = (*runtime_errors(), UnicodeDecodeError)
        try:
            self._session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"], enable_fallback=False)
            metadata = self._session.get_modelmeta().custom_metadata_map
        except errors as error:
            raise corrupt(file, error) from error
        about = read_about(file, content, metadata.get(META))
        self.size = len(content)
        self.history_length: int = about["history"]
        self.fields: tuple[str, ...] = tuple(about["fields"])
        self.classes: tuple[str, ...] = tuple(about["classes"])
        self.layers: tuple[str, ...] = tuple(about["layers"])
        self._about = about
        self._file = file

    def probabilities(self, values: NDArray[np.float32], lengths: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Compute class probabilities (B, K) float32; the fraud score is 1 minus column 0.

        Args:
            values: (B, n, C) left-aligned windows.
            lengths: (B,) number of real transactions in each window, from 0 to n.

        Raises:
            InputError: The windows do not fit the model, or the lengths do not fit the windows.
        """
        feed: dict[str, NDArray[Any]] = {
            "values": np.ascontiguousarray(values, np.float32),
            "lengths": np.ascontiguousarray(lengths, np.int64),
        }
        check_feed(feed, self._about)
        rows = len(feed["lengths"])
        if rows == 0:
            return np.empty((0, len(self.classes)), np.float32)
        if rows == 1:
            # For a single row the runtime uses another kernel, which sums in another order. Two equal rows
            # use the common kernel.
            feed = {name: np.repeat(array, 2, axis=0) for name, array in feed.items()}
        try:
            (scores,) = self._session.run(["probabilities"], feed)
        except runtime_errors() as error:
            raise corrupt(self._file, error) from error
        result: NDArray[np.float32] = scores[:rows]
        return result
