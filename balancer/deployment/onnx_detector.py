"""A whole detector as ONNX graphs: the network's graph with boosted trees added, and one of the first stage.

What is special: the trees decide in float64 with LightGBM's own thresholds, and are added in float64, so
their log-odds are those of `balancer.trees` but for the last rounding to float32. Missing numbers, zeros and
categories are treated as LightGBM treats them. A categorical split is a row of equality tests, one per
category that goes left, all with the same child on the left; so the operators are those of an old version.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from balancer.data.score_memory import LIMIT, STAGE1_LOGIT
from balancer.deployment.targets import first_stage_file
from balancer.inference.decision import NETWORK, STAGE2
from balancer.inference.detector import SMALLEST, Detector
from balancer.inference.tree_stages import TreeStages
from balancer.models.export.onnx_export import LOGITS, OPSET, export_onnx
from balancer.models.export.onnx_files import FORMAT, VERSION, package, read_model, write_model
from balancer.trees import TreeEnsemble
from balancer.trees.layout import ZERO
from balancer.trees.model_text import MISSING_NONE, MISSING_ZERO, Tree

TREES, TREES_OPSET = "ai.onnx.ml", 3
"""Domain of the operators of trees, and their version."""
_INNER, _LENGTHS = "network.probabilities", "detector.valid_lengths"
CODES_END = 2.0**31
"""Values of a categorical field from here on are no codes."""


def write_detector(detector: Detector, fields: Sequence[str], file: Path) -> list[Path]:
    """Write a detector of which the network can be exported.

    Args:
        detector: A detector with a network; without trees this is the network alone.
        fields: Names of the fields without score fields.
        file: Replaced atomically.

    Returns:
        The files: ``file``, and with trees also the one of the first stage.

    Raises:
        UnsupportedError: The network has a form or a part that can't be exported.
        MissingDependencyError: A package is not installed.
        UnwritableFileError: A file can't be written.
    """
    assert detector.model is not None
    if detector.stages is None:
        export_onnx(detector.model, file)
        return [file]
    with tempfile.TemporaryDirectory() as folder:
        network = Path(folder) / "network.onnx"
        export_onnx(detector.model, network, logits=True)
        add_trees(network, file, detector)
    write_first_stage(detector.stages, fields, first_stage_file(file))
    return [file, first_stage_file(file)]


def add_trees(source: Path, target: Path, detector: Detector) -> None:
    """Write the graph of a detector.

    Inputs are those of the network, `values` (B, n, C) with all fields and `lengths` (B,); a length below 1
    counts as 1, and one above n as n. The output is `probabilities` (B, K) float32 of the last row of each
    window, see `Detector.combine`.

    Args:
        source: File of the detector's network with its logits, of `export_onnx` or `quantize_onnx`.
        target: Replaced atomically; may be ``source``.
        detector: A detector with network and trees.

    Raises:
        InputError: ``source`` is missing, damaged or not written by balancer.
        MissingDependencyError: A package is not installed.
        UnwritableFileError: ``target`` can't be written.
    """
    stages = detector.stages
    assert stages is not None and detector.model is not None
    proto, about = read_model(source, quantized=True)
    graph, outputs = _Graph(), {output.name: output for output in proto.graph.output}
    # What only the network's own probabilities need is not dropped: it is a few small steps.
    for node in proto.graph.node:
        node.output[:] = [_INNER if name == "probabilities" else name for name in node.output]
        node.input[:] = [{"probabilities": _INNER, "lengths": _LENGTHS}.get(name, name) for name in node.input]
    proto.graph.output.remove(outputs[LOGITS])
    limits = _Graph("lengths")
    width = limits.node("Shape", "values", start=1, end=2)
    limits.node("Min", limits.node("Max", "lengths", limits.integers([1])), width, output=_LENGTHS)
    logits = graph.node("Cast", LOGITS, to=_type("DOUBLE"))
    network = graph.columns_of(logits, 0, 1)
    # From here on as in `Detector.combine`, from probabilities in float64.
    legitimate = graph.node("Max", graph.sigmoid(graph.node("Neg", network)), graph.constant(SMALLEST))
    fraud = graph.node("Mul", graph.sigmoid(network), graph.columns_of(logits, 1, 2**31))
    fraud = graph.node("Max", fraud, graph.constant(SMALLEST))
    summed = graph.node("ReduceSum", fraud, graph.integers([1]), keepdims=1)
    logit = graph.node("Sub", graph.node("Log", summed), graph.node("Log", legitimate))
    logit = graph.node("Mul", logit, graph.constant(detector.members.get(NETWORK, 0.0)))
    if detector.members.get(STAGE2, 0.0) > 0:
        at = graph.node("Sub", _LENGTHS, graph.integers([1]))
        last = graph.node("GatherND", "values", graph.node("Unsqueeze", at, graph.integers([1])), batch_dims=1)
        second = graph.trees(stages.second, last)
        logit = graph.node("Add", logit, graph.node("Mul", second, graph.constant(detector.members[STAGE2])))
    shares = graph.node("Div", fraud, summed)
    kinds = graph.node("Mul", graph.sigmoid(logit), shares)
    both = graph.node("Concat", graph.sigmoid(graph.node("Neg", logit)), kinds, axis=1)
    graph.node("Cast", both, to=_type("FLOAT"), output="probabilities")
    graph.add_to(proto)
    limits.add_to(proto, first=True)
    write_model(proto, about | {"trees": True}, target)


def write_first_stage(stages: TreeStages, fields: Sequence[str], target: Path) -> None:
    """Write the graph of the first stage, for rows later than the training period.

    Its input is `values` (B, F) float32, the fields without score fields, of one row each. Its output is
    `stage1_logit` (B,) float32, the log-odds as the score fields hold them, so within `LIMIT`.

    Args:
        stages: The trees.
        fields: (F,) names of the fields.
        target: Replaced atomically.

    Raises:
        MissingDependencyError: A package is not installed.
        UnwritableFileError: ``target`` can't be written.
    """
    onnx, graph = package("onnx"), _Graph()
    logit = graph.node("Cast", graph.trees(stages.folds, "values"), to=_type("FLOAT"))
    limits = [graph.constant(limit, np.float32) for limit in (-LIMIT, LIMIT)]
    graph.node("Clip", graph.node("Squeeze", logit, graph.integers([1])), *limits, output=STAGE1_LOGIT)
    values = onnx.helper.make_tensor_value_info("values", _type("FLOAT"), ["rows", len(fields)])
    output = onnx.helper.make_tensor_value_info(STAGE1_LOGIT, _type("FLOAT"), ["rows"])
    proto = onnx.helper.make_model(
        onnx.helper.make_graph([], "first stage", [values], [output]),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=10,
    )
    graph.add_to(proto)
    about = {"format": FORMAT, "version": VERSION, "history": 1, "fields": list(fields), "classes": [], "layers": {}, "trees": True}
    write_model(proto, about | {"later_than": stages.train_end}, target)


class FirstStage:
    """Score rows with a file of `write_first_stage`, on one thread.

    Args:
        file: The file.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
    """

    def __init__(self, file: Path) -> None:
        runtime = package("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = runtime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])

    def logit(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Log-odds (n,) within `LIMIT` of rows (n, F) without score fields."""
        found: NDArray[np.float32] = self._session.run([STAGE1_LOGIT], {"values": np.ascontiguousarray(values)})[0]
        return found


