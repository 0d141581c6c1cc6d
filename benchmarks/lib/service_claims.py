"""What the results of the benchmark of the service say about its claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

DATABASES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
MOST_MS_P50, MOST_MS_P99, MOST_RATIO = 2.0, 5.0, 1.3
LEAST_SINGLE, LEAST_BATCHED = 1_000, 3_000
MOST_LOG, MOST_STATE = 15_000, 100_000
"""Bytes of PostgreSQL's log a transaction, and of the stored state of a card."""
MOST_READY, MOST_ANSWER = 5.0, 10.0
MOST_STEP = 0.05
MOST_HEALTHZ, MOST_MEMORY = 100.0, 256.0
"""Milliseconds, and MB."""
NOTHING = {
    "lost": "transactions lost",
    "counted_twice": "transactions counted twice",
    "cards_with_wrong_counts": "cards with wrong counts",
    "sums_that_differ_from_their_rows": "sums that differ from their rows",
    "stored_though_never_sent": "transactions stored though never sent",
    "stored_though_erased": "transactions stored though erased",
    "answers_differing_from_what_is_stored": "answers that differ from what is stored",
    "scored_by_the_old_model_after_the_swap": "scores by the old model after the swap",
}
"""Numbers of the part trouble that must be 0, in words."""
LEFT = ("not_stored", "counts_left", "refused_again", "left_open_after_40_s", "failed")
"""Numbers of an attack that must be 0."""

Claim = dict[str, Any]


def claims(found: Mapping[str, Any]) -> list[Claim]:
    """The claims about the parts that were measured: `claim`, `wanted`, `found`, and whether it `holds`."""
    made: list[Claim] = []
    for name, part in (
        ("latency", latency),
        ("throughput", throughput),
        ("storage", storage),
        ("step", step),
        ("trouble", trouble),
        ("abuse", abuse),
    ):
        if name in found and "skipped" not in found[name]:
            made += part(found[name])
    return made


def most(text: str, value: float, limit: float, unit: str = "") -> Claim:
    """A claim that a value is at most a limit."""
    wanted = f"at most {shown(limit)}{unit}" if limit else "0"
    return {"claim": text, "wanted": wanted, "found": f"{shown(value)}{unit}", "holds": value <= limit}


def least(text: str, value: float, limit: float) -> Claim:
    """A claim that a value is at least a limit."""
    return {"claim": text, "wanted": f"at least {shown(limit)}", "found": shown(value), "holds": value >= limit}


def shown(value: float) -> str:
    """A number with three digits, or all of those before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def latency(part: Mapping[str, Any]) -> list[Claim]:
    made = []
    for name, found in part["databases"].items():
        length, last = list(found["by_history"].items())[-1]
        where = f"{DATABASES[name]}, a history of {int(length):,}"
        made += [
            most(f"{where}: median of a request", last["ms_p50"], MOST_MS_P50, " ms"),
            most(
                f"{where}: 99th percentile, less {found['disk']['ms_p99']:.3g} ms of the disk", last["less_disk_ms_p99"], MOST_MS_P99, " ms"
            ),
            most(f"{where}: median, as a ratio to the shortest history", found["ratio_p50"], MOST_RATIO),
            most(f"{where}: 99th percentile, as a ratio to the shortest history", found["ratio_p99"], MOST_RATIO),
        ]
    return made


def throughput(part: Mapping[str, Any]) -> list[Claim]:
    made = []
    for name, shown in DATABASES.items():
        cells = [cell for cell in part["cells"] if cell["database"] == name]
        if not cells:
            continue
        single, batched = (
            max(cell["transactions_per_second"] for cell in cells if (cell["rows"] == 1) == alone) for alone in (True, False)
        )
        made.append(least(f"{shown}, 32 clients: single transactions a second", single, LEAST_SINGLE))
        made.append(least(f"{shown}: transactions a second in batches of 100", batched, LEAST_BATCHED))
        if name == "postgresql":
            log = max(cell["wal_bytes_a_transaction"] for cell in cells)
            made.append(most("PostgreSQL: bytes of its log a transaction", log, MOST_LOG))
    return made


def storage(part: Mapping[str, Any]) -> list[Claim]:
    return [
        most("bytes of the stored state of a card", max(part["state_bytes_by_history"].values()), MOST_STATE),
        most("a worker is ready after", part["ready_seconds"], MOST_READY, " s"),
        most("the first answer after", part["first_answer_seconds"], MOST_ANSWER, " s"),
        most("processes that have torch loaded, with one worker", part["processes_with_torch"], 1),
    ]


def step(part: Sequence[Mapping[str, Any]]) -> list[Claim]:
    return [
        most(f"CPU time of the native step, of torch's ({cell['form']}, {cell['attention']})", cell["native_of_torch"], MOST_STEP)
        for cell in part
    ]


def trouble(part: Mapping[str, Any]) -> list[Claim]:
    compared, missing = part["scores_compared_with_a_replay"], part["scores_missing_in_it"]
    events = (
        f"{part['minutes']:g} minutes with {part['accepted']:,} transactions, {part['workers_killed']} workers killed, "
        f"{part['database_restarts']} database restart, {part['model_swaps']} model swap, {part['labels']:,} labels, "
        f"{part['labels_removed']:,} of them removed, {part['cards_erased']:,} cards erased, {part['amounts_corrected']:,} amounts corrected"
    )
    first, *others = (most(text, part[name], 0) for name, text in NOTHING.items())
    first["claim"] = f"{events}: {first['claim']}"
    equal = {
        "claim": "scores equal to an uninterrupted replay",
        "wanted": "all",
        "found": f"{part['scores_equal_to_it']:,} of {compared + missing:,}; largest difference {part['largest_difference_from_it']:.1g}",
        "holds": part["scores_equal_to_it"] == compared and not missing,
    }
    size = most("mean bytes of the stored state of a card, afterwards", part["state_bytes_a_card"], MOST_STATE)
    return [first, *others, equal, size]


def abuse(part: Mapping[str, Any]) -> list[Claim]:
    """Over all attacks: the worst of each number."""
    cases = {name: case for name, case in part.items() if "skipped" not in case}
    if not cases:
        return []
    slow, large = (max(cases, key=lambda name: cases[name][key]) for key in ("healthz_ms_most", "memory_growth_mb"))
    left = {f"{name}: {key}": case[key] for name, case in cases.items() for key in LEFT if case.get(key)}
    return [
        most(f"{len(cases)} attacks: workers killed", sum(case["workers_killed"] for case in cases.values()), 0),
        most("requests for /healthz without an answer", sum(case["healthz_failures"] for case in cases.values()), 0),
        most(f"slowest /healthz ({slow})", cases[slow]["healthz_ms_most"], MOST_HEALTHZ, " ms"),
        most(f"growth of the memory of the worker ({large})", cases[large]["memory_growth_mb"], MOST_MEMORY, " MB"),
        most("answers with status 500", sum(case["statuses"].get("500", 0) for case in cases.values()), 0),
        {"claim": "what is left or lost afterwards", "wanted": "nothing", "found": str(left or "nothing"), "holds": not left},
    ]
