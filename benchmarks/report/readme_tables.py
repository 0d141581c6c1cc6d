"""The tables of the README, from the result files: no figure is typed by hand, and a test holds the README to them.

``python benchmarks/readme_tables.py`` puts them in between their markers.
"""

from __future__ import annotations

import json
import re
from typing import Any

from recording import RESULTS, ROOT

NAMES = {
    "run": "**this run**",
    "none": "no sampling",
    "one_to_one": "1:1 over-sampling",
    "class_weight": "class weights",
    "lightgbm": "LightGBM, same features",
}


def load(name: str) -> dict[str, Any]:
    """A result file."""
    content = json.loads((RESULTS / f"{name}.json").read_text())
    assert isinstance(content, dict)
    return content


def main_job() -> str:
    """Every model on every data set."""
    lines = [
        "| data | model | AP | F1, tuned | F1 at .5 | false alarms per 10k at recall .60 / .70 / .80 | ECE |",
        "|---|---|---|---|---|---|---|",
    ]
    for data, own in load("main_job")["datasets"].items():
        for name, figures in own["models"].items():
            alarms = [figures["false_alarms_per_10k_at_recall"][recall] for recall in ("0.60", "0.70", "0.80")]
            counts = " / ".join("-" if value is None else f"{value:.1f}" for value in alarms)
            row = [f"{figures[key]:.3f}" for key in ("average_precision", "f1", "f1_at_half")]
            lines.append(f"| {data} | {NAMES[name]} | {' | '.join(row)} | {counts} | {figures['ece']:.4f} |")
    return "\n".join(lines)


def costs() -> str:
    """Time and memory of the same runs, and of reading the data."""
    lines = ["| data | budget | threads | minutes, all models | peak memory |", "|---|---|---|---|---|"]
    for data, own in load("main_job")["datasets"].items():
        lines.append(f"| {data} | {own['budget']} | {own['threads']} | {own['minutes']:.1f} | {own['peak_gib']:.1f} GiB |")
    return "\n".join(lines)


def app_pages() -> str:
    """Seconds of every page of the app on a large run."""
    content = load("app_pages")
    lines = [f"| page, {content['rows']:,} test rows | first time | again | in a browser |", "|---|---|---|---|"]
    for page, own in content["pages"].items():
        clicked = f"{content['browser'][page]:.2f} s" if page in content["browser"] else "-"
        lines.append(f"| {page.capitalize()} | {own['first']:.2f} s | {own['again']:.2f} s | {clicked} |")
    return "\n".join(lines)


def quantization_bert() -> str:
    """Latency on BERT's shape, of torch float32 and of the best float32, with one thread and two."""
    threads = load("quantization")["bert"]["threads"]
    lines = [
        "| BERT-base's shape, 128 tokens, batch 1 | of torch FP32 | of the best FP32 | two threads: of torch FP32 | of the best |",
        "|---|---|---|---|---|",
    ]
    for name, value in threads["1"]["of_torch"].items():
        others = [threads["1"]["of_best"].get(name), threads["2"]["of_torch"].get(name), threads["2"]["of_best"].get(name)]
        lines.append(f"| {name} | {value:.2f} | " + " | ".join("-" if other is None else f"{other:.2f}" for other in others) + " |")
    return "\n".join(lines)


def quantization_classifier() -> str:
    """Bytes and latency of classifiers, of float32."""
    lines = [
        "| classifier | batch | bytes: all INT8 / attention BF16 / planned | latency: all INT8 / attention BF16 / planned |",
        "|---|---|---|---|",
    ]
    order = ("all INT8", "attention BF16, rest INT8", "planned")
    for cell in load("quantization")["classifier"]["1"]:
        size, time = (" / ".join(f"{cell[key][name]:.2f}" for name in order) for key in ("bytes", "latency"))
        lines.append(f"| d {cell['d_model']}, {cell['layers']} blocks, {cell['history']} long | {cell['batch']} | {size} | {time} |")
    return "\n".join(lines)


