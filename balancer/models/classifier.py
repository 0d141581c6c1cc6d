"""`Classifier`: embedding, blocks, head, chosen by name or given as objects; any of them can be replaced in a model that has learned.

Names are keys of three plain dictionaries, entry points of other packages, or `module:Class` (docs/parts.md shows one).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from balancer.errors import InputError, UnsupportedError
from balancer.models.adapter import adapt, fold
from balancer.models.attention import Attention, DenseAttention, SparseAttention, WindowAttention
from balancer.models.batch import SequenceBatch, Targets
from balancer.models.blocks import Block
from balancer.models.config import ModelConfig
from balancer.models.embedding import TransactionEmbedding
from balancer.models.heads import BinaryHead, Head, MulticlassHead
from balancer.models.parts import Factory, find_part, name_of, part_of
from balancer.models.tabular import TabularEmbedding
from balancer.models.tasks import TaskHeads
from balancer.models.text import TokenEmbedding

Part = TypeVar("Part", bound=nn.Module)

EMBEDDINGS: dict[str, Callable[[ModelConfig], nn.Module]] = {
    "transaction": TransactionEmbedding,
    "tabular": TabularEmbedding,
    "token": TokenEmbedding,
}
"""By name: a module from a batch of fields (B, n, C) to a batch of channels (B, n, d_model), or of another length, of which the last position is judged."""

ATTENTIONS: dict[str, Callable[[ModelConfig], Attention]] = {
    "dense": lambda config: DenseAttention(config.d_model, config.num_heads, rotary=config.form == "histories"),
    "window": lambda config: WindowAttention(config.d_model, config.num_heads, config.attention_window, rotary=config.form == "histories"),
    "sparse": lambda config: SparseAttention(
        config.d_model,
        config.num_heads,
        config.attention_window,
        config.global_nodes,
        rotary=config.form == "histories",
        score=config.score,
    ),
}
"""By name: an `Attention` over d_model channels; made once per block."""

HEADS: dict[str, Callable[[ModelConfig], Head]] = {
    "binary": lambda config: BinaryHead(config.d_model),
    "multiclass": lambda config: MulticlassHead(config.d_model, len(config.classes)),
}
"""By name: a `Head` over d_model channels."""


def autocast(device: torch.device | str) -> AbstractContextManager[object]:
    """bfloat16 autocast on CUDA; on a CPU nothing, since small models gain nothing by it there."""
    kind = torch.device(device).type
    return torch.autocast("cuda", dtype=torch.bfloat16) if kind == "cuda" else nullcontext()


class Classifier(nn.Module):
    """Judges the last transaction of each window, or chosen ones of whole histories, by the ones before it.

    Example:
        >>> import numpy as np, torch
        >>> from balancer.models import Classifier, ModelConfig, SequenceBatch, fit_edges
        >>> rng = np.random.default_rng(0)
        >>> windows = rng.normal(size=(64, 8, 1)).astype(np.float32)        # 64 histories of 8 transactions, one numeric field
        >>> label = (windows[:, -1, 0] > windows[:, -2, 0] + 1).astype(np.int64)
        >>> config = ModelConfig(("amount",), (), (), fit_edges(windows[:, -1], label, seed=0), history_length=8)
        >>> model = Classifier(config)
        >>> batch = SequenceBatch.from_windows(windows, np.full(64, 8))
        >>> model.loss(model(batch), torch.from_numpy(label)).backward()
        >>> model.eval().probabilities(batch).shape
        torch.Size([64, 2])

    Args:
        config: what to build. Weights are drawn from torch's global generator: seed it first where they must repeat.
        embedding: a part instead of the one that `config` names: a module, or what makes one from the configuration.
        attention: likewise; of a module each block gets a copy.
        head: likewise.

    Raises:
        InputError: `config` names a part that is not there, or parts don't fit one another.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        embedding: nn.Module | Factory[nn.Module] | None = None,
        attention: Attention | Factory[Attention] | None = None,
        head: Head | Factory[Head] | None = None,
    ) -> None:
        super().__init__()
        given = {"embedding": embedding, "attention": attention, "head": head}
        registries: dict[str, Any] = {"embedding": EMBEDDINGS, "attention": ATTENTIONS, "head": HEADS}
        named = {kind: name_of(registries[kind], part) for kind, part in given.items() if part is not None}
        config = dataclasses.replace(config, **named) if named else config  # type: ignore[arg-type]
        self.config = config
        make_attention = _maker(ATTENTIONS, "attention", config.attention, attention, Attention)  # type: ignore[type-abstract]
        self.embedding = _maker(EMBEDDINGS, "embedding", config.embedding, embedding, nn.Module)(config)
        self.blocks = nn.ModuleList(Block(make_attention(config), config.d_model, config.dropout) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.d_model)
        self.head = _maker(HEADS, "head", config.head, head, Head)(config)  # type: ignore[type-abstract]
        self.tasks = TaskHeads(config.d_model, config.tasks, self.head.losses_of) if config.tasks else None
        if config.adapter_rank:
            adapt(self.blocks, config.adapter_rank)
        if any(part is not None or getattr(config, kind) not in _SHIPPED[kind] for kind, part in given.items()):
            self._check_parts()

    def replace(
        self,
        *,
        embedding: str | nn.Module | Factory[nn.Module] | None = None,
        attention: str | Attention | Factory[Attention] | None = None,
        head: str | Head | Factory[Head] | None = None,
        keep_matching: bool = False,
        **changes: Any,
    ) -> Replacement:
        """A model with other parts and all other weights as they are; this one stays what it is.

        Args:
            embedding: name, module, or what makes one from the configuration. New weights are drawn from torch's global generator.
            attention: likewise.
            head: likewise.
            keep_matching: take over what has the same name and shape in a replaced part too; dense, window and sparse attention share their projections.
            changes: fields of the `ModelConfig` to change with it, such as `classes=` with a head or `numeric_fields=` with an embedding.

        Raises:
            InputError: A part is not there or does not fit, or a change concerns a part that is not replaced.
        """
        asked = {"embedding": embedding, "attention": attention, "head": head}
        for name in ("d_model", "num_layers"):
            if changes.get(name, getattr(self.config, name)) != getattr(self.config, name):
                raise InputError(
                    f"{name} is the trunk's and can't change from {getattr(self.config, name)} to {changes[name]}; build a new model"
                )
        names = {kind: part for kind, part in asked.items() if isinstance(part, str)}
        objects = {kind: part for kind, part in asked.items() if part is not None and not isinstance(part, str)}
        config = dataclasses.replace(self.config, **(changes | names))
        with torch.device(self.norm.weight.device):
            model = Classifier(config, **objects)  # type: ignore[arg-type]
        if "embedding" not in names | objects:
            for name in ("numeric_fields", "categorical_fields", "cardinalities", "edges"):
                if getattr(model.config, name) != getattr(self.config, name):
                    raise InputError(f"{name} can't change under an embedding that is kept; give embedding= as well")
        before, after = self.state_dict(), model.state_dict()
        replaced = {kind for kind, part in asked.items() if part is not None}
        kept = []
        for name, tensor in after.items():
            part, old = part_of(name), before.get(name)
            fits = old is not None and old.shape == tensor.shape
            if part in replaced and not (keep_matching and fits):
                continue
            if not fits:
                if part in ("adapter", "tasks"):
                    continue
                told = "none" if old is None else str(tuple(old.shape))
                remedy = f"give {part}= as well" if part in asked else "build a new model"
                raise InputError(f"{part} does not fit what was changed: {name} is {told}, it would be {tuple(tensor.shape)}; {remedy}")
            kept.append(name)
        model.load_state_dict({name: before[name] for name in kept}, strict=False)
        new = tuple(name for name in after if name not in set(kept))
        dropped = tuple(name for name in before if name not in set(kept))
        return Replacement(model.train(self.training), tuple(kept), new, dropped)

    def deployable(self) -> Classifier:
        """A copy without what serves learning only: adapters folded into the weights, heads of further tasks left out."""
        model = copy.deepcopy(self)
        fold(model.blocks)
        model.tasks = None
        model.config = dataclasses.replace(self.config, adapter_rank=0, tasks=())
        return model

    def encode(self, batch: SequenceBatch, targets: Targets | None = None) -> SequenceBatch:
        """What the head sees of a batch of fields: (B, 1, d_model) at the last positions, (T, 1, d_model) at the `targets`, or (B, n, d_model) for a head
        that needs the sequence.

        Raises:
            UnsupportedError: Targets are given and the model is of the form `rows`, or its head needs the sequence.
        """
        if targets is not None:
            self._check_targets()
        batch = self.embedding(batch)
        for position, block in enumerate(self.blocks, start=1):
            last = position == len(self.blocks)
            last_only = last and targets is None and not self.head.needs_sequence
            batch = block(batch, last_only=last_only, targets=targets if last else None)
        return batch.with_values(self.norm(batch.values))

    def forward(self, batch: SequenceBatch, targets: Targets | None = None) -> Tensor:
        """Logits of a batch of fields (B, n, C): (B,) from a binary head, (B, K) from a multi-class one; T rows for T `targets`, each judged by
        what came before it (form `histories`).
        """
        logits: Tensor = self.head(self.encode(batch, targets))
        return logits

    def init_state(self, batch_size: int) -> list[Any]:
        """The state of `batch_size` histories before their first transaction, for `step`; its size does not grow with what is read.

        Raises:
            UnsupportedError: The form is `window`, or the attention or the head needs the whole past.
        """
        self._check_targets()
        return [block.attention.init_state(batch_size) for block in self._each_block()]

    @torch.no_grad()
    def step(self, fields: Tensor, state: list[Any]) -> tuple[Tensor, list[Any]]:
        """Read the next transaction (B, C) of each history: its logits, as `forward` would give, and the state after it. Call `eval()` first."""
        one = torch.ones(len(fields), dtype=torch.int64, device=fields.device)
        x = self.embedding(SequenceBatch(fields[:, None], one, one[:, None].bool())).values[:, 0]
        after = []
        for block, own in zip(self._each_block(), state, strict=True):
            x, own = block.step(x, own)
            after.append(own)
        logits: Tensor = self.head(SequenceBatch(self.norm(x)[:, None], one, one[:, None].bool()))
        return logits, after

    @torch.no_grad()
    def read(self, fields: Tensor) -> list[Any]:
        """The state after one whole history (n, C), n at least 1, as n times `step` would leave it, up to rounding: in one pass.

        Raises:
            UnsupportedError: As `init_state`.
        """
        self._check_targets()
        length = torch.tensor([len(fields)], device=fields.device)
        batch = self.embedding(SequenceBatch.from_windows(fields[None], length, fields.device))
        state = []
        for block in self._each_block():
            state.append(block.attention.read(block.normed(batch)))
            batch = block(batch)
        return state

    @torch.no_grad()
    def attended(self, batch: SequenceBatch, targets: Targets, *, at_once: int = 512) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Which positions weighed on each target, `at_once` targets at a time: which targets, their attention (t, n) float32, mean over heads and blocks,
        and (t, n) bool, where a global node was used.

        Raises:
            UnsupportedError: The attention has no weights to show.
        """
        batch = self.embedding(batch)
        length, inputs = batch.values.shape[1], []
        for block in self._each_block():
            inputs.append(block.normed(batch))
            batch = block(batch)
        for begin in range(0, len(targets[0]), at_once):
            own = slice(begin, begin + at_once)
            mass = torch.zeros(len(targets[0][own]), length + 1, device=batch.values.device)
            is_global = torch.zeros_like(mass, dtype=torch.bool)
            for block, given in zip(self._each_block(), inputs, strict=True):
                seen = block.attention.attended(given, targets[0][own], targets[1][own])
                # Empty slots go to a column past the end; no position stands in two slots, but that column does.
                place = seen.position.where(seen.position >= 0, length)
                mass.scatter_add_(1, place, seen.mass / len(self.blocks))
                is_global.scatter_(1, place.where(seen.is_global, length), True)
            yield own, mass[:, :length], is_global[:, :length]

    @torch.no_grad()
    def _check_parts(self) -> None:
        """Pass two histories through the parts one by one; InputError naming both parts and both shapes where they don't fit."""
        if self.norm.weight.is_meta:
            return
        config, length, was_training = self.config, min(2, self.config.history_length), self.training
        self.eval()
        fields = torch.zeros(2, length, len(config.numeric_fields) + len(config.categorical_fields), device=self.norm.weight.device)
        full = torch.full((2,), length, device=fields.device)
        batch = SequenceBatch(fields, full, torch.ones(2, length, dtype=torch.bool, device=fields.device))
        batch = _passed(lambda: self.embedding(batch), "the fields", batch, f"embedding '{config.embedding}'")
        wanted = (*batch.values.shape[:2], config.d_model)
        if batch.values.shape != wanted:
            raise InputError(
                f"embedding '{config.embedding}' gives {tuple(batch.values.shape)}, attention '{config.attention}' takes {wanted}: "
                f"an embedding gives d_model = {config.d_model} channels"
            )
        for block in self._each_block():
            given = block.normed(batch)
            mixed = _passed(
                lambda block=block, given=given: block.attention(given),  # type: ignore[misc]
                f"embedding '{config.embedding}'",
                given,
                f"attention '{config.attention}'",
            )
            if mixed.values.shape != given.values.shape:
                raise InputError(
                    f"attention '{config.attention}' gives {tuple(mixed.values.shape)} for the {tuple(given.values.shape)} of embedding "
                    f"'{config.embedding}': an attention gives the shape that it takes"
                )
        last = batch if self.head.needs_sequence else batch.last()
        logits = _passed(lambda: self.head(last), f"attention '{config.attention}'", last, f"head '{config.head}'")
        if self.head.probabilities(logits).shape != (2, len(config.classes)):
            raise InputError(
                f"head '{config.head}' gives {tuple(logits.shape)} for the {tuple(last.values.shape)} of attention '{config.attention}', and "
                f"probabilities {tuple(self.head.probabilities(logits).shape)}: a head gives (B, {len(config.classes)}) probabilities"
            )
        self.train(was_training)

    def _each_block(self) -> Iterator[Block]:
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block

    def _check_targets(self) -> None:
        if self.config.form != "histories":
            raise UnsupportedError("form 'window' judges the last position of a window only; build the model with form='sequence'")
        if self.head.needs_sequence:
            raise UnsupportedError(f"head '{self.config.head}' needs the whole sequence and can't judge single positions of it")

    def probabilities(self, batch: SequenceBatch, targets: Targets | None = None) -> Tensor:
        """Class probabilities (B, K) or (T, K) float32 of a batch of fields; the fraud score is 1 minus column 0. Call `eval()` first."""
        return self.head.probabilities(self(batch, targets))

    def loss(self, logits: Tensor, label: Tensor, class_weight: Tensor | None = None) -> Tensor:
        """Mean loss of logits for labels (B,) int64, -1 = unlabelled and left out; `class_weight` (K,) weighs rows by their class."""
        return self.head.loss(logits, label, class_weight)


