"""``balancer train`` that writes the rows of every step to a file; ``torchrun`` starts this module.

Arguments: a folder for the logs, the step before which process 1 is killed on the first attempt (0: never),
and those of ``balancer train``. A line of a log has the number of a step and the store rows of one of its
micro-batches; the name of the file is that of the attempt and of the process.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

from balancer.cli import main
from balancer.training.trainer import ClassifierTrainer

SHORT = {
    "balancer.training.pipeline.BASELINES": (),
    "balancer.evaluation.baselines.MAX_ROUNDS": 5,
    "balancer.training.pipeline.print_costs": lambda *_: None,
}
"""What is not needed here, such as the steps that estimate the time, and what replaces it."""


def train(log: Path, kill_before: int, arguments: list[str]) -> int:
    """Run the command; returns its exit code."""
    attempt, rank = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), os.environ.get("RANK", "0")
    one_pass = ClassifierTrainer._pass

    def logged(self: ClassifierTrainer, batch: Any, targets: Any, step: Any, which: Any, share: Any) -> Any:
        if self.step == kill_before > 0 and (attempt, rank) == ("0", "1"):
            os.kill(os.getpid(), signal.SIGKILL)
        with (log / f"{attempt}-{rank}.txt").open("a") as stream:
            stream.write(f"{self.step} {' '.join(map(str, step.rows[which]))}\n")
        return one_pass(self, batch, targets, step, which, share)

    with ExitStack() as patches:
        for name, value in SHORT.items():
            patches.enter_context(patch(name, value))
        patches.enter_context(patch.object(ClassifierTrainer, "_pass", logged))
        return main(["train", *arguments])


if __name__ == "__main__":
    sys.exit(train(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