def quantization_quality() -> str:
    """Average precision lost on the streams, and cosine of a real MiniLM's vectors."""
    content = load("quantization")
    lines = ["| | measure | all INT8 | attention BF16, rest INT8 | planned | bytes, planned |", "|---|---|---|---|---|---|"]
    for stream, own in content["quality"].items():
        if "plans" in own:
            lost = [f"{own['plans'][name]['drop']:+.4f}" for name in ("all INT8", "attention BF16, rest INT8", "planned")]
            lines.append(
                f"| {stream} | average precision lost, of {own['average_precision']:.3f} | {' | '.join(lost)} | {own['plans']['planned']['bytes']:.2f} |"
            )
    own = content["minilm"]
    if "cosine" in own:
        planned = "planned, .30 of the bytes"
        row = [f"{own['cosine']['all INT8']:.4f}", "-", f"{own['cosine'][planned]:.4f}", f"{own['bytes'][planned]:.2f}"]
        lines.append(f"| all-MiniLM-L6-v2 | cosine to float32, {own['sentences']} sentences | {' | '.join(row)} |")
    return "\n".join(lines)


def quantization_claims() -> str:
    """Every claim of the script and how it came out."""
    lines = ["| claim | found | limit | |", "|---|---|---|---|"]
    for row in load("quantization")["claims"]:
        lines.append(f"| {row['claim']} | {row['figure']:.4g} | {row['limit']:g} | {row['holds']} |")
    return "\n".join(lines)


def modular_transfer() -> str:
    """A trunk moved to another stream."""
    own = load("modular")["transfer"]
    names = {
        "full": f"from nothing, {own['steps']['full']:,} steps",
        "scratch": f"from nothing, {own['steps']['others']} steps",
        "transfer_frozen": f"sparkov's trunk frozen, new embedding and head, {own['steps']['others']} steps",
        "transfer": f"sparkov's trunk trained on, new embedding and head, {own['steps']['others']} steps",
    }
    lines = [f"| handbook, {own['seeds']} seeds | average precision | of the full training's | of its time |", "|---|---|---|---|"]
    for name, shown in names.items():
        arm = own[name]
        lines.append(f"| {shown} | {arm['average_precision']:.4f} | {arm['share_of_full']:.3f} | {arm['share_of_time']:.2f} |")
    return "\n".join(lines)


def modular_tasks() -> str:
    """Several tasks on one trunk."""
    own = load("modular")["tasks"]
    names = {
        "fraud": "fraud alone",
        "fraud_type": "fraud and its type",
        "all": "and next amount, time to it, at .1 each",
        "all_uncertainty": "the same, weighed by uncertainty",
    }
    lines = [
        f"| handbook, {own['steps']} steps, {own['seeds']} seeds | average precision of fraud | against fraud alone (95 % interval) | macro F1 of the type |",
        "|---|---|---|---|",
    ]
    for name, shown in names.items():
        arm = own[name]
        against = _interval_of(arm["against_fraud"]) if "against_fraud" in arm else "-"
        kind = f"{arm['type_macro_f1']:.3f}" if "type_macro_f1" in arm else "-"
        lines.append(f"| {shown} | {arm['average_precision']:.4f} | {against} | {kind} |")
    return "\n".join(lines)


def modular_pretraining() -> str:
    """With few labels, from a pretrained trunk and from nothing."""
    own = load("modular")["pretraining"]
    lines = [
        f"| sparkov, {own['labels']:.0%} of the training labels, {own['seeds']} seeds | from nothing | pretrained | difference (95 % interval) | ahead |",
        "|---|---|---|---|---|",
    ]
    for length in ("middle", "long"):
        arm = own[length]
        cells = [f"{arm['steps']} steps", f"{arm['scratch']:.4f}", f"{arm['pretrained']:.4f}", _interval_of(arm["difference"])]
        lines.append(f"| {' | '.join(cells)} | {arm['difference']['ahead']} of {own['seeds']} |")
    return "\n".join(lines)


