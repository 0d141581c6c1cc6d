"""``balancer train`` with a log of the rows of every step; ``torchrun`` starts this module for the tests.

Arguments: a folder for the logs, the number of a step before which process 1 is killed on the first attempt
(0: never), and those of ``balancer train``.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from balancer.cli import main
from balancer.training.trainer import ClassifierTrainer

SHORT = {
    "balancer.training.pipeline.BASELINES": (),
    "balancer.evaluation.baselines.MAX_ROUNDS": 5,
    "balancer.training.pipeline.print_costs": lambda *_: None,
}
"""What is not needed here, and what replaces it."""


def train(log: Path, kill_before: int, arguments: list[str]) -> int:
    """Run the command; the log of a process has a line for each of its passes: step, and store rows."""
    attempt, rank = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), os.environ.get("RANK", "0")
    one_pass = ClassifierTrainer._pass

    def logged(self: ClassifierTrainer, batch: Any, targets: Any, step: Any, which: Any, share: Any) -> Any:
        if self.step == kill_before > 0 and (attempt, rank) == ("0", "1"):
            os.kill(os.getpid(), signal.SIGKILL)
        with (log / f"{attempt}-{rank}.txt").open("a") as stream:
            stream.write(f"{self.step} {' '.join(map(str, step.rows[which]))}\n")
        return one_pass(self, batch, targets, step, which, share)

    with pytest.MonkeyPatch.context() as patch:
        for name, value in SHORT.items():
            patch.setattr(name, value)
        patch.setattr(ClassifierTrainer, "_pass", logged)
        return main(["train", *arguments])


if __name__ == "__main__":
    sys.exit(train(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