class Replacement(NamedTuple):
    """What `Classifier.replace` made, and the names of tensors in `state_dict()`."""

    model: Classifier
    kept: tuple[str, ...]
    """Taken over."""
    new: tuple[str, ...]
    """Of the model, freshly drawn."""
    dropped: tuple[str, ...]
    """Of the old model, not in the new one, or not with these weights."""

    def describe(self) -> str:
        """In one line: how many tensors of each part were kept, are new, were dropped."""
        told = []
        for what, names in (("kept", self.kept), ("new", self.new), ("dropped", self.dropped)):
            parts = [part_of(name) for name in names]
            each = ", ".join(f"{parts.count(part)} of the {part}" for part in dict.fromkeys(parts))
            told.append(f"{what}: {each or 'nothing'}")
        return "; ".join(told)


_SHIPPED: dict[str, frozenset[str]] = {"embedding": frozenset(EMBEDDINGS), "attention": frozenset(ATTENTIONS), "head": frozenset(HEADS)}
"""Parts that are known to fit one another."""


def _maker(registry: dict[str, Any], kind: str, name: str, given: object, base: type[Part]) -> Factory[Part]:
    """What makes the part: from the configuration, or of a module that was given a copy of it."""
    if given is None:
        return find_part(registry, kind, name, base)
    if isinstance(given, base):
        return lambda _: copy.deepcopy(given)
    if isinstance(given, nn.Module) or not callable(given):
        raise InputError(f"{kind} is a {type(given).__name__}: give a {base.__name__}, or what makes one from a ModelConfig")

    def made(config: ModelConfig) -> Part:
        part = given(config)
        if not isinstance(part, base):
            raise InputError(f"{kind} '{name}' makes a {type(part).__name__}, not a {base.__name__}")
        return part

    return made


def _passed(call: Callable[[], Any], giver: str, given: SequenceBatch, taker: str) -> Any:
    try:
        return call()
    except (RuntimeError, IndexError, ValueError) as error:
        raise InputError(f"{giver} gives {tuple(given.values.shape)}, which {taker} can't take: {str(error).splitlines()[0]}") from error