def modular_light() -> str:
    """The light build beside the full model."""
    own = load("modular")["light"]
    full, light, ms = own["test"]["full"], own["test"]["lite"], own["ms"]
    lines = ["| handbook | full | light | |", "|---|---|---|---|"]
    lines.append(
        f"| kB on disk | {own['full_bytes'] / 1000:,.0f} | {own['bytes'] / 1000:,.0f} | {own['bytes'] / own['full_bytes']:.2f} of it |"
    )
    for size in ms["full"]:
        for name, shown in (("full", "torch"), ("full_onnx", "ONNX Runtime")):
            if name in ms:
                lines.append(f"| time at batch {size}, full in {shown} | 1 | {ms['lite'][size] / ms[name][size]:.2f} | |")
    for key, shown in (("average_precision", "average precision"), ("f1", "F1, tuned"), ("fpr", "false-positive rate")):
        lines.append(f"| {shown} | {full[key]:.4f} | {light[key]:.4f} | {light[key] - full[key]:+.4f} |")
    apart = own["largest_difference_to_torch"]
    lines.append(f"| largest difference of a score to torch's | | {apart['float']:.0e} in float32 | {apart['int8']:.0e} in INT8 |")
    return "\n".join(lines)


def _interval_of(value: dict[str, float]) -> str:
    return f"{value['mean']:+.4f} ({value['low']:+.4f} to {value['high']:+.4f})"


def simulated_seeds() -> str:
    """Average precision table by table."""
    content = load("simulated_seeds")
    names = list(NAMES)
    lines = ["| simulated table, seed | " + " | ".join(NAMES[name] for name in names) + " |", "|---|" + "---|" * len(names)]
    for seed, own in content["tables"].items():
        lines.append(f"| {seed} | " + " | ".join(f"{own[name]['average_precision']:.3f}" for name in names) + " |")
    against = content["average_precision_against"]
    told = [f"{against[name]['mean_difference']:+.3f} (± {against[name]['standard_error']:.3f})" for name in names[1:]]
    lines.append("| this run less it, mean (standard error) | | " + " | ".join(told) + " |")
    return "\n".join(lines)


def population() -> str:
    """Throughput of the stack of students, and what scoring for hardness costs."""
    content = load("population")
    speed, shares = content["throughput"], content["share_of_an_epoch_scoring_for_hardness"]
    each = speed["student_batches_per_second"]
    rounds = speed["ratio_by_round"]
    return "\n".join(
        [
            "| | |",
            "|---|---|",
            f"| student-batches per CPU-second, one student a process (`SubprocVecEnv`) | {each['subproc_vec_env']:,} |",
            f"| the same of {speed['students']} stacked students (`PopulationVecEnv`) | {each['population_vec_env']:,} |",
            f"| ratio, median of {speed['rounds']} alternating rounds (range) | {speed['ratio']:.1f} ({min(rounds):.1f} to {max(rounds):.1f}) |",
            f"| part of an epoch that scoring training rows for hardness takes: population | {100 * shares['population']:.1f} % |",
            f"| the same: sequence classifier | {100 * shares['classifier']:.1f} % |",
        ]
    )


PARTS = {
    "handbook-population": "handbook, MLP",
    "sparkov-population": "sparkov, MLP",
    "handbook-classifier": "handbook, sequence classifier",
    "sparkov-classifier": "sparkov, sequence classifier",
}


