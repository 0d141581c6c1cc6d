"""Accelerate, Lightning and Trainer in two processes with gloo: each item once, and equal weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from balancer import AdaptiveSampler, DistributedAdaptiveBatchSampler
from tests.integrations.distributed_checks import OPTIONS, TRAIN
from tests.sampling.processes import on_processes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What each of two processes found."""
    return on_processes("tests.integrations.distributed_checks", tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("library", ["accelerate", "trainer", "shards", "parts"])
def test_the_ranks_share_an_epoch_and_have_the_same_weights(ranks: list[Any], library: str) -> None:
    one, other = (rank[library] for rank in ranks)
    assert one["weights"] == other["weights"]
    assert one["weights"][:2] == pytest.approx([0.7, 0.3]) and one["weights"][2] > 0.2
    if library in ("accelerate", "trainer"):  # batches in turn
        first = [row for step in zip(one["seen"], other["seen"], strict=True) for batch in step for row in batch][:240]
        compensated = True if library == "trainer" else None
        assert first == list(AdaptiveSampler(TRAIN[1], compensated=compensated, **OPTIONS))
    elif library == "parts":
        first = [[row for rows in zip(*step, strict=True) for row in rows] for step in zip(one["seen"], other["seen"], strict=True)]
        assert first[:6] == list(DistributedAdaptiveBatchSampler(TRAIN[1], batch_size=40, **OPTIONS))
        assert (len(first), one["updates"]) == (12, 2)
    else:
        sampler = AdaptiveSampler(shards={0: TRAIN[1][:120], 1: TRAIN[1][120:]}, num_shards=2, **OPTIONS)
        steps = zip(np.concatenate(one["seen"][:6]).tolist(), np.concatenate(other["seen"][:6]).tolist(), strict=True)
        assert [row for step in steps for row in step] == list(sampler)
        assert one["updates"] == 2
