"""Tables of quantization."""

from __future__ import annotations

from benchmarks.report.tables import load, table

PLANS = ("all INT8", "attention BF16, rest INT8", "planned")


def quantization_claims() -> str:
    """The claims of the benchmark, and whether they hold."""
    measured = [row for row in load("quantization")["claims"] if "figure" in row]
    rows = [[row["claim"], f"{row['figure']:.4g}", f"{row['limit']:g}", row["holds"]] for row in measured]
    return table(["claim", "measured", "limit", ""], rows)


def quantization_bert() -> str:
    """Latency on BERT's shape relative to torch's float32 and to the best float32."""
    content = load("quantization")
    threads = content["bert"]["threads"]
    named = {"of torch FP32": threads["1"]["of_torch"], "of the best FP32": threads["1"]["of_best"]}
    if "2" in threads:
        named |= {"two threads: of torch FP32": threads["2"]["of_torch"], "of the best": threads["2"]["of_best"]}
    if "bert_avx2" in content:
        named["AVX2 only: of torch FP32"] = content["bert_avx2"]["threads"]["1"]["of_torch"]
    rows = [[name, *(f"{column[name]:.2f}" if name in column else "-" for column in named.values())] for name in threads["1"]["of_torch"]]
    return table(["BERT-base's shape, 128 tokens, batch 1", *named], rows)


def quantization_classifier() -> str:
    """Bytes and latency of classifiers relative to float32."""
    rows = []
    for cell in load("quantization")["classifier"]["1"]:
        size, time = (" / ".join(f"{cell[key][name]:.2f}" for name in PLANS) for key in ("bytes", "latency"))
        rows.append([f"d {cell['d_model']}, {cell['layers']} blocks, history {cell['history']}", cell["batch"], size, time])
    plans = "all INT8 / attention BF16 / planned"
    return table(["classifier", "batch", f"bytes: {plans}", f"latency: {plans}"], rows)


def quantization_quality() -> str:
    """Loss of average precision on the streams, and cosine between the vectors of a real MiniLM."""
    content = load("quantization")
    rows = []
    for stream, result in content["quality"].items():
        if "plans" in result:
            lost = [f"{result['plans'][name]['drop']:+.4f}" for name in PLANS]
            measure = f"average precision lost, of {result['average_precision']:.3f}"
            rows.append([stream, measure, *lost, f"{result['plans']['planned']['bytes']:.2f}"])
    model = content["minilm"]
    if "cosine" in model:
        planned = "planned, .30 of the bytes"
        values = [f"{model['cosine']['all INT8']:.4f}", "-", f"{model['cosine'][planned]:.4f}", f"{model['bytes'][planned]:.2f}"]
        rows.append(["all-MiniLM-L6-v2", f"cosine to float32, {model['sentences']} sentences", *values])
    return table(["", "measure", *PLANS, "bytes, planned"], rows)