def sampling() -> str:
    """Every policy with every data set and learner, and its average precision less that of 1:1."""
    lines = [
        "| data, learner | sampling | AP | less that of 1:1 [95 %] | F1, tuned | F1 at .5 | false alarms per 10k at recall .60 / .70 | ECE | trainings |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for part, own in load("sampling")["parts"].items():
        against = own["paired"]["one_to_one"]
        for policy, figures in sorted(own["means"].items(), key=lambda item: -item[1]["average_precision"]):
            alarms = " / ".join(f"{figures[f'false_alarms_per_10k_at_recall_{recall}']:.2f}" for recall in ("0.60", "0.70"))
            difference = "" if policy == "one_to_one" else _interval(against[policy]["average_precision"])
            name = f"**{policy}**" if policy == "auto" else policy
            row = [f"{figures['average_precision']:.3f}", difference, f"{figures['f1']:.3f}", f"{figures['f1_at_half']:.3f}", alarms]
            trainings = figures["trainings"]
            lines.append(f"| {PARTS[part]} | {name} | {' | '.join(row)} | {figures['ece']:.4f} | {trainings:g} |")
    return "\n".join(lines)


def _interval(value: dict[str, float]) -> str:
    return f"{value['difference']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"


def claims() -> str:
    """What was claimed, and whether it holds."""
    parts = load("sampling")["parts"]
    texts = list(dict.fromkeys(claim["claim"] for own in parts.values() for claim in own["claims"] if claim["holds"] != "not measured"))
    lines = ["| claim | " + " | ".join(PARTS[part] for part in parts) + " |", "|---|" + "---|" * len(parts)]
    for text in texts:
        cells = []
        for own in parts.values():
            (claim,) = (each for each in own["claims"] if each["claim"] == text)
            figure = claim.get("figure")
            cells.append("-" if figure is None else f"{figure:+.3f} [{claim['low']:+.3f}, {claim['high']:+.3f}]: {claim['holds']}")
        lines.append(f"| {text} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def per_class() -> str:
    """The kinds of fraud of handbook, by policy."""
    lines = ["| learner | sampling | kind of fraud | AP against legitimate | recall | precision |", "|---|---|---|---|---|---|"]
    for part, own in load("sampling")["parts"].items():
        if not part.startswith("handbook"):
            continue
        for policy in ("auto", "none", "one_to_one", "under"):
            for kind, figures in own["per_class"].get(policy, {}).items():
                values = " | ".join(
                    f"{figures[key]:.3f}" if key in figures else "-" for key in ("average_precision", "recall", "precision")
                )
                lines.append(f"| {PARTS[part].split(', ')[1]} | {policy} | {kind} | {values} |")
    return "\n".join(lines)


def sampling_tables() -> str:
    """Ten tables that scikit-learn and imbalanced-learn make."""
    content = load("sampling_tables")
    lines = [
        "| table | rows | rare | best fixed baseline | its AP | AP of `auto` | difference [95 %] | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, own in content["tables"].items():
        precision, best = own["average_precision"], own["best_fixed"]
        rare = ", ".join(str(count) for count in own["rare"].values())
        lines.append(
            f"| {name} | {own['rows']:,} | {rare} | {best} | {precision[best]:.3f} | {precision['auto']:.3f} | {_interval(own['difference'])} | {own['auto_against_it']} |"
        )
    return "\n".join(lines)


def attention_speed() -> str:
    """Times faster than dense attention by length, growth of the time, and what was claimed."""
    part = load("attention")["parts"]["kernels"]
    kinds = [(True, "forward", "causal, forward"), (True, "forward_backward", "causal, forward + backward")]
    kinds += [(False, "forward", "bidirectional, forward"), (False, "forward_backward", "bidirectional, forward + backward")]
    names = list(dict.fromkeys(name for cell in part["cells"] for name in cell["milliseconds"] if name != "dense"))
    lines = ["| | tokens | dense, ms | " + " | ".join(names) + " |", "|---|---|---|" + "---|" * len(names)]
    for causal, passes, title in kinds:
        for cell in part["cells"]:
            if (cell["causal"], cell["passes"]) == (causal, passes) and "times_faster" in cell:
                times = [f"{cell['times_faster'][name]:.1f}" if name in cell["times_faster"] else "-" for name in names]
                lines.append(f"| {title} | {cell['tokens']:,} | {cell['milliseconds']['dense']:.4g} | {' | '.join(times)} |")
        slopes = {each["contender"]: each for each in part["growth"] if (each["causal"], each["passes"]) == (causal, passes)}
        if slopes:
            first, last = next(slopes[name] for name in names if name in slopes)["tokens"]
            growth = [f"{slopes[name]['exponent']:.2f}" if name in slopes else "-" for name in names]
            lines.append(f"| {title}: exponent of the time | {first:,} to {last:,} | | {' | '.join(growth)} |")
    return "\n".join([*lines, "", *_attention_claims(part["claims"])])


def _attention_claims(found: list[dict[str, Any]]) -> list[str]:
    lines = ["| claim | measured | |", "|---|---|---|"]
    return lines + [f"| {claim['claim']} | {claim['figure']:.2f} | {claim['holds']} |" for claim in found if "figure" in claim]


def attention_model() -> str:
    """A whole classifier with sparse attention, and scores per second as transactions come in."""
    part = load("attention")["parts"]["model"]
    kinds = list(dict.fromkeys((cell["width"], cell["passes"]) for cell in part["cells"]))
    heads = [f"d {width}, {passes.replace('_', ' + ')}" for width, passes in kinds]
    lines = ["| tokens | " + " | ".join(heads) + " |", "|---|" + "---|" * len(kinds)]
    for tokens in dict.fromkeys(cell["tokens"] for cell in part["cells"]):
        own = {(cell["width"], cell["passes"]): cell["times_faster"]["sparse"] for cell in part["cells"] if cell["tokens"] == tokens}
        lines.append(f"| {tokens:,} | " + " | ".join(f"{own[kind]:.1f}" for kind in kinds) + " |")
    reached = ["-" if claim["from_tokens"] is None else f"{claim['from_tokens']:,} tokens" for claim in part["claims"]]
    lines.append("| 3.2 times from | " + " | ".join(reached) + " |")
    streaming = part["streaming"]
    lines += [
        "",
        f"| judging one new transaction of each of {streaming['cards']} cards, one thread | transactions per second |",
        "|---|---|",
    ]
    for name, rate in streaming["scores_per_second"].items():
        if name == "step":
            text = "sparse, `step`"
        else:
            attention, tokens, _ = name.replace(",", "").split(" ")
            text = f"{attention}, reading the last {int(tokens):,} again"
        lines.append(f"| {text} | {float(f'{rate:.3g}'):,.0f} |")
    return "\n".join(lines)


def attention_quality() -> str:
    """Average precision of sparse and of dense attention on public streams."""
    lines = [
        "| data | history | AP, dense | AP, sparse | relative difference [95 %] | not more than .8 % below |",
        "|---|---|---|---|---|---|",
    ]
    for data, own in load("attention")["parts"]["quality"]["streams"].items():
        for history, figures in own.get("histories", {}).items():
            mean, relative = figures["mean"], {key: None if end is None else 100 * end for key, end in figures["relative"].items()}
            between = "" if relative["low"] is None else f" [{relative['low']:+.2f}, {relative['high']:+.2f}]"
            row = [f"{mean['dense']:.4f}", f"{mean['sparse']:.4f}", f"{relative['difference']:+.2f} %{between}", figures["claim"]["holds"]]
            lines.append(f"| {data} | {int(history):,} | {' | '.join(row)} |")
    return "\n".join(lines)


def attention_planted() -> str:
    """What makes a good global node: mean over the seeds, and the range where there are several."""
    lines = [
        "| what makes a global node | AUC, far | AUC, near | probe kept | of the sign kept more often | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for name, own in load("planted")["variants"].items():
        figures = [_mean_and_range(own[key]) for key in ("auc_far", "auc_near", "probe_kept", "sign_kept")]
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(figures)} | {len(own['seeds'])} |")
    return "\n".join(lines)


def _mean_and_range(own: dict[str, float]) -> str:
    return f"{own['mean']:.3f} ({own['least']:.3f} to {own['most']:.3f})"


def attention_sweep() -> str:
    """Average precision and speed of judging by window and global nodes."""
    streams = {data: own for data, own in load("attention")["parts"]["sweep"]["streams"].items() if "points" in own}
    nodes = list(dict.fromkeys(point["global_nodes"] for own in streams.values() for point in own["points"]))
    lines = ["| data | window | " + " | ".join(f"k = {count}" for count in nodes) + " |", "|---|---|" + "---|" * len(nodes)]
    for data, own in streams.items():
        for window in dict.fromkeys(point["window"] for point in own["points"]):
            points = {point["global_nodes"]: point for point in own["points"] if point["window"] == window}
            cells = [
                f"{points[count]['average_precision']:.4f}, {points[count]['times_faster']:.2f}x" if count in points else "-"
                for count in nodes
            ]
            lines.append(f"| {data} | {window} | {' | '.join(cells)} |")
        lines.append(f"| {data} | dense | {own['dense']['average_precision']:.4f} |" + " |" * (len(nodes) - 1))
    return "\n".join(lines)


def service() -> str:
    found = load("service")["results"]
    latency, alone, trouble = found["latency"], found["throughput"], found["trouble"]
    lines = ["| transactions behind | ms, median | ms, 99 % |", "|---|---|---|"]
    lines += [f"| {int(length):,} | {own['ms_p50']} | {own['ms_p99']} |" for length, own in latency["by_history"].items()]
    replay = f"{trouble['scores_equal_to_an_unbroken_replay']:,} of {trouble['accepted']:,}"
    lines += [
        "",
        "| claim | wanted | measured |",
        "|---|---|---|",
        f"| 99th percentile, longest history | 10 ms | {latency['by_history']['2047']['ms_p99']} ms |",
        f"| that against 64 transactions behind | at most 1.3 | {latency['ratio_p99']} |",
        f"| reading on against showing the window again, the model alone | | {alone['times_faster']} times faster |",
        f"| {trouble['minutes']:g} minutes of trouble: {trouble['workers_killed']} workers killed, {trouble['database_restarts']} database restart, "
        f"{trouble['model_swaps']} model swap, {trouble['labels']:,} labels: lost | 0 | {trouble['lost']} of {trouble['accepted']:,} |",
        f"| counted twice | 0 | {trouble['counted_twice']} |",
        f"| scores equal to an unbroken replay | all | {replay}; largest difference {trouble['largest_difference_from_it']:.1g} |",
    ]
    return "\n".join(lines)


TABLES = {
    "service": service,
    "app_pages": app_pages,
    "main_job": main_job,
    "costs": costs,
    "simulated_seeds": simulated_seeds,
    "population": population,
    "sampling": sampling,
    "claims": claims,
    "per_class": per_class,
    "sampling_tables": sampling_tables,
    "attention_speed": attention_speed,
    "attention_model": attention_model,
    "attention_quality": attention_quality,
    "attention_planted": attention_planted,
    "attention_sweep": attention_sweep,
    "quantization_claims": quantization_claims,
    "quantization_bert": quantization_bert,
    "quantization_classifier": quantization_classifier,
    "quantization_quality": quantization_quality,
    "modular_transfer": modular_transfer,
    "modular_tasks": modular_tasks,
    "modular_pretraining": modular_pretraining,
    "modular_light": modular_light,
}


def filled(text: str) -> str:
    """``text`` with every table between its markers made anew."""
    for name, table in TABLES.items():
        pattern = rf"(<!-- table {name} -->\n).*?(<!-- end of table -->)"
        text = re.sub(pattern, lambda found, table=table: found.group(1) + table() + "\n" + found.group(2), text, flags=re.DOTALL)  # type: ignore[misc]
    return text


def main() -> None:
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
