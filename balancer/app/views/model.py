"""The page Model: the parts of the model and their sizes, quantization, and latency on this machine."""

from __future__ import annotations

import functools

import numpy as np
import polars as pl
import streamlit as st

from balancer.app.browsing import Run
from balancer.app.charts import bars_chart
from balancer.app.loading import chosen_run, read, show_chart, show_table, stamp, trained
from balancer.models import ModelConfig

BATCHES = (1, 32, 256)
REPEATS = 15
"""Forward passes per latency measurement."""


def show() -> None:
    """Show the page."""
    run = chosen_run()
    st.title("Model")
    content = read(run, "model.json")
    config = ModelConfig.from_dict(content["config"]).to_dict()
    st.markdown(
        f"**{config['embedding']}** embedding → {config['num_layers']} × **{config['attention']}** attention → **{config['head']}** head, "
        f"width {config['d_model']}. It reads {config['history_length']} transactions of an entity (form *{config['form']}*)."
    )
    layers = _layers(str(run.path / "model.safetensors"), stamp(run.path / "model.safetensors"))
    parts = layers.group_by("part", maintain_order=True).agg(pl.col("parameters").sum(), pl.col("bytes").sum())
    tiles = {
        "Parameters": f"{parts['parameters'].sum():,}",
        "Weights, MB": f"{int(parts['bytes'].sum()) / 1e6:.2f}",
        "Fields": f"{_fields(config):,}",
    }
    for column, (title, value) in zip(st.columns(len(tiles)), tiles.items(), strict=True):
        column.metric(title, value, border=True)
    left, right = st.columns(2)
    with left:
        st.subheader("Parts")
        show_table(
            parts.with_columns(share=pl.col("bytes") / pl.col("bytes").sum()),
            f"{run.name}-parts",
            columns={"share": st.column_config.NumberColumn(format="percent")}
            | dict.fromkeys(("parameters", "bytes"), st.column_config.NumberColumn(format="localized")),
        )
    with right:
        st.subheader("Size of the parts")
        kilobytes = parts.select("part", size=pl.col("bytes") / 1000)
        chart = bars_chart(kilobytes, x="size", y="part", x_title="weights (kB)", y_title="part")
        show_chart(chart, f"{run.name}-parts", about="kilobytes of the weights by part")
    with st.expander("All layers"):
        show_table(layers, f"{run.name}-layers")
    _precision(run)
    st.subheader("Latency on this machine")
    if st.button("Measure", icon=":material/timer:"):
        st.session_state["latency"] = (run.name, _latency(run))
    measured = st.session_state.get("latency")
    if measured and measured[0] == run.name:
        show_table(
            measured[1],
            f"{run.name}-latency",
            columns={name: st.column_config.NumberColumn(format="%.2f") for name in ("median, ms", "per transaction, ms")},
        )
        st.caption(
            f"Median of {REPEATS} forward passes over full histories on {read(run, 'run.json')['threads']} thread(s), without reading "
            "the data. Other work on this machine makes it slower."
        )


