"""The page Model: members of the detector, parts and trees and their sizes, quantization, latency here."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import streamlit as st
from numpy.typing import NDArray

from balancer.app.browsing import Run, model_files
from balancer.app.charts import bars_chart, sensitivity_chart
from balancer.app.loading import Stamp, chosen_run, plain, read, show_chart, show_table, stamp, trained
from balancer.errors import CorruptFileError
from balancer.evaluation.report_content import TITLES, members_sentence
from balancer.evaluation.report_parts import part_lines
from balancer.models import ModelConfig

if TYPE_CHECKING:
    from balancer.data.schema import Schema
    from balancer.inference.tree_stages import TreeStages

BATCHES = (1, 32, 256)
REPEATS = 15
"""Forward passes per latency measurement."""


def show() -> None:
    """Show the page."""
    run = chosen_run("Model")
    report = read(run, "report.json")
    if run.has_trees:
        st.markdown(members_sentence(report))
    lines = part_lines(report) if report.get("run") else {}
    if lines:
        st.markdown("\n".join(f"- **{name.capitalize()}**: {plain(line)}." for name, line in lines.items()))
    trees = _trees(tuple(stamp(file) for file in model_files(run.path) if file.suffix == ".txt")) if run.has_trees else None
    if run.has_network:
        layers = _network(run)
        tiles = {"Parameters": f"{layers['parameters'].sum():,}", "Weights, MB": f"{int(layers['bytes'].sum()) / 1e6:.2f}"}
    else:
        layers, tiles = None, {}
    if trees is not None:
        tiles["Trees"] = f"{trees['trees'].sum():,}"
    tiles["Fields"] = f"{_fields(read(run, 'schema.json')):,}"
    helps = {"Fields": "fields of a transaction that the model reads", "Weights, MB": "size of the weights of the network"}
    for column, (title, value) in zip(st.columns(len(tiles)), tiles.items(), strict=True):
        column.metric(title, value, border=True, help=helps.get(title))
    if trees is not None:
        _members(run, trees)
    if layers is not None:
        _parts(run, layers)
        _precision(run)
    st.subheader("Latency on this machine")
    if st.button("Measure", icon=":material/timer:"):
        st.session_state["latency"] = (run.name, _latency(run))
    measured = st.session_state.get("latency")
    if measured and measured[0] == run.name:
        show_table(
            measured[1],
            f"{run.name}-latency",
            columns={name: st.column_config.NumberColumn(format="%.2f") for name in measured[1].columns if "ms" in name},
        )
        what = "forward passes over full histories" if run.has_network else "passes through both stages of the trees"
        both = " and passes through both stages of the trees" if run.has_network and run.has_trees else ""
        st.caption(
            f"Median of {REPEATS} {what}{both} on {read(run, 'run.json')['threads']} thread(s), without reading the data. "
            "Other work on this machine makes it slower."
        )


def _network(run: Run) -> pl.DataFrame:
    """Describe the network in a sentence, and return its layers."""
    config = ModelConfig.from_dict(read(run, "model.json")["config"]).to_dict()
    on = f" It adds to the score of stage 1 (field {plain(config['margin'])})." if config.get("margin") else ""
    st.markdown(
        f"{'The network: ' if run.has_trees else ''}**{config['embedding']}** embedding → {config['num_layers']} × **{config['attention']}** "
        f"attention → **{config['head']}** head, width {config['d_model']}. It reads {config['history_length']} transactions of an entity "
        f"(form *{config['form']}*).{on}"
    )
    return _layers(str(run.path / "model.safetensors"), stamp(run.path / "model.safetensors"))


def _members(run: Run, trees: pl.DataFrame) -> None:
    """Show the weight of each member in the score, and the size of each file of trees."""
    left, right = st.columns(2)
    with left:
        st.subheader("Members")
        frame = pl.DataFrame({"member": [TITLES[name] for name in run.members], "weight": list(run.members.values())})
        show_table(frame, f"{run.name}-members", columns={"weight": st.column_config.NumberColumn(format="percent")})
        st.caption(
            "Share of each member in the log-odds of fraud, chosen on validation rows. Stage 1 is no member: its scores are fields of stage 2"
            + (" and the start of the network." if run.has_network else ".")
        )
    with right:
        st.subheader("Trees")
        show_table(
            trees,
            f"{run.name}-trees",
            columns=dict.fromkeys(("trees", "leaves", "bytes"), st.column_config.NumberColumn(format="localized")),
        )
        st.caption("Trees of a stage are averaged. Fields: those that some split reads.")


def _parts(run: Run, layers: pl.DataFrame) -> None:
    """Show the size of each part of the network."""
    parts = layers.group_by("part", maintain_order=True).agg(pl.col("parameters").sum(), pl.col("bytes").sum())
    left, right = st.columns(2)
    with left:
        st.subheader("Parts of the network" if run.has_trees else "Parts")
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


def _precision(run: Run) -> None:
    """Show the results of quantization, if there are any."""
    st.subheader("Quantization")
    if not (run.path / "precision.json").is_file():
        st.markdown(
            "The model is not quantized yet. The command below measures how sensitive each layer is to quantization and writes a smaller model "
            "to the run folder."
        )
        st.code(f"balancer quantize {shlex.quote(str(run.path))}", language=None)
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
        if run.has_trees:
            st.caption("Size and time are those of the network, which alone is quantized; the metrics are those of network and trees.")
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
    layers = layers.select(column.name for column in layers if column.null_count() < layers.height and (column.cast(pl.String) != "").any())
    chart = sensitivity_chart(layers.select("layer", "precision", divergence="divergence with INT8"))
    show_chart(chart, f"{run.name}-sensitivity", about="divergence of the scores when one layer is rounded to INT8")
    numbers = {"divergence with INT8": st.column_config.NumberColumn(format="scientific")}
    numbers |= {name: st.column_config.NumberColumn(format="localized") for name in ("bytes before", "bytes after")}
    numbers |= {name: st.column_config.NumberColumn(format="%.3f") for name in ("ms before", "ms after")}
    show_table(
        layers,
        f"{run.name}-precision",
        columns=numbers,
    )
    st.caption(
        "Divergence (nats per row): how much the scores change when only this layer is rounded."
        + (" Milliseconds: time for a calibration batch." if "ms before" in layers.columns else "")
    )


def _fields(content: dict[str, list[str]]) -> int:
    return len(content["numeric_fields"]) + len(content["categorical_fields"])


@st.cache_data(max_entries=8, show_spinner="Counting the trees")
def _trees(files: tuple[Stamp, ...]) -> pl.DataFrame:
    """Count the trees of each file: columns `stage, trees, leaves, fields, bytes`."""
    from balancer.trees import TreeEnsemble

    rows = []
    for path, size, *_ in files:
        kind, _, number = Path(path).stem.partition("-")
        title = {"first": "stage 1, fold", "second": "stage 2, member"}.get(kind, "kinds of fraud")
        trees = TreeEnsemble.read(path).model.trees
        rows.append(
            {
                "stage": f"{title} {int(number) + 1}" if number else title,
                "trees": len(trees),
                "leaves": sum(len(tree.leaf_value) for tree in trees),
                "fields": len({int(field) for tree in trees for field in tree.feature}),
                "bytes": size,
            }
        )
    return pl.DataFrame(rows)


@st.cache_data(max_entries=8, show_spinner=False)
def _layers(path: str, key: tuple[str, int, int, str]) -> pl.DataFrame:
    """List the tensors from the header of the file: columns `part, layer, shape, type, parameters, bytes`."""
    sizes = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "I64": 8, "I32": 4, "F64": 8, "BOOL": 1}
    rows = []
    for name, shape, kind in _tensors(Path(path)):
        count = int(np.prod(shape))
        pieces = name.split(".")
        part = (
            f"block {int(pieces[1]) + 1}, {'attention' if pieces[2].startswith('attention') else 'feed-forward'}"
            if pieces[0] == "blocks"
            else pieces[0]
        )
        size = " × ".join(map(str, shape))
        rows.append({"part": part, "layer": name, "shape": size, "type": kind, "parameters": count, "bytes": count * sizes.get(kind, 4)})
    order = {"embedding": 0, "norm": 8, "head": 9}
    return pl.DataFrame(sorted(rows, key=lambda row: (order.get(str(row["part"]), 1), str(row["part"]))))


def _tensors(path: Path) -> list[tuple[str, list[int], str]]:
    """Read name, shape and type of each tensor.

    Raises:
        CorruptFileError: If the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as stored:
            pieces = [(name, stored.get_slice(name)) for name in stored.keys()]  # noqa: SIM118 - not a dict
            return [(name, list(piece.get_shape()), str(piece.get_dtype())) for name, piece in pieces]
    except (SafetensorError, OSError) as error:
        raise CorruptFileError(f"{path} can't be read, it is damaged: copy the run again, or train it again") from error


