"""Tables of sparse attention."""

from __future__ import annotations

from typing import Any

from benchmarks.lib.timing import in_words
from benchmarks.report.tables import load, table


def attention_speed() -> str:
    """How many times faster than dense attention by length, the growth of the time, and the claims."""
    parts = load("attention")["parts"]
    part = parts["kernels"]
    names = list(dict.fromkeys(name for cell in part["cells"] for name in cell["milliseconds"] if name != "dense"))
    rows = []
    for causal in (True, False):
        for passes in ("forward", "forward_backward"):
            kind = f"{'causal' if causal else 'bidirectional'}, {in_words(passes)}"
            for cell in part["cells"]:
                if (cell["causal"], cell["passes"]) == (causal, passes) and "times_faster" in cell:
                    times = [f"{cell['times_faster'][name]:.1f}" if name in cell["times_faster"] else "-" for name in names]
                    rows.append([kind, f"{cell['tokens']:,}", f"{cell['milliseconds']['dense']:.4g}", *times])
            slopes = {each["contender"]: each for each in part["growth"] if (each["causal"], each["passes"]) == (causal, passes)}
            if slopes:
                first, last = next(slopes[name] for name in names if name in slopes)["tokens"]
                growth = [f"{slopes[name]['exponent']:.2f}" if name in slopes else "-" for name in names]
                rows.append([f"{kind}: exponent of the time", f"{first:,} to {last:,}", "", *growth])
    restricted = parts.get("kernels_avx2", {"claims": []})["claims"]
    checked = [*part["claims"], *({**claim, "claim": f"with AVX2 only: {claim['claim']}"} for claim in restricted)]
    claims = [[claim["claim"], f"{claim['figure']:.2f}", claim["holds"]] for claim in checked if "figure" in claim]
    return table(["", "tokens", "dense, ms", *names], rows) + "\n\n" + table(["claim", "measured", ""], claims)


def attention_model() -> str:
    """Speed of a whole classifier with sparse attention, and scores per second as transactions come in."""
    part = load("attention")["parts"]["model"]
    kinds = list(dict.fromkeys((cell["width"], cell["passes"]) for cell in part["cells"]))
    rows = []
    for tokens in dict.fromkeys(cell["tokens"] for cell in part["cells"]):
        times = {(cell["width"], cell["passes"]): cell["times_faster"]["sparse"] for cell in part["cells"] if cell["tokens"] == tokens}
        rows.append([f"{tokens:,}", *(f"{times[kind]:.1f}" for kind in kinds)])
    reached = ["-" if claim["from_tokens"] is None else f"{claim['from_tokens']:,} tokens" for claim in part["claims"]]
    rows.append(["3.2 times from", *reached])
    streaming = part["streaming"]
    rates = [[_way(name), f"{float(f'{rate:.3g}'):,.0f}"] for name, rate in streaming["scores_per_second"].items()]
    title = f"scoring one new transaction of each of {streaming['cards']} cards, one thread"
    models = table(["tokens", *(f"d {width}, {in_words(passes)}" for width, passes in kinds)], rows)
    return models + "\n\n" + table([title, "transactions per second"], rates)


def _way(name: str) -> str:
    """A way of scoring a new transaction, in words."""
    if name == "step":
        return "sparse, `step`"
    attention, tokens, _ = name.replace(",", "").split(" ")
    return f"{attention}, reading the last {int(tokens):,} again"


def attention_quality() -> str:
    """Average precision of sparse and of dense attention on public streams."""
    rows = []
    for data, result in load("attention")["parts"]["quality"]["streams"].items():
        for length, figures in result.get("histories", {}).items():
            mean, relative = figures["mean"], {key: None if end is None else 100 * end for key, end in figures["relative"].items()}
            interval = "" if relative["low"] is None else f" [{relative['low']:+.2f}, {relative['high']:+.2f}]"
            difference = f"{relative['difference']:+.2f} %{interval}"
            values = [f"{mean['dense']:.4f}", f"{mean['sparse']:.4f}", difference, figures["claim"]["holds"]]
            rows.append([data, f"{int(length):,}", *values])
    heading = ["data", "history", "AP, dense", "AP, sparse", "relative difference [95 %]", "not more than .8 % below"]
    return table(heading, rows)


def attention_planted() -> str:
    """The planted task by the choice of the global nodes: means over the seeds with their ranges."""
    rows = []
    for name, result in load("planted")["variants"].items():
        figures = [_mean_and_range(result[key]) for key in ("auc_far", "auc_near", "probe_kept", "sign_kept")]
        rows.append([name.replace("_", " "), *figures, len(result["seeds"])])
    return table(["choice of the global nodes", "AUC, far", "AUC, near", "probe kept", "of the sign kept more often", "seeds"], rows)


def _mean_and_range(figure: dict[str, float]) -> str:
    return f"{figure['mean']:.3f} ({figure['least']:.3f} to {figure['most']:.3f})"


def attention_sweep() -> str:
    """Average precision and speed of scoring by window and number of global nodes."""
    streams = {data: result for data, result in load("attention")["parts"]["sweep"]["streams"].items() if "points" in result}
    nodes = list(dict.fromkeys(point["global_nodes"] for result in streams.values() for point in result["points"]))
    rows: list[list[Any]] = []
    for data, result in streams.items():
        for window in dict.fromkeys(point["window"] for point in result["points"]):
            points = {point["global_nodes"]: point for point in result["points"] if point["window"] == window}
            cells = [
                f"{points[count]['average_precision']:.4f}, {points[count]['times_faster']:.2f}x" if count in points else "-"
                for count in nodes
            ]
            rows.append([data, window, *cells])
        rows.append([data, "dense", f"{result['dense']['average_precision']:.4f}", *[""] * (len(nodes) - 1)])
    return table(["data", "window", *(f"k = {count}" for count in nodes)], rows)