def _precision(run: Run) -> None:
    """Show the results of quantization, if there are any."""
    from balancer.models.quantization import SensitivityReport

    st.subheader("Quantization")
    if not (run.path / "precision.json").is_file():
        st.markdown(
            f"The model is not quantized yet. `balancer quantize {run.path}` measures how sensitive each layer is to quantization and writes a "
            "smaller model to the run folder."
        )
        return
    content = read(run, "precision.json")
    about, rows = content["about"], content["applied"]["rows"]
    before, after = about.get("before"), about.get("after")
    if before and after:
        sizes = [size for size in after["ms"] if size in before["ms"]]
        table = [{"": "weights, kB", "full": before["bytes"] / 1000, "quantized": after["bytes"] / 1000}]
        table += [{"": f"ms at batch {size}", "full": before["ms"][size], "quantized": after["ms"][size]} for size in sizes]
        named = {"average precision": "average_precision", "F1": "f1", "false-positive rate": "fpr"}
        table += [{"": title, "full": before["test"][key], "quantized": after["test"][key]} for title, key in named.items()]
        show_table(
            pl.DataFrame(table),
            f"{run.name}-quantized",
            columns={name: st.column_config.NumberColumn(format="%.4g") for name in ("full", "quantized")},
        )
    scores = {row["name"]: row for row in about["sensitivity"]["rows"]}
    layers = pl.DataFrame(
        [
            {
                "layer": row["layer"],
                "precision": row["got"],
                "divergence with INT8": scores[row["layer"]]["score"]["int8"],
                "bytes before": row["bytes_before"],
                "bytes after": row["bytes_after"],
                "ms before": scores[row["layer"]]["ms"].get("fp32"),
                "ms after": scores[row["layer"]]["ms"].get(row["got"]),
                "reason for another precision": row["reason"],
            }
            for row in rows
        ],
        strict=False,
        infer_schema_length=None,
    ).sort("divergence with INT8", descending=True)
    chart = SensitivityReport.from_dict(about["sensitivity"]).chart(content["got"])
    show_chart(chart, f"{run.name}-sensitivity", about="divergence of the scores when one layer is rounded to INT8")
    numbers = {"divergence with INT8": st.column_config.NumberColumn(format="scientific")}
    show_table(
        layers,
        f"{run.name}-precision",
        columns=numbers | {name: st.column_config.NumberColumn(format="%.3f") for name in ("ms before", "ms after")},
    )
    st.caption(
        "Divergence (nats per row): how much the scores change when only this layer is rounded. Milliseconds: time for a calibration batch."
    )


def _fields(config: dict[str, list[str]]) -> int:
    return len(config["numeric_fields"]) + len(config["categorical_fields"])


@st.cache_data(max_entries=8, show_spinner=False)
def _layers(path: str, key: tuple[str, int, int, str]) -> pl.DataFrame:
    """List the tensors from the header of the file: columns `part, layer, shape, type, parameters, bytes`."""
    from safetensors import safe_open

    sizes = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "I64": 8, "I32": 4, "F64": 8, "BOOL": 1}
    rows = []
    with safe_open(path, framework="numpy") as stored:
        for name in stored.keys():  # noqa: SIM118 - not a dict
            piece = stored.get_slice(name)
            shape, kind = piece.get_shape(), piece.get_dtype()
            count = int(np.prod(shape))
            pieces = name.split(".")
            part = (
                f"block {int(pieces[1]) + 1}, {'attention' if pieces[2].startswith('attention') else 'feed-forward'}"
                if pieces[0] == "blocks"
                else pieces[0]
            )
            size = " × ".join(map(str, shape))
            rows.append(
                {"part": part, "layer": name, "shape": size, "type": kind, "parameters": count, "bytes": count * sizes.get(kind, 4)}
            )
    order = {"embedding": 0, "norm": 8, "head": 9}
    return pl.DataFrame(sorted(rows, key=lambda row: (order.get(str(row["part"]), 1), str(row["part"]))))


def _latency(run: Run) -> pl.DataFrame:
    """Measure the median milliseconds of a forward pass by batch size."""
    import torch

    from balancer.devices import torch_threads
    from balancer.models import SequenceBatch
    from balancer.models.quantization import timed

    detector = trained(run)
    config = detector.model.config
    fields = len(config.numeric_fields) + len(config.categorical_fields)
    rows = []
    for size in BATCHES:
        values = np.zeros((size, config.history_length, fields), dtype=np.float32)
        batch = SequenceBatch.from_windows(values, np.full(size, config.history_length), detector.device)
        rows_of = torch.arange(size, device=detector.device)
        targets = (rows_of, torch.full_like(rows_of, config.history_length - 1)) if config.form == "histories" else None
        with torch.inference_mode(), torch_threads(detector.threads):
            median = timed({"model": functools.partial(detector.model, batch, targets)}, REPEATS)["model"]
        rows.append({"batch": size, "median, ms": median, "per transaction, ms": median / size})
    return pl.DataFrame(rows)


if __name__ == "__main__":
    show()
