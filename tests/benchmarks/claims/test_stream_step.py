"""The benchmark of the step of a stream: a short run finds both steps, and equal results."""

from __future__ import annotations

import pytest
import torch

from balancer.models.step import absence
from benchmarks.claims import stream_step


@pytest.mark.slow
@pytest.mark.skipif(absence() is not None, reason=f"the native step is not here: {absence()}")
def test_a_quick_run(capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    stream_step.main(["--quick"])
    torch.set_num_threads(before)
    assert len(capsys.readouterr().out.splitlines()) == len(stream_step.CASES)


@pytest.mark.skipif(absence() is not None, reason=f"the native step is not here: {absence()}")
def test_a_cell_has_both_times_and_the_difference() -> None:
    cell = stream_step.measure("histories", "window", 8, 3)
    assert set(cell["step_cpu_ms"]) == {"torch", "native"}
    assert cell["native_of_torch"] == cell["step_cpu_ms"]["native"] / cell["step_cpu_ms"]["torch"]
    assert cell["largest_difference_of_probabilities"] < 1e-6
