"""What each process of test_gloo.py does: ``python -m tests.sampling.gloo_checks FOLDER``."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from balancer import AdaptiveBatchSampler, AdaptiveSampler, DistributedAdaptiveBatchSampler, InputError
from balancer.sampling.torch_ranks import TorchGroup

LABELS = np.repeat([0, 1], [190, 10])
SCORE = np.random.default_rng(0).random(200) * 0.5 + 0.4 * LABELS
OPTIONS: dict[str, Any] = {"policy": "constant:share=.2,hardness=1", "epochs": 3}
SHARDS = [LABELS[number::4] for number in range(4)]


def checked(group: Any, rank: int, size: int) -> dict[str, Any]:
    """Items and weights of samplers on a rank; ``group`` is None where torch.distributed is initialised."""
    rows = AdaptiveSampler(LABELS, num_samples=40, group=group, **OPTIONS)
    batches = AdaptiveBatchSampler(LABELS, batch_size=5, num_batches=6, group=group, **OPTIONS)
    parts = DistributedAdaptiveBatchSampler(LABELS, batch_size=10, num_batches=6, group=group, **OPTIONS)
    own = {number: SHARDS[number] for number in range(rank, 4, size)}
    shards = AdaptiveSampler(shards=own, num_shards=4, num_samples=40, group=group, **OPTIONS)
    found: dict[str, Any] = {
        name: list(each) for name, each in (("rows", rows), ("batches", batches), ("parts", parts), ("shards", shards))
    }
    held, pool = np.arange(200)[rank::size], np.arange(0, 200, 3)[rank::size]
    for sampler in (rows, parts):
        sampler.update(LABELS[held], SCORE[held], rows=pool, row_score=SCORE[pool])
    start = 50 * np.array(list(own))
    sharded = np.concatenate([SHARDS[number] for number in own])
    sharded_score = np.concatenate([SCORE[number::4] for number in own])
    numbers = (start[:, None] + np.arange(50)).ravel()
    shards.update(sharded, sharded_score, rows=numbers, row_score=sharded_score)
    found["weights"] = [[*each.weights.share, *each.metrics.values()] for each in (rows, parts, shards)]
    found["later"] = [list(each) for each in (rows, parts, shards)]
    found["state"] = shards.state_dict(gather=True)["rows"]["error"].tolist()
    return found


def main() -> None:
    """Write what this rank found."""
    dist.init_process_group("gloo")
    group = TorchGroup()
    found = checked(None, group.rank, group.size)
    again = checked(dist.new_group(), group.rank, group.size)
    assert again == found and copy.deepcopy(group) is group and repr(group) == f"TorchGroup(rank={group.rank} of {group.size})"
    three = group.gather(np.arange(group.rank * 3, dtype=np.int16).reshape(-1, 3))
    assert [part.shape for part in three] == [(0, 3), (1, 3)] and three[1].dtype == np.int16
    whole = AdaptiveSampler(LABELS, rank=0, num_replicas=1, **OPTIONS)  # draws for all ranks
    half = slice(group.rank, None, group.size)
    whole.update(LABELS[half], SCORE[half], gather="all")
    other = AdaptiveSampler(LABELS, rank=0, num_replicas=1, **OPTIONS)
    other.update(LABELS, SCORE)  # as it is
    assert abs(whole.metrics["f1"] - other.metrics["f1"]) < 0.01
    with pytest.raises(InputError) as raised:
        whole.update(LABELS[half], [np.nan] if group.rank else SCORE[half], gather="all")
    found["error"] = str(raised.value)
    Path(sys.argv[1], f"{group.rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
