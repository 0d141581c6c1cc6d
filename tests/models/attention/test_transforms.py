"""Transforms of `torch.func`, compilation, export and autocast: every backend and the modules work, or refuse
by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from balancer.errors import UnsupportedError
from balancer.models import ATTENTIONS, SequenceBatch
from balancer.models.attention import Layout, SparseSelfAttention, native, sparse_attention
from balancer.models.attention.backends import BACKENDS
from balancer.models.checks import example_config

# Torch's forward mode uses a part of torch that is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
CALLS, BATCH, LENGTH = 3, 2, 40
NAMES = [name for name in BACKENDS if name != "triton" and BACKENDS[name].refuses(torch.zeros(1, 4, 1, 16), Layout()) is None]
FUSED = [name for name in NAMES if name != "reference"]
Six = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def inputs() -> Six:
    """Query, key, value, score, gate and padding of several calls."""
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(CALLS, BATCH, LENGTH, 2, 16, generator=draw) for _ in range(3))
    score, gate, drawn = (torch.randn(CALLS, BATCH, LENGTH, generator=draw) for _ in range(3))
    return query, key, value, score, gate, drawn < -1


def attend(backend: str) -> Callable[..., Tensor]:
    def attend(query: Tensor, key: Tensor, value: Tensor, score: Tensor, gate: Tensor, padding: Tensor | None) -> Tensor:
        return sparse_attention(query, key, value, score, gate=gate, key_padding_mask=padding, window=8, num_global=3, backend=backend)

    return attend


def one_call(given: Six) -> list[Tensor]:
    return [x[0] for x in given]


@pytest.mark.parametrize("name", NAMES)
def test_vmap_over_any_of_the_inputs(name: str) -> None:
    given, call = inputs(), attend(name)
    wanted = torch.stack([call(*x) for x in zip(*given, strict=True)])
    torch.testing.assert_close(vmap(call)(*given), wanted)
    for part in range(6):
        dims = tuple(0 if index == part else None for index in range(6))
        mixed = [x if index == part else x[0] for index, x in enumerate(given)]
        wanted = torch.stack([call(*(x[call_] if index == part else x for index, x in enumerate(mixed))) for call_ in range(CALLS)])
        torch.testing.assert_close(vmap(call, dims)(*mixed), wanted)
    moved = vmap(call, (1, 0, 0, 0, 0, 0), out_dims=1)(given[0].movedim(0, 1), *given[1:])
    torch.testing.assert_close(moved.movedim(1, 0), vmap(call)(*given))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_torch_func(name: str) -> None:
    given, call = inputs(), attend(name)

    def loss(query: Tensor, key: Tensor, value: Tensor, gate: Tensor, score: Tensor, padding: Tensor) -> Tensor:
        return call(query, key, value, score, gate, padding).square().sum()

    query, key, value, score, gate, padding = given
    each = vmap(grad(loss, argnums=(0, 1, 2, 3)))(query, key, value, gate, score, padding)
    for index in range(CALLS):
        leaves = [x[index].clone().requires_grad_() for x in (query, key, value, gate)]
        wanted = torch.autograd.grad(loss(*leaves, score[index], padding[index]), leaves)
        alone = grad(loss, argnums=(0, 1, 2, 3))(*(x[index] for x in (query, key, value, gate, score, padding)))
        for own, func, expected in zip((x[index] for x in each), alone, wanted, strict=True):
            torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(func, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FUSED)
def test_derivatives_that_do_not_exist_are_refused_by_name(name: str) -> None:
    query, key, value, score, gate, _ = one_call(inputs())
    call = attend(name)
    with pytest.raises(UnsupportedError, match=f"'{name}' has no forward-mode derivatives.*reference"):
        jvp(lambda x: call(x, key, value, score, gate, None), (query,), (query,))
    for part in range(3):
        leaves = [x.clone().requires_grad_(index == part) for index, x in enumerate((query, key, value))]
        (first,) = torch.autograd.grad(call(*leaves, score, gate, None).square().sum(), leaves[part], create_graph=True)
        with pytest.raises(UnsupportedError, match=f"'{name}' has no second derivatives.*reference"):
            first.sum().backward()
    with pytest.raises(UnsupportedError, match="second derivatives"):
        grad(lambda x: grad(lambda y: call(y, key, value, score, gate, None).square().sum())(x).sum())(query)


def test_the_reference_has_all_derivatives() -> None:
    query, key, value, score, gate, _ = (x[:1, :10].double() if x.ndim == 4 else x[:1, :10] for x in one_call(inputs()))

    def call(*leaves: Tensor) -> Tensor:
        return sparse_attention(*leaves, score, gate=gate, window=4, num_global=2, backend="reference")

    leaves = [x.requires_grad_() for x in (query, key, value)]
    assert torch.autograd.gradcheck(call, leaves, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize("name", NAMES)
def test_compiled_in_one_graph(name: str) -> None:
    given = one_call(inputs())
    torch._dynamo.reset()
    compiled = torch.compile(attend(name), backend="aot_eager", fullgraph=True)
    results = []
    for call in (attend(name), compiled):
        leaves = [x.clone().requires_grad_() if x.is_floating_point() else x for x in given]
        out = call(*leaves)
        out.square().sum().backward()
        results.append([out.detach(), *(x.grad for x in leaves if x.grad is not None)])
    for own, wanted in zip(*results, strict=True):
        torch.testing.assert_close(own, wanted, atol=1e-5, rtol=1e-5)
    spoiled = [x.clone() for x in given]
    spoiled[1][0, 30] = torch.nan
    torch.testing.assert_close(compiled(*spoiled), attend(name)(*spoiled), equal_nan=True)


@pytest.mark.parametrize("name", NAMES)
def test_exported_for_any_batch(name: str) -> None:
    class Model(nn.Module):
        def forward(self, *given: Tensor) -> Tensor:
            return attend(name)(*given, None)

    query, key, value, score, gate, _ = inputs()
    small = [x[0] for x in (query, key, value, score, gate)]
    batch = {0: torch.export.Dim("batch", min=2, max=64)}
    exported = torch.export.export(Model(), tuple(small), dynamic_shapes=((batch,) * 5,))
    large = [x.flatten(0, 1) for x in (query, key, value, score, gate)]
    torch.testing.assert_close(exported.module()(*large), attend(name)(*large, None))


@pytest.mark.parametrize("name", NAMES)
def test_modules(name: str) -> None:
    torch.manual_seed(0)
    module = SparseSelfAttention(32, 2, window=8, num_global=3, backend=name)
    x, padding = torch.randn(CALLS, BATCH, LENGTH, 32), torch.rand(CALLS, BATCH, LENGTH) < 0.2
    wanted = torch.stack([module(tokens, key_padding_mask=mask) for tokens, mask in zip(x, padding, strict=True)])
    torch.testing.assert_close(vmap(lambda tokens, mask: module(tokens, key_padding_mask=mask))(x, padding), wanted, atol=1e-5, rtol=1e-5)
    parameters = dict(module.named_parameters())

    def loss(given: Any, tokens: Tensor) -> Tensor:
        result: Tensor = functional_call(module, given, (tokens[None],))
        return result.square().sum()

    each = vmap(grad(loss), (None, 0))(parameters, x[0])
    for index in range(BATCH):
        wanted_grads = torch.autograd.grad(loss(parameters, x[0, index]), list(parameters.values()))
        for own, wanted_grad in zip(each.values(), wanted_grads, strict=True):
            torch.testing.assert_close(own[index], wanted_grad, atol=1e-4, rtol=1e-4)
    exported = torch.export.export(module, (x[0],)).module()
    torch.testing.assert_close(exported(x[1]), module(x[1]))


@pytest.mark.parametrize("name", sorted(ATTENTIONS))
def test_attentions_of_the_classifier(name: str) -> None:
    torch.manual_seed(0)
    attention = ATTENTIONS[name](example_config()).eval()
    lengths = torch.tensor([23, 11])
    mask = torch.arange(23) < lengths[:, None]
    x = torch.randn(CALLS, 2, 23, 16)

    def call(values: Tensor) -> Tensor:
        result: Tensor = attention(SequenceBatch(values, lengths, mask)).values
        return result

    torch.testing.assert_close(vmap(call)(x), torch.stack([call(values) for values in x]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_autocast_keeps_the_dtype(name: str) -> None:
    given = one_call(inputs())
    wanted = attend(name)(*given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attend(name)(*given)
    assert torch.equal(out, wanted)


@pytest.mark.skipif(native.absence() is not None, reason=f"the native kernel is not here: {native.absence()}")
@pytest.mark.parametrize("padded", [True, False])
def test_the_operator_that_selects_is_well_formed(padded: bool) -> None:
    score = torch.randn(2, 20)
    arguments: tuple[Any, ...] = (score, score < -1 if padded else None, 3, 8, True)
    torch.library.opcheck(torch.ops.balancer.select_globals_native.default, arguments)