@dataclass(frozen=True, eq=False)
class _Nodes:
    """Nodes of one tree, (N,) each; a node without children is a leaf."""

    column: NDArray[np.int64]
    mode: NDArray[np.str_]
    value: NDArray[np.float64]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    missing_left: NDArray[np.int64]
    weight: NDArray[np.float64]


def _tree_nodes(tree: Tree, features: int) -> _Nodes:
    """Nodes of one tree; columns are those of `_Graph.tree_columns`."""
    splits, categorical = len(tree.feature), tree.categorical
    codes: list[NDArray[np.float64]] = [_codes(tree, split) if categorical[split] else np.zeros(0) for split in range(splits)]
    # An empty set is one test that is never true.
    length = np.array([max(1, len(some)) for some in codes], dtype=np.int64)
    end = np.cumsum(length)
    first, total = end - length, int(end[-1])
    place = np.concatenate([first, total + np.arange(splits, -1, -1)])  # also indexed by a leaf, which is below zero
    split = np.repeat(np.arange(splits), length)
    is_last = np.zeros(total, dtype=bool)
    is_last[end - 1] = True
    equal = categorical[split] & (np.array([len(some) for some in codes])[split] > 0)
    value = np.where(categorical[split], -np.inf, tree.threshold[split])
    value[equal] = np.concatenate(codes)
    zero_left = tree.threshold >= 0
    missing_left = np.where(tree.missing == MISSING_NONE, zero_left, tree.default_left) & ~categorical
    kind = np.where(categorical, 2, ((tree.missing == MISSING_ZERO) & (missing_left != zero_left)).astype(np.int64))
    none, leaves = np.zeros(splits + 1, dtype=np.int64), np.full(splits + 1, "LEAF")
    return _Nodes(
        column=np.concatenate([(tree.feature + kind * features)[split], none]),
        mode=np.concatenate([np.where(equal, "BRANCH_EQ", "BRANCH_LEQ"), leaves]),
        value=np.concatenate([value, none.astype(np.float64)]),
        left=np.concatenate([place[tree.left[split]], none]),
        right=np.concatenate([np.where(is_last, place[tree.right[split]], np.arange(total) + 1), none]),
        missing_left=np.concatenate([missing_left[split].astype(np.int64), none]),
        weight=np.concatenate([np.zeros(total), tree.leaf_value]),
    )


