"""Export a classifier of the form `rows` as an ONNX graph in float32.

Nodes are named like the layers of the model, so a precision plan made for the torch model can be applied to
the file. The numeric encoding is written out as a linear map: in float32 this costs about as much as the
look-ups do in torch, and its product can be quantized to INT8 like that of any other linear layer.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from balancer.errors import UnsupportedError
from balancer.models.attention import DenseAttention, WindowAttention
from balancer.models.blocks import Block
from balancer.models.classifier import Classifier
from balancer.models.embedding import TransactionEmbedding
from balancer.models.encoding import LARGEST, PiecewiseLinearEncoder
from balancer.models.export.onnx_files import FORMAT, VERSION, package, quiet, write_model
from balancer.models.heads import BinaryHead, MulticlassHead
from balancer.models.missing import MissingEncoder

OPSET = 20  # the first version with a Gelu operator
_STEEPEST = 3e38
"""Slope of a step function.

Multiplied by the smallest distance between two float32 values of ordinary size it exceeds 1, and it is
finite.
"""


LOGITS = "logits"
"""Name of the output (B, K) that is only there if it is asked for: the log-odds of fraud, then the shares of
its K - 1 kinds."""


def export_onnx(model: Classifier, file: Path, *, logits: bool = False) -> None:
    """Write a classifier of the form `rows` with dense or window attention as an ONNX graph.

    Adapters are merged into the weights, auxiliary tasks are removed. Inputs are `values` (B, n, C) float32,
    left-aligned windows with NaN for a missing number, and `lengths` (B,) int64. The output is
    `probabilities` (B, K) float32. B is at least 1, n is from 1 to the model's history_length, and both are
    dynamic.

    Args:
        model: the classifier, in any mode and on any device; it is not changed.
        file: replaced atomically.
        logits: whether to write the output `LOGITS` too. Runtimes compute small probabilities less exactly
            than log-odds.

    Raises:
        UnsupportedError: The model has a form, part or layer that can't be exported.
        MissingDependencyError: A package is not installed.
        UnwritableFileError: The file can't be written.
    """
    wrapped = traceable(model, "ONNX", logits=logits)
    package("onnxscript")
    package("onnx")
    with torch.random.fork_rng(devices=[]):  # tracing must not change the state of the caller's generator
        outputs = ["probabilities", LOGITS] if logits else ["probabilities"]
        proto = _trace(wrapped, len(model.config.numeric_fields) + len(model.config.categorical_fields), outputs)
    layers = _name_layers(
        proto, [name for name, part in wrapped.named_modules() if isinstance(part, nn.Linear | nn.Embedding) and name != "missing"]
    )
    about = {
        "format": FORMAT,
        "version": VERSION,
        "history": model.config.history_length,
        "fields": [*model.config.numeric_fields, *model.config.categorical_fields],
        "classes": list(model.config.classes),
        "layers": layers,
    }
    write_model(proto, about, file)


def traceable(model: Classifier, target: str, *, logits: bool = False) -> nn.Module:
    """Rewrite a copy of the model in operators that exporters support, in evaluation mode on the CPU.

    Args:
        model: the classifier; it is not changed.
        target: name of the format, for error messages.
        logits: whether the module returns the `LOGITS` too.

    Returns:
        A module from windows (B, n, C) and lengths (B,) to probabilities (B, K), or to these and the logits.

    Raises:
        UnsupportedError: The model has a form, part or layer that `target` can't represent.
    """
    with torch.random.fork_rng(devices=[]):  # copying must not change the state of the caller's generator
        plain = model.deployable().cpu().float()
        _check_exportable(plain, target)
        return _Exported(plain, logits).eval()


class _Exported(nn.Module):
    """The model's layers, under the same names, combined by operators that ONNX supports."""

    embedding: Any
    head: Any

    def __init__(self, model: Classifier, logits: bool) -> None:
        super().__init__()
        self.logits = logits
        source = model.embedding
        assert isinstance(source, TransactionEmbedding) and source.position is not None
        self.embedding = nn.Module()  # provides the prefix of the layers' names
        self.numeric = _numeric_layer(source.numeric) if isinstance(source.numeric, PiecewiseLinearEncoder) else None
        if self.numeric is not None:
            self.embedding.numeric = self.numeric.linear
        self.missing = None if source.missing is None else _missing_layer(source.missing, source.num_numeric)
        self.embedding.categorical, self.embedding.position = source.categorical, source.position
        self.blocks, self.norm, self.head = model.blocks, model.norm, model.head
        self.num_numeric = source.num_numeric
        self.margin = model.config.numeric_fields.index(model.config.margin) if model.config.margin else None

    def forward(self, values: Tensor, lengths: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Map windows (B, n, C) and lengths (B,) to probabilities (B, K), and to logits (B, K) if wanted."""
        positions = torch.arange(values.shape[1])
        lengths = torch.minimum(lengths.clamp(min=0), positions[-1:] + 1)  # a length beyond the window would read nothing
        mask = positions < lengths[:, None]
        last, real = (lengths - 1).clamp(min=0), (lengths > 0)[:, None, None]
        x = self._embed(values, lengths, mask, positions)
        for position, block in enumerate(self.blocks, start=1):
            assert isinstance(block, Block)
            x = self._last_block(block, x, last) if position == len(self.blocks) else self._block(block, x) * mask[..., None]
        # From here on a row is its last position, (B, 1, d). A row of only padding is zero, as in torch.
        scores = self.head.project(self.norm(x) * real)[:, 0]
        fraud_logit = scores[:, :1]
        if self.margin is not None:
            given = values[torch.arange(values.shape[0]), last, self.margin][:, None] * real[:, 0]
            fraud_logit = fraud_logit + torch.where(given.isnan(), 0.0, given)
        negative, fraud = torch.sigmoid(-fraud_logit), torch.sigmoid(fraud_logit)
        shares = torch.ones_like(fraud) if isinstance(self.head, BinaryHead) else scores[:, 1:].softmax(-1)
        kinds = fraud if isinstance(self.head, BinaryHead) else fraud * shares
        probabilities = torch.cat([negative, kinds], -1)
        return (probabilities, torch.cat([fraud_logit, shares], -1)) if self.logits else probabilities

    def _embed(self, values: Tensor, lengths: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        total: Tensor = self.embedding.position((lengths[:, None] - 1 - positions).clamp(min=0))
        if self.numeric is not None:
            total = total + self.embedding.numeric(self.numeric(values[..., : self.num_numeric], mask))
        if self.missing is not None:
            total = total + self.missing(values[..., : self.num_numeric].isnan().to(values.dtype))
        for column, table in enumerate(self.embedding.categorical, start=self.num_numeric):
            code = values[..., column]
            known = mask & (code >= 0) & (code < table.num_embeddings)
            total = total + table(torch.where(known, code, 0).to(torch.int64))
        return total * mask[..., None]

    def _block(self, block: Block, x: Tensor) -> Tensor:
        normed = block.attention_norm(x)
        positions = torch.arange(x.shape[1])
        return self._mixed(block, x, normed, normed, _masked(block, positions, positions[:, None]))

    def _last_block(self, block: Block, x: Tensor, last: Tensor) -> Tensor:
        rows = torch.arange(x.shape[0])
        normed = block.attention_norm(x)
        masked = _masked(block, torch.arange(x.shape[1]), last[:, None])
        return self._mixed(block, x[rows, last][:, None], normed[rows, last][:, None], normed, masked[:, None, None])

    def _mixed(self, block: Block, x: Tensor, queries: Tensor, keys: Tensor, masked: Tensor) -> Tensor:
        """Apply a block at the m positions `x` (B, m, d); `queries` (B, m, d) attend to `keys` (B, n, d)."""
        attention = block.attention
        assert isinstance(attention, DenseAttention)
        query = attention.query(queries).unflatten(-1, (attention.num_heads, -1)).permute(0, 2, 1, 3)
        key, value = (part.unflatten(-1, (attention.num_heads, -1)) for part in attention.key_value(keys).chunk(2, -1))
        logits = (query / math.sqrt(query.shape[-1])) @ key.permute(0, 2, 3, 1)
        weights = torch.where(masked, -torch.inf, logits).softmax(-1)
        hidden = x + attention.out((weights @ value.permute(0, 2, 1, 3)).permute(0, 2, 1, 3).flatten(2))
        added: Tensor = hidden + block.ff2(nn.functional.gelu(block.ff1(block.ff_norm(hidden))))
        return added


def _masked(block: Block, key_at: Tensor, query_at: Tensor) -> Tensor:
    """Mask (m, n) of the key positions (n,) that the queries at (m, 1) must not attend to."""
    attention, later = block.attention, key_at > query_at
    return later | (key_at <= query_at - attention.core.layout.window) if isinstance(attention, WindowAttention) else later


class _Numbers(nn.Module):
    """Encode numeric fields (B, n, F) as steps and piecewise-linear values (B, n, F x 2 bins).

    All values are from 0 to 1. It also holds the linear map that follows.
    """

    lower: Tensor
    rate: Tensor

    def __init__(self, lower: Tensor, rate: Tensor, linear: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("lower", lower)
        self.register_buffer("rate", rate)
        self.linear = linear

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """Encode the values; a missing number and padding give zeros."""
        present = mask[..., None] & ~values.isnan()
        # Infinite values would become NaN, so values are clamped; no edge exceeds LARGEST. Missing values are
        # set below even the first step, so that all their encodings are zero.
        number = torch.where(present, values.clamp(-2 * LARGEST, 2 * LARGEST), -4 * LARGEST)
        return ((number[..., None] - self.lower) * self.rate).clamp(0, 1).flatten(2)


def _numeric_layer(encoder: PiecewiseLinearEncoder) -> _Numbers:
    fields, bins, channels = encoder.slope.shape
    lower, width = encoder.places.lower.view(fields, bins).clone(), encoder.places.width.view(fields, bins).clone()
    used = lower.isfinite()  # fields with fewer bins than the maximum are padded with infinite edges
    lower[~used], width[~used] = 0, 1
    first = lower.clone()
    first[:, 0] = -3 * LARGEST  # the first step is 1 for every present number
    linear = nn.Linear(fields * 2 * bins, channels, bias=False)
    weight = torch.cat([encoder.step, encoder.slope], 1) * torch.cat([used, used], 1)[..., None]
    linear.weight = nn.Parameter(weight.detach().flatten(0, 1).T.contiguous(), requires_grad=False)
    rate = torch.cat([torch.full_like(width, _STEEPEST), 1 / width], 1)
    return _Numbers(torch.cat([first, lower], 1), rate, linear)


def _missing_layer(encoder: MissingEncoder, fields: int) -> nn.Linear:
    """The vectors of missing numbers as a linear map of all F fields; it is small, and stays in float32."""
    linear = nn.Linear(fields, encoder.weight.shape[1], bias=False)
    weight = torch.zeros(fields, encoder.weight.shape[1]).index_copy(0, encoder.column, encoder.weight.detach())
    linear.weight = nn.Parameter(weight.T.contiguous(), requires_grad=False)
    return linear


def _check_exportable(model: Classifier, target: str) -> None:
    config = model.config
    if config.form != "rows":
        raise UnsupportedError(
            f"form '{config.form}' can't be exported to {target}; train a model with --form rows, or export a light build (--lite)"
        )
    wanted: list[tuple[str, str, object, tuple[type, ...]]] = [
        ("embedding", config.embedding, model.embedding, (TransactionEmbedding,)),
        ("head", config.head, model.head, (BinaryHead, MulticlassHead)),
        *(
            ("attention", config.attention, block.attention, (DenseAttention, WindowAttention))
            for block in model.blocks
            if isinstance(block, Block)
        ),
    ]
    if config.cycles or config.numeric_encoding != "piecewise":
        raise UnsupportedError(
            f"numeric_encoding 'periodic' and cycles can't be exported to {target}; train a model with numeric_encoding piecewise and no cycles"
        )
    for kind, name, part, known in wanted:
        if type(part) not in known:  # a subclass may compute something else
            remedy = {"embedding": "transaction", "attention": "dense or window", "head": "binary or multiclass"}[kind]
            raise UnsupportedError(
                f"{kind} '{name}' can't be exported to {target}; train a model with {kind} {remedy}, or export a light build (--lite)"
            )
    linears = [f"blocks.{i}.{name}" for i in range(len(model.blocks)) for name in _BLOCK_LINEARS]
    tables = ["embedding.position", *(f"embedding.categorical.{i}" for i in range(len(config.cardinalities)))]
    expected: dict[str, type[nn.Module]] = dict.fromkeys((*linears, "head.project"), nn.Linear) | dict.fromkeys(tables, nn.Embedding)
    if config.numeric_fields:
        expected["embedding.numeric"] = PiecewiseLinearEncoder
    for name, layer_type in expected.items():
        if type(model.get_submodule(name)) is not layer_type:
            raise UnsupportedError(
                f"layer {name} is a {type(model.get_submodule(name)).__name__} and can't be exported; export the float model, then quantize the file"
            )


_BLOCK_LINEARS = ("attention.query", "attention.key_value", "attention.out", "ff1", "ff2")


def _trace(wrapped: nn.Module, fields: int, outputs: list[str]) -> Any:
    # Lengths of 1 are valid for any history_length. The example is only traced, but sizes of 1 would be taken
    # as constants.
    example = (torch.zeros(3, 2, fields), torch.ones(3, dtype=torch.int64))
    dynamic = torch.export.Dim.DYNAMIC
    with quiet("torch.onnx", "onnxscript", "onnx_ir"), torch.no_grad():
        program = torch.onnx.export(
            wrapped,
            example,
            dynamo=True,
            input_names=["values", "lengths"],
            output_names=outputs,
            dynamic_shapes={"values": {0: dynamic, 1: dynamic}, "lengths": {0: dynamic}},
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto  # made anew by each access
    _name_dimensions(proto)
    return proto


def _name_dimensions(proto: Any) -> None:
    """Name the dynamic dimensions of inputs and outputs `rows` and `n` (rows of a window)."""
    values = next(each for each in proto.graph.input if each.name == "values").type.tensor_type.shape.dim
    names = {values[0].dim_param: "rows", values[1].dim_param: "n"}
    for each in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dimension in each.type.tensor_type.shape.dim:
            if dimension.dim_param in names:
                dimension.dim_param = names[dimension.dim_param]


def _name_layers(proto: Any, names: Collection[str]) -> dict[str, str]:
    """Name each layer's node and weight like its module, and remove the exporter's metadata.

    The metadata is half of the file.

    Returns:
        Node by module name.
    """
    layers: dict[str, str] = {}
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    renamed: dict[str, str] = {}
    for node in proto.graph.node:
        scopes = next((entry.value for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes"), "")
        weight = next((name for name in node.input if name in weights), None)
        layer = next((name for name in names if f"'{name}'" in scopes), None)
        if layer is not None and weight is not None and node.op_type in ("MatMul", "Gather"):
            node.name = layers[layer] = layer
            renamed.setdefault(weight, f"{layer}.weight")
        del node.metadata_props[:]
        node.doc_string = ""
    for node in proto.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    for name, tensor in weights.items():
        tensor.name = renamed.get(name, name)
    del proto.graph.metadata_props[:]
    missing = set(names) - set(layers)
    assert not missing, f"the exporter lost track of {sorted(missing)}"
    return layers
