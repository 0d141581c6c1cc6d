"""`Classifier`: an embedding, blocks and a head, given by name or as objects.

Each part can be replaced after training. A name is a key of the three registries below, an entry point of
another package, or `module:Class`. See docs/parts.md.
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
"""Embeddings by name.

Each maps a batch of fields (B, n, C) to a batch of channels (B, m, d_model). m may differ from n; the last
position is scored.
"""

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
"""Attentions over d_model channels by name; one is built for each block."""

HEADS: dict[str, Callable[[ModelConfig], Head]] = {
    "binary": lambda config: BinaryHead(config.d_model),
    "multiclass": lambda config: MulticlassHead(config.d_model, len(config.classes)),
}
"""Heads over d_model channels by name."""


def autocast(device: torch.device | str) -> AbstractContextManager[object]:
    """Return bfloat16 autocast on CUDA, and a null context on a CPU.

    On a CPU it does not speed up small models.
    """
    kind = torch.device(device).type
    return torch.autocast("cuda", dtype=torch.bfloat16) if kind == "cuda" else nullcontext()


class Classifier(nn.Module):
    """Transaction classifier: scores a transaction from the transactions before it.

    It scores the last transaction of each window (form `rows`) or chosen positions of whole histories (form
    `histories`).

    Example:
        >>> import numpy as np, torch
        >>> from balancer.models import Classifier, ModelConfig, SequenceBatch, fit_edges
        >>> rng = np.random.default_rng(0)
        >>> windows = rng.normal(size=(64, 8, 1)).astype(np.float32)  # 64 histories, one field
        >>> label = (windows[:, -1, 0] > windows[:, -2, 0] + 1).astype(np.int64)
        >>> edges = fit_edges(windows[:, -1], label, seed=0)
        >>> config = ModelConfig(("amount",), (), (), edges, history_length=8)
        >>> model = Classifier(config)
        >>> batch = SequenceBatch.from_windows(windows, np.full(64, 8))
        >>> model.loss(model(batch), torch.from_numpy(label)).backward()
        >>> model.eval().probabilities(batch).shape
        torch.Size([64, 2])

    Args:
        config: configuration of the model. Initial weights are drawn from torch's global generator; seed it
            first for reproducible weights.
        embedding: embedding to use instead of the one named in `config`: a module, or a function that builds
            one from the configuration.
        attention: likewise; each block gets its own copy of a module.
        head: likewise.

    Raises:
        InputError: `config` names an unknown part, or the parts are not compatible.
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
        """Build a model with other parts and the same remaining weights; this model is not changed.

        Args:
            embedding: name, module, or function that builds one from the configuration. New weights are drawn
                from torch's global generator.
            attention: likewise.
            head: likewise.
            keep_matching: also copy the tensors of a replaced part that have the same name and shape; dense,
                window and sparse attention share their projections.
            changes: fields of the `ModelConfig` to change at the same time, such as `classes=` with a head or
                `numeric_fields=` with an embedding.

        Raises:
            InputError: A part is unknown or not compatible, or a change requires replacing a part that is not
                replaced.
        """
        asked = {"embedding": embedding, "attention": attention, "head": head}
        for name in ("d_model", "num_layers"):
            if changes.get(name, getattr(self.config, name)) != getattr(self.config, name):
                raise InputError(
                    f"{name} belongs to the trunk and can't change from {getattr(self.config, name)} to {changes[name]}; build a new model"
                )
        names = {kind: part for kind, part in asked.items() if isinstance(part, str)}
        objects = {kind: part for kind, part in asked.items() if part is not None and not isinstance(part, str)}
        config = dataclasses.replace(self.config, **(changes | names))
        with torch.device(self.norm.weight.device):
            model = Classifier(config, **objects)  # type: ignore[arg-type]
        if "embedding" not in names | objects:
            for name in ("numeric_fields", "categorical_fields", "cardinalities", "edges", "missing"):
                if getattr(model.config, name) != getattr(self.config, name):
                    raise InputError(f"{name} can't change while the embedding is kept; give embedding= as well")
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
                shape = "missing" if old is None else str(tuple(old.shape))
                remedy = f"give {part}= as well" if part in asked else "build a new model"
                raise InputError(f"{part} does not fit the changes: {name} is {shape}, it would be {tuple(tensor.shape)}; {remedy}")
            kept.append(name)
        model.load_state_dict({name: before[name] for name in kept}, strict=False)
        new = tuple(name for name in after if name not in set(kept))
        dropped = tuple(name for name in before if name not in set(kept))
        return Replacement(model.train(self.training), tuple(kept), new, dropped)

    def deployable(self) -> Classifier:
        """Return a copy for deployment, with adapters merged and without heads of auxiliary tasks."""
        model = copy.deepcopy(self)
        fold(model.blocks)
        model.tasks = None
        model.config = dataclasses.replace(self.config, adapter_rank=0, tasks=())
        return model

    def encode(self, batch: SequenceBatch, targets: Targets | None = None) -> SequenceBatch:
        """Compute the input of the head from a batch of fields.

        Args:
            batch: fields (B, n, C).
            targets: T positions to encode instead of the last position of each row (form `histories`).

        Returns:
            Values (B, 1, d_model) at the last positions, (T, 1, d_model) at the `targets`, or (B, n, d_model)
            for a head that needs the whole sequence.

        Raises:
            UnsupportedError: Targets are given but the form is `rows`, or the head needs the whole sequence.
        """
        if targets is not None:
            self._check_targets()
        margin = self._margin(batch, targets)
        batch = self.embedding(batch)
        for position, block in enumerate(self.blocks, start=1):
            last = position == len(self.blocks)
            last_only = last and targets is None and not self.head.needs_sequence
            batch = block(batch, last_only=last_only, targets=targets if last else None)
        return dataclasses.replace(batch.with_values(self.norm(batch.values)), margin=margin)

    def logits(self, encoded: SequenceBatch) -> Tensor:
        """Compute the logits from the result of :meth:`encode`, with its margin."""
        logits: Tensor = self.head(encoded)
        return logits if encoded.margin is None else self.head.add_margin(logits, encoded.margin)

    def forward(self, batch: SequenceBatch, targets: Targets | None = None) -> Tensor:
        """Compute the logits of a batch of fields (B, n, C).

        Args:
            batch: fields (B, n, C).
            targets: T positions to score instead of the last position of each row (form `histories`); each is
                scored from the positions before it and itself.

        Returns:
            (B,) from a binary head, (B, K) from a multi-class head; with `targets`, T instead of B.
        """
        return self.logits(self.encode(batch, targets))

    def init_state(self, batch_size: int) -> list[Any]:
        """Initial state of `batch_size` empty histories, for :meth:`step`.

        Its size does not grow with the history.

        Raises:
            UnsupportedError: The form is `rows`, or the attention or the head needs the whole history.
        """
        self._check_targets()
        return [block.attention.init_state(batch_size) for block in self._each_block()]

    @torch.no_grad()
    def step(self, fields: Tensor, state: list[Any]) -> tuple[Tensor, list[Any]]:
        """Read the next transaction (B, C) of each history. Call `eval()` first.

        Returns:
            The logits, equal to those of :meth:`forward` up to rounding, and the state after the transaction.
        """
        one = torch.ones(len(fields), dtype=torch.int64, device=fields.device)
        x = self.embedding(SequenceBatch(fields[:, None], one, one[:, None].bool())).values[:, 0]
        after = []
        for block, block_state in zip(self._each_block(), state, strict=True):
            x, block_state = block.step(x, block_state)
            after.append(block_state)
        encoded = SequenceBatch(self.norm(x)[:, None], one, one[:, None].bool(), self._margin_of(fields))
        return self.logits(encoded), after

    @torch.no_grad()
    def read(self, fields: Tensor) -> list[Any]:
        """Compute the state after one whole history (n, C), n at least 1, in one pass.

        The state equals that after n calls of :meth:`step`, up to rounding.

        Raises:
            UnsupportedError: As for :meth:`init_state`.
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
        """Compute how much attention each target pays to each position, for `at_once` targets at a time.

        Args:
            batch: fields (B, n, C).
            targets: T positions.
            at_once: number of targets per step, which limits the memory.

        Yields:
            The slice of targets, their attention (t, n) float32 averaged over heads and blocks, and (t, n)
                bool, True where a position was attended as a global node.

        Raises:
            UnsupportedError: The attention has no weights to return.
        """
        batch = self.embedding(batch)
        length, inputs = batch.values.shape[1], []
        for block in self._each_block():
            inputs.append(block.normed(batch))
            batch = block(batch)
        for begin in range(0, len(targets[0]), at_once):
            part = slice(begin, begin + at_once)
            mass = torch.zeros(len(targets[0][part]), length + 1, device=batch.values.device)
            is_global = torch.zeros_like(mass, dtype=torch.bool)
            for block, given in zip(self._each_block(), inputs, strict=True):
                seen = block.attention.attended(given, targets[0][part], targets[1][part])
                # Empty slots are added to an extra column at the end. No position occurs in two slots, except
                # that column.
                place = seen.position.where(seen.position >= 0, length)
                mass.scatter_add_(1, place, seen.mass / len(self.blocks))
                is_global.scatter_(1, place.where(seen.is_global, length), True)
            yield part, mass[:, :length], is_global[:, :length]

    @torch.no_grad()
    def _check_parts(self) -> None:
        """Pass two histories through the parts one by one.

        Raises:
            InputError: Two parts are not compatible; the message names both parts and both shapes.
        """
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
                f"embedding '{config.embedding}' gives {tuple(batch.values.shape)}, but attention '{config.attention}' takes {wanted}: "
                f"an embedding must give d_model = {config.d_model} channels"
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
                    f"'{config.embedding}': an attention must not change the shape"
                )
        last = batch if self.head.needs_sequence else batch.last()
        logits = _passed(lambda: self.head(last), f"attention '{config.attention}'", last, f"head '{config.head}'")
        if self.head.probabilities(logits).shape != (2, len(config.classes)):
            raise InputError(
                f"head '{config.head}' gives {tuple(logits.shape)} for the {tuple(last.values.shape)} of attention '{config.attention}', and "
                f"probabilities {tuple(self.head.probabilities(logits).shape)}: a head must give (B, {len(config.classes)}) probabilities"
            )
        self.train(was_training)

    def _margin(self, batch: SequenceBatch, targets: Targets | None) -> Tensor | None:
        """Log-odds (B,) or (T,) that are added to the fraud logit; 0 where they are missing."""
        if not self.config.margin:
            return None
        return self._margin_of((batch.last() if targets is None else batch.at(*targets)).values[:, 0])

    def _margin_of(self, fields: Tensor) -> Tensor | None:
        """The margin (B,) among the fields (B, C) of the rows to score."""
        if not self.config.margin:
            return None
        return fields[:, self.config.numeric_fields.index(self.config.margin)].nan_to_num(0.0)

    def _each_block(self) -> Iterator[Block]:
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block

    def _check_targets(self) -> None:
        if self.config.form != "histories":
            raise UnsupportedError("form 'rows' scores only the last position of a window; build the model with form='histories'")
        if self.head.needs_sequence:
            raise UnsupportedError(f"head '{self.config.head}' needs the whole sequence and can't score single positions; use another head")

    def probabilities(self, batch: SequenceBatch, targets: Targets | None = None) -> Tensor:
        """Compute class probabilities (B, K) or (T, K) float32 of a batch of fields. Call `eval()` first.

        The fraud score is 1 minus column 0.
        """
        return self.head.probabilities(self(batch, targets))

    def loss(self, logits: Tensor, label: Tensor, class_weight: Tensor | None = None) -> Tensor:
        """Compute the mean loss of logits; see :meth:`Head.loss`.

        Args:
            logits: result of :meth:`forward`.
            label: (B,) int64 class index; -1 is unlabelled and ignored.
            class_weight: (K,) weight of each class.
        """
        return self.head.loss(logits, label, class_weight)


class Replacement(NamedTuple):
    """Result of :meth:`Classifier.replace`: the model, and names of tensors in `state_dict()`."""

    model: Classifier
    kept: tuple[str, ...]
    """Tensors copied from the old model."""
    new: tuple[str, ...]
    """Tensors of the new model with new initial values."""
    dropped: tuple[str, ...]
    """Tensors of the old model that were not copied."""

    def describe(self) -> str:
        """Summarize in one line how many tensors of each part were kept, are new, or were dropped."""
        lines = []
        for what, names in (("kept", self.kept), ("new", self.new), ("dropped", self.dropped)):
            parts = [part_of(name) for name in names]
            each = ", ".join(f"{parts.count(part)} of the {part}" for part in dict.fromkeys(parts))
            lines.append(f"{what}: {each or 'nothing'}")
        return "; ".join(lines)


_SHIPPED: dict[str, frozenset[str]] = {"embedding": frozenset(EMBEDDINGS), "attention": frozenset(ATTENTIONS), "head": frozenset(HEADS)}
"""Parts of this package, which are known to be compatible with one another."""


def _maker(registry: dict[str, Any], kind: str, name: str, given: object, base: type[Part]) -> Factory[Part]:
    """Return a factory of the part: by name, from the given factory, or copies of the given module."""
    if given is None:
        return find_part(registry, kind, name, base)
    if isinstance(given, base):
        return lambda _: copy.deepcopy(given)
    if isinstance(given, nn.Module) or not callable(given):
        raise InputError(f"{kind} is a {type(given).__name__}: give a {base.__name__}, or a function that builds one from a ModelConfig")

    def build(config: ModelConfig) -> Part:
        part = given(config)
        if not isinstance(part, base):
            raise InputError(f"{kind} '{name}' returns a {type(part).__name__}, not a {base.__name__}")
        return part

    return build


def _passed(call: Callable[[], Any], source: str, given: SequenceBatch, receiver: str) -> Any:
    """Run `call`, which passes `given` from the part `source` to the part `receiver`.

    Raises:
        InputError: The call fails; the message names both parts and the shape.
    """
    try:
        return call()
    except (RuntimeError, IndexError, ValueError) as error:
        raise InputError(
            f"{source} gives {tuple(given.values.shape)}, which {receiver} can't take: {str(error).splitlines()[0]}"
        ) from error