def _codes(tree: Tree, split: int) -> NDArray[np.float64]:
    """Codes that go left at a categorical split."""
    low, high = tree.set_bounds[int(tree.threshold[split]) :][:2].tolist()
    bits = np.unpackbits(tree.set_words[low:high].astype("<u4").view(np.uint8), bitorder="little")
    return np.flatnonzero(bits).astype(np.float64)


class _Graph:
    """Nodes and constants to be added to a graph; all names begin with ``detector.``.

    Args:
        part: Distinguishes the names of two parts of one graph.
    """

    def __init__(self, part: str = "") -> None:
        self._prefix = f"detector.{part}." if part else "detector."
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: float, dtype: type = np.float64) -> str:
        """Name of a number."""
        return self._constant(np.array(value, dtype=dtype))

    def integers(self, values: Sequence[int]) -> str:
        """Name of a list of whole numbers."""
        return self._constant(np.array(values, dtype=np.int64))

    def _constant(self, array: NDArray[Any]) -> str:
        name = f"{self._prefix}constant_{len(self.constants)}"
        self.constants.append(package("onnx").numpy_helper.from_array(array, name))
        return name

    def node(self, kind: str, *inputs: str, output: str = "", domain: str = "", **attributes: Any) -> str:
        """Add a node with one output; returns the output's name."""
        output = output or f"{self._prefix}{kind.lower()}_{len(self.nodes)}"
        made = package("onnx").helper.make_node(
            kind, list(inputs), [output], f"{self._prefix}node_{len(self.nodes)}", domain=domain, **attributes
        )
        self.nodes.append(made)
        return output

    def sigmoid(self, logit: str) -> str:
        """Probability of log-odds. The runtime's own operator is inexact where it is small."""
        odds_against = self.node("Exp", self.node("Neg", logit))
        return self.node("Reciprocal", self.node("Add", self.constant(1.0), odds_against))

    def columns_of(self, values: str, start: int, end: int) -> str:
        """A slice of the columns."""
        return self.node("Slice", values, self.integers([start]), self.integers([end]), self.integers([1]))

    def tree_columns(self, values: str) -> str:
        """Columns (B, 3 F) in float64 of values (B, F).

        They are the numbers, with 0 for the magnitudes that LightGBM takes for zero; the same with zeros
        missing; and the codes, which are -1 where the value is no code.
        """
        zero, nan = self.constant(0.0, np.float32), self.constant(np.nan, np.float32)
        tiny = self.node("LessOrEqual", self.node("Abs", values), self.constant(float(ZERO), np.float32))
        clean = self.node("Where", tiny, zero, values)
        without_zeros = self.node("Where", tiny, nan, values)
        coded = self.node(
            "And",
            self.node("Greater", values, self.constant(-1.0, np.float32)),
            self.node("Less", values, self.constant(CODES_END, np.float32)),
        )
        whole = self.node("Cast", self.node("Where", coded, values, zero), to=_type("INT64"))  # drops the fraction
        code = self.node("Where", coded, whole, self._constant(np.array(-1, dtype=np.int64)))
        parts = [self.node("Cast", part, to=_type("DOUBLE")) for part in (clean, without_zeros, code)]
        return self.node("Concat", *parts, axis=1)

    def trees(self, members: Sequence[TreeEnsemble], values: str) -> str:
        """Mean log-odds (B, 1) in float64 of the members for values (B, F)."""
        onnx = package("onnx")
        features, share = members[0].num_features, 1.0 / len(members)
        trees = [tree for member in members for tree in member.model.trees]
        # A tree without a split adds the same to every row.
        constant = share * sum(float(tree.leaf_value[0]) for tree in trees if not len(tree.feature))
        made = [_tree_nodes(tree, features) for tree in trees if len(tree.feature)]
        if not made:
            shape = self.node("Concat", self.node("Shape", values, start=0, end=1), self.integers([1]), axis=0)
            return self.node("Expand", self.constant(constant), shape)
        number = np.repeat(np.arange(len(made)), [len(part.column) for part in made])
        index = np.concatenate([np.arange(len(part.column)) for part in made])
        whole = _Nodes(*(np.concatenate([getattr(part, name) for part in made]) for name in _Nodes.__dataclass_fields__))
        leaf = whole.mode == "LEAF"
        # Only the columns that a split reads are made.
        used, column = np.unique(np.where(leaf, whole.column[0], whole.column), return_inverse=True)
        table = self.node("Gather", self.tree_columns(values), self.integers(used.tolist()), axis=1)
        tensor = onnx.numpy_helper.from_array
        summed = self.node(
            "TreeEnsembleRegressor",
            table,
            domain=TREES,
            nodes_treeids=number.tolist(),
            nodes_nodeids=index.tolist(),
            nodes_featureids=column.tolist(),
            nodes_modes=whole.mode.tolist(),
            nodes_values_as_tensor=tensor(whole.value, "nodes_values"),
            nodes_truenodeids=whole.left.tolist(),
            nodes_falsenodeids=whole.right.tolist(),
            nodes_missing_value_tracks_true=whole.missing_left.tolist(),
            target_treeids=number[leaf].tolist(),
            target_nodeids=index[leaf].tolist(),
            target_ids=[0] * int(leaf.sum()),
            target_weights_as_tensor=tensor(whole.weight[leaf] * share, "target_weights"),
            n_targets=1,
            aggregate_function="SUM",
            post_transform="NONE",
        )
        return self.node("Add", self.node("Cast", summed, to=_type("DOUBLE")), self.constant(constant))

    def add_to(self, proto: Any, *, first: bool = False) -> None:
        """Add nodes and constants to a model, after its nodes or ``first``."""
        onnx = package("onnx")
        nodes = [*self.nodes, *proto.graph.node] if first else [*proto.graph.node, *self.nodes]
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)
        proto.graph.initializer.extend(self.constants)
        if not any(entry.domain == TREES for entry in proto.opset_import):
            proto.opset_import.append(onnx.helper.make_opsetid(TREES, TREES_OPSET))


def _type(name: str) -> int:
    return int(getattr(package("onnx").TensorProto, name))
