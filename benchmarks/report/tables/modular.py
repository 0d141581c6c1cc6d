"""Tables of the modular architecture."""

from __future__ import annotations

from typing import Any

from benchmarks.report.tables import load, signed, table


def modular_transfer() -> str:
    """A trunk that was moved to another stream."""
    content = load("modular")["transfer"]
    steps = content["steps"]
    names = {
        "full": f"from scratch, {steps['full']:,} steps",
        "scratch": f"from scratch, {steps['others']} steps",
        "transfer_frozen": f"sparkov's trunk frozen, new embedding and head, {steps['others']} steps",
        "transfer": f"sparkov's trunk trained further, new embedding and head, {steps['others']} steps",
    }
    rows = []
    for name, title in names.items():
        result = content[name]
        rows.append([title, f"{result['average_precision']:.4f}", f"{result['share_of_full']:.3f}", f"{result['share_of_time']:.2f}"])
    heading = [f"handbook, {content['seeds']} seeds", "average precision", "of the full training's", "of its time"]
    return table(heading, rows)


def modular_tasks() -> str:
    """Several tasks on one trunk."""
    content = load("modular")["tasks"]
    names = {
        "fraud": "fraud alone",
        "fraud_type": "fraud and its type",
        "all": "and next amount, time to it, at .1 each",
        "all_uncertainty": "the same, weights learned by uncertainty",
    }
    rows = []
    for name, title in names.items():
        result = content[name]
        against = _difference(result["against_fraud"]) if "against_fraud" in result else "-"
        kind = f"{result['type_macro_f1']:.3f}" if "type_macro_f1" in result else "-"
        rows.append([title, f"{result['average_precision']:.4f}", against, kind])
    heading = [f"handbook, {content['steps']} steps, {content['seeds']} seeds", "average precision of fraud"]
    return table([*heading, "difference to fraud alone (95 % interval)", "macro F1 of the type"], rows)


def modular_pretraining() -> str:
    """Training with few labels, from a pretrained trunk and from scratch."""
    content = load("modular")["pretraining"]
    rows = []
    for length in ("middle", "long"):
        result = content[length]
        cells = [f"{result['steps']} steps", f"{result['scratch']:.4f}", f"{result['pretrained']:.4f}", _difference(result["difference"])]
        rows.append([*cells, f"{result['difference']['ahead']} of {content['seeds']}"])
    title = f"sparkov, {content['labels']:.0%} of the training labels, {content['seeds']} seeds"
    return table([title, "from scratch", "pretrained", "difference (95 % interval)", "ahead"], rows)


def modular_light() -> str:
    """The light build compared with the full model."""
    content = load("modular")["light"]
    full, light, ms = content["test"]["full"], content["test"]["lite"], content["ms"]
    share = f"{content['bytes'] / content['full_bytes']:.2f} of it"
    rows: list[list[Any]] = [["kB on disk", f"{content['full_bytes'] / 1000:,.0f}", f"{content['bytes'] / 1000:,.0f}", share]]
    for size in ms["full"]:
        for name, title in (("full", "torch"), ("full_onnx", "ONNX Runtime")):
            if name in ms:
                rows.append([f"time at batch {size}, full in {title}", 1, f"{ms['lite'][size] / ms[name][size]:.2f}", ""])
    for key, title in (("average_precision", "average precision"), ("f1", "F1, tuned"), ("fpr", "false-positive rate")):
        rows.append([title, f"{full[key]:.4f}", f"{light[key]:.4f}", f"{light[key] - full[key]:+.4f}"])
    largest = content["largest_difference_to_torch"]
    rows.append(["largest difference of a score to torch's", "", f"{largest['float']:.0e} in float32", f"{largest['int8']:.0e} in INT8"])
    return table(["handbook", "full", "light", ""], rows)


def _difference(value: dict[str, float]) -> str:
    return signed(value, key="mean", digits=4, between=" to ", ends=("(", ")"))