def _latency(run: Run) -> pl.DataFrame:
    """Measure the median milliseconds of the network and of the trees by batch size."""
    import torch

    from balancer.devices import torch_threads
    from balancer.models import SequenceBatch
    from balancer.models.quantization import timed

    run_of = trained(run)
    network, stages = run_of.detector.model, run_of.detector.stages
    fields = _fields(read(run, "schema.json"))
    rows = []
    for size in BATCHES:
        calls: dict[str, Callable[[], object]] = {}
        if network is not None:
            config = network.config
            values = np.zeros((size, config.history_length, fields), dtype=np.float32)
            batch = SequenceBatch.from_windows(values, np.full(size, config.history_length), run_of.device)
            rows_of = torch.arange(size, device=run_of.device)
            targets = (rows_of, torch.full_like(rows_of, config.history_length - 1)) if config.form == "histories" else None
            calls["network, ms"] = functools.partial(network, batch, targets)
        if stages is not None:
            calls["trees, ms"] = functools.partial(_both_stages, stages, np.zeros((size, fields), dtype=np.float32), run_of.schema)
        with torch.inference_mode(), torch_threads(run_of.threads):
            medians = timed(calls, REPEATS)
        total = sum(medians.values())
        each = medians if len(medians) > 1 else {}
        rows.append({"batch": size} | each | {"median, ms": total, "per transaction, ms": total / size})
    return pl.DataFrame(rows)


def _both_stages(stages: TreeStages, values: NDArray[np.float32], schema: Schema) -> None:
    """Score rows as those after the training period, with all folds of stage 1."""
    time = np.full(len(values), np.inf)
    stages.first_logit(values[:, len(schema.score_fields) :], time, np.zeros(len(values), dtype=np.int8))
    stages.second_logit(values)


if __name__ == "__main__":
    show()
