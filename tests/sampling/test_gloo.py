"""Samplers in two processes with torch.distributed and gloo do what they do in one."""

from __future__ import annotations

from pathlib import Path

from tests.sampling.fake_ranks import on_ranks
from tests.sampling.gloo_checks import checked
from tests.sampling.processes import on_processes


def test_two_processes_share_one_sequence_and_have_the_same_weights(tmp_path: Path) -> None:
    one, other = on_processes("tests.sampling.gloo_checks", tmp_path)
    alone, *_ = on_ranks(1, lambda group: checked(group, 0, 1))

    def turns(name: str) -> list[object]:
        return [item for step in zip(one[name], other[name], strict=True) for item in step]

    for name in ("rows", "batches", "shards"):
        assert turns(name) == alone[name]
    for parts, whole in (
        ([one["parts"], other["parts"]], alone["parts"]),
        ([one["later"][1], other["later"][1]], alone["later"][1]),
    ):
        assert [[row for rows in zip(*step, strict=True) for row in rows] for step in zip(*parts, strict=True)] == whole
    assert one["weights"] == other["weights"] == alone["weights"]
    assert one["state"] == other["state"] == alone["state"]
    for place in (0, 2):
        steps = zip(one["later"][place], other["later"][place], strict=True)
        assert [row for step in steps for row in step] == alone["later"][place]
    assert "y_score has 1 rows" in other["error"] and one["error"] == f"on rank 1: {other['error']}"
