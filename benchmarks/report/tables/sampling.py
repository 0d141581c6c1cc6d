"""Tables of the comparison of sampling policies."""

from __future__ import annotations

from benchmarks.report.tables import load, signed, table

PARTS = {
    "handbook-population": "handbook, MLP",
    "sparkov-population": "sparkov, MLP",
    "handbook-classifier": "handbook, sequence classifier",
    "sparkov-classifier": "sparkov, sequence classifier",
}


def sampling() -> str:
    """Figures of every policy with every data set and learner, compared with 1:1."""
    heading = ["data, learner", "sampling", "AP", "difference to 1:1 [95 %]", "F1, tuned", "F1 at .5"]
    heading += ["false alarms per 10k at recall .60 / .70", "ECE", "trainings"]
    rows = []
    for part, result in load("sampling")["parts"].items():
        against = result["paired"]["one_to_one"]
        for policy, figures in sorted(result["means"].items(), key=lambda item: -item[1]["average_precision"]):
            alarms = " / ".join(f"{figures[f'false_alarms_per_10k_at_recall_{recall}']:.2f}" for recall in ("0.60", "0.70"))
            difference = "" if policy == "one_to_one" else signed(against[policy]["average_precision"])
            name = f"**{policy}**" if policy == "auto" else policy
            precision, tuned, at_half = (f"{figures[key]:.3f}" for key in ("average_precision", "f1", "f1_at_half"))
            costs = [f"{figures['ece']:.4f}", f"{figures['trainings']:g}"]
            rows.append([PARTS[part], name, precision, difference, tuned, at_half, alarms, *costs])
    return table(heading, rows)


def claims() -> str:
    """The claims on `auto` and PPO, and whether they hold."""
    parts = load("sampling")["parts"]
    by_part = [{claim["claim"]: claim for claim in result["claims"]} for result in parts.values()]
    texts = dict.fromkeys(text for found in by_part for text, claim in found.items() if claim["holds"] != "not measured")

    def cell(claim: dict[str, float]) -> str:
        return "-" if claim.get("figure") is None else f"{signed(claim, key='figure')}: {claim['holds']}"

    rows = [[text, *(cell(found[text]) for found in by_part)] for text in texts]
    return table(["claim", *(PARTS[part] for part in parts)], rows)


def per_class() -> str:
    """Figures of the kinds of fraud of handbook, by policy."""
    rows = []
    for part, result in load("sampling")["parts"].items():
        if not part.startswith("handbook"):
            continue
        for policy in ("auto", "none", "one_to_one", "under"):
            for kind, figures in result["per_class"].get(policy, {}).items():
                values = [f"{figures[key]:.3f}" if key in figures else "-" for key in ("average_precision", "recall", "precision")]
                rows.append([PARTS[part].split(", ")[1], policy, kind, *values])
    return table(["learner", "sampling", "kind of fraud", "AP against legitimate", "recall", "precision"], rows)


def real_tables() -> str:
    """`auto` against the best fixed treatment of each table, by learner."""
    results = load("real_tables")["tables"]
    learners = list(dict.fromkeys(learner for by_learner in results.values() for learner in by_learner))
    rows = []
    for name, by_learner in results.items():
        cells = []
        for learner in learners:
            result = by_learner.get(learner)
            if result is None:
                cells.append("-")
                continue
            best, figures = result["best_fixed"], result["means"]
            precision = f"{figures['auto']['average_precision']:.3f} / {figures[best]['average_precision']:.3f}"
            cells.append(f"{precision} ({best}): {result['verdict']}")
        first = next(iter(by_learner.values()))
        rows.append([name.replace("_", " "), f"{first['rows']:,}", ", ".join(map(str, first["rare"].values())), *cells])
    totals = load("real_tables")["auto_against_the_best_fixed"]
    counts = [", ".join(f"{number} {verdict}" for verdict, number in totals[learner].items()) for learner in learners]
    rows.append(["all", "", "", *counts])
    return table(["table", "rows", "rare", *(f"{learner}: AP of `auto` / best fixed" for learner in learners)], rows)


def draws() -> str:
    """Average precision by number of mini-batches, and how many fewer draws `auto` needs."""
    rows = []
    for stream, result in load("draws")["streams"].items():
        for kept, found in (("last", result), ("best", result["best_epoch"])):
            for treatment, figures in found["average_precision"].items():
                fewer = found["fewer_draws"].get(treatment)
                factor = "" if fewer is None else f"{fewer['times_fewer']:g} times" if fewer["times_fewer"] else "never reached"
                rows.append([stream, kept, treatment, *(f"{value:.3f}" for value in figures.values()), factor])
    budgets = list(next(iter(next(iter(load("draws")["streams"].values()))["average_precision"].values())))
    return table(
        ["stream", "epoch", "sampling", *(f"{int(budget):,}" for budget in budgets), "fewer draws for `auto` to reach its last figure"],
        rows,
    )


def recency() -> str:
    """Average precision by half-life."""
    names = {"handbook": "handbook", "sparkov": "sparkov", "tasks": "held-out tasks with drift"}
    parts = load("recency")["parts"]
    half_lives = list(next(iter(parts.values())))

    def cell(figures: dict[str, float]) -> str:
        error = figures["standard_error"]
        beyond = "" if not figures["difference"] else f" ({figures['difference']:+.3f} \u00b1 {error:.3f})"
        return f"{figures['average_precision']:.3f}{beyond}"

    rows = [[names[part], *(cell(result[half_life]) for half_life in half_lives)] for part, result in parts.items()]
    return table(["data", *half_lives], rows)


def policy_tasks() -> str:
    """Policies on held-out tasks."""
    result = load("policy_tasks")
    ranked = sorted(result["policies"].items(), key=lambda item: -item[1]["average_precision"])
    rows = []
    for name, figures in ranked:
        against = figures["average_precision_against_reference"]
        difference = "" if name == result["reference"] else signed(against)
        rows.append([name, f"{figures['average_precision']:.3f}", difference, f"{figures['f1']:.3f}"])
    return table(["policy", "AP", f"difference to {result['reference']} [95 %]", "F1, best"], rows)
