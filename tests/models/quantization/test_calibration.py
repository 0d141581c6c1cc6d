"""Calibration batches and metrics that can't be used are refused with the remedy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from balancer.errors import InputError
from balancer.models.quantization import apply_precision, plan_precision, sensitivity, uniform_plan
from tests.models.quantization.kinds import DTYPES, KINDS

pytestmark = pytest.mark.usefixtures("every_precision")
SCORES = ("output_fisher", "gradient", "exact")


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()  # type: ignore[no-any-return]


@pytest.mark.parametrize("score", SCORES)
def test_batches_without_rows_and_with_nan_are_named(score: Any) -> None:
    model, good = KINDS["linear"].make(), torch.randn(4, 8)
    for bad, message in ((good[:0], "batch 2 has no rows"), (good * math.nan, "batch 2 is not finite: remove rows with NaN")):
        with pytest.raises(InputError, match=message):
            sensitivity(model, [good, bad], score=score)
        if score != "exact":
            with pytest.raises(InputError, match="the loss of calibration batch 2 is not finite"):
                sensitivity(model, [good, bad], score=score, loss=loss)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("score", SCORES)
def test_every_dtype_is_measured(score: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = KINDS["linear"].make().to(dtype)
    report = sensitivity(model, [torch.randn(64, 8).to(dtype)], score=score)
    assert all(0 < row.score["int8"] < 0.01 for row in report.rows)
    plan = plan_precision(report, max_bytes=sum(row.bytes["int8"] for row in report.rows))
    _, applied = apply_precision(model, plan)
    assert applied.bytes_after == plan.expected["bytes"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_metric_that_is_not_finite_is_refused(value: float) -> None:
    model = KINDS["linear"].make()
    report = sensitivity(model, [torch.randn(4, 8)], latency=False)
    with pytest.raises(InputError, match=f"the metric of the full-precision model is {value}"):
        plan_precision(report, max_metric_drop=0.1, metric=lambda _: value, model=model)
    with pytest.raises(InputError, match="the metric is nan"):
        plan_precision(report, max_metric_drop=0.1, metric=lambda own: 0.5 if own is model else math.nan, model=model)


@pytest.mark.skipif(not hasattr(nn, "LinearCrossEntropyLoss"), reason="this version of torch has no such module")
def test_torchs_loss_that_reads_its_linear_layer_is_refused_by_name() -> None:
    model = nn.ModuleDict({"body": nn.Linear(8, 8), "loss": nn.LinearCrossEntropyLoss(8, 3)})
    with pytest.raises(InputError, match="loss is a torch LinearCrossEntropyLoss"):
        uniform_plan(model)
