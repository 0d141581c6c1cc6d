"""Learned policies against the constant of the same space, on held-out tasks, with intervals.

The tasks share no random number with those that the policies learned on. Every policy trains the same
students with the same random numbers, and each student counts as it was at its best epoch on validation.
``auto`` is what is best in this table.

    python -m benchmarks.claims.policy_tasks         # -> benchmarks/results/policy_tasks.json
"""

from __future__ import annotations

from rich.console import Console

from balancer.policy_learning.evaluation import evaluate_policy, print_evaluation
from benchmarks.lib.commands import parser
from benchmarks.lib.recording import RESULTS, record, rounded


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--tasks", type=int, default=80, help="held-out tasks")
    options.add_argument("--seed", type=int, default=21, help="seed of the tasks")
    arguments = options.parse_args()
    console = Console(stderr=True)
    result = evaluate_policy("ppo", arguments.tasks, seed=arguments.seed, reference="auto", console=console)
    print_evaluation(result, console)
    record(rounded(result, 4), RESULTS / "policy_tasks.json")


if __name__ == "__main__":
    main()
