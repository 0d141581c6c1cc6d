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


def sampling_tables() -> str:
    """Ten tables of scikit-learn and imbalanced-learn."""
    rows = []
    for name, result in load("sampling_tables")["tables"].items():
        precision, best = result["average_precision"], result["best_fixed"]
        rare = ", ".join(str(count) for count in result["rare"].values())
        values = [f"{precision[best]:.3f}", f"{precision['auto']:.3f}", signed(result["difference"]), result["auto_against_it"]]
        rows.append([name, f"{result['rows']:,}", rare, best, *values])
    return table(["table", "rows", "rare", "best fixed treatment", "its AP", "AP of `auto`", "difference [95 %]", ""], rows)
