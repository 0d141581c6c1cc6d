"""ONNX Runtime: a classifier exported, quantized and scored without torch.

The packages of `balancer[export]` are imported where they are used: importing this module needs none of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.models.export.onnx_export import export_onnx
from balancer.models.export.onnx_files import META, check_feed, foreign, package, read_about, read_content, runtime_errors
from balancer.models.export.onnx_quantize import quantize_onnx

__all__ = ["OnnxClassifier", "export_onnx", "quantize_onnx"]


class OnnxClassifier:
    """Scores windows by a file of `export_onnx` or `quantize_onnx`, on the CPU.

    Bit for bit, a row's result does not depend on the rows beside it, as long as windows are padded to the same n.

    Args:
        file: the model.
        threads: of one call.

    Attributes:
        size: bytes of the file.
        history_length: longest history, in transactions.
        fields: names of the C fields, in the order of the columns.
        classes: names of the K classes.
        layers: names of the layers whose precision could be chosen.

    Raises:
        InputError: The file is missing, damaged or foreign, or onnxruntime is not installed.
    """

    def __init__(self, file: Path, threads: int = 1) -> None:
        runtime = package("onnxruntime")
        content = read_content(file)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what goes wrong is raised; the runtime would print it as well
        # Without VNNI, sums of u8 x s8 products overflow 16 bits and are cut off; this has them computed exactly.
        options.add_session_config_entry("session.x64quantprecision", "1")
        errors: tuple[type[Exception], ...] = (*runtime_errors(), UnicodeDecodeError)
        try:
            self._session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"], enable_fallback=False)
            metadata = self._session.get_modelmeta().custom_metadata_map
        except errors as error:
            raise foreign(file, error) from error
        about = read_about(file, content, metadata.get(META))
        self.size = len(content)
        self.history_length: int = about["history"]
        self.fields: tuple[str, ...] = tuple(about["fields"])
        self.classes: tuple[str, ...] = tuple(about["classes"])
        self.layers: tuple[str, ...] = tuple(about["layers"])
        self._about = about
        self._file = file

    def probabilities(self, values: NDArray[np.float32], lengths: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Class probabilities (B, K) float32 of left-aligned windows (B, n, C) with lengths (B,) from 0 to n; the fraud score is 1 minus column 0.

        Raises:
            InputError: Windows do not fit the model, or lengths do not fit them.
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
            # A product with a single row takes another path in the runtime, which sums in another order; two equal rows take the common one.
            feed = {name: np.repeat(array, 2, axis=0) for name, array in feed.items()}
        try:
            (scores,) = self._session.run(["probabilities"], feed)
        except runtime_errors() as error:
            raise foreign(self._file, error) from error
        result: NDArray[np.float32] = scores[:rows]
        return result
