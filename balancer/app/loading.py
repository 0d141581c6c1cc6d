"""Shared by the pages: the chosen run, cached files, tables and charts with downloads.

What is special: the caches are keyed by path, size, modification time and a digest of the first and last
bytes of a file. So a run that is trained again or a saved threshold is visible immediately, and a large table
is read only once.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import altair as alt
import polars as pl
import streamlit as st

from balancer.app.aggregates import operating_points
from balancer.app.browsing import Run, find_runs, model_files
from balancer.app.charts import Chart, svg
from balancer.errors import CorruptFileError, InputError, MissingFileError, reason_of
from balancer.evaluation.operating_points import OperatingPoints
from balancer.evaluation.report_content import TITLES
from balancer.files import read_json

if TYPE_CHECKING:
    from balancer.data.dataset import Dataset
    from balancer.envs.problem import PopulationProblem
    from balancer.runs.trained_run import TrainedRun

NAMES = {"run": "this run"} | TITLES
_MARKS = re.compile(r"([\\`*\[\]#$~|<>:&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
"""Characters that Markdown could take for its own; an underscore within a word is none."""
_ENDS = 65_536
"""Bytes of the beginning and of the end of a file in its digest."""
Stamp = tuple[str, int, int, str]


def plain(text: object) -> str:
    """Return a text of a file, such as a name or a path, so that Markdown shows it as it is.

    Args:
        text: A name, a path, an error or a sentence with such names.
    """
    escaped = _MARKS.sub(r"\\\1", " ".join(str(text).split("\n")))
    return re.sub(r"^(\s*\d*)([-+=.)])", r"\1\\\2", escaped)  # a list, or a line below a heading


def runs_folder() -> Path:
    """Return the folder given after `--` as `--runs DIR`, or in BALANCER_RUNS, or `runs`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=Path, default=Path(os.environ.get("BALANCER_RUNS", "runs")))
    folder: Path = parser.parse_known_args()[0].runs
    return folder


def stamp(path: Path) -> Stamp:
    """Return the cache key of a file: path, size, modification time, digest of the first and last bytes.

    Raises:
        CorruptFileError: If the file can't be read.
    """
    try:
        status = path.stat()
        with path.open("rb") as stream:
            ends = stream.read(_ENDS)
            stream.seek(max(0, status.st_size - _ENDS))
            ends += stream.read(_ENDS)
    except OSError as error:
        raise CorruptFileError(f"{path} can't be read ({reason_of(error)}): the run is damaged, train it again") from error
    return str(path), status.st_size, status.st_mtime_ns, hashlib.sha256(ends).hexdigest()


@st.cache_data(max_entries=64, show_spinner=False)
def _json(key: Stamp) -> dict[str, Any]:
    return read_json(Path(key[0]), what="it belongs to the run")


@st.cache_resource(max_entries=8, show_spinner="Reading the run")
def _table(key: Stamp) -> pl.DataFrame:
    try:
        return pl.read_parquet(key[0], glob=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise CorruptFileError(f"{key[0]} can't be read ({reason_of(error)}): it is damaged, train the run again") from error


@st.cache_resource(max_entries=8, show_spinner="Ranking the test rows")
def _points(key: Stamp, negative: str, amounts: bool) -> OperatingPoints:
    return operating_points(_table(key), negative, amounts=amounts)


def read(run: Run, name: str) -> dict[str, Any]:
    """Read a JSON file of a run."""
    path = run.path / name
    if not path.is_file():
        raise MissingFileError(f"{path} is missing, the run was written by an older version or is damaged: train it again")
    return _json(stamp(path))


def table(run: Run, name: str) -> pl.DataFrame:
    """Read a Parquet file of a run. It is shared between sessions: do not change it in place."""
    path = run.path / name
    if not path.is_file():
        raise MissingFileError(f"{path} is missing, the run was written by an older version or is damaged: train it again")
    return _table(stamp(path))


def negative_class(run: Run) -> str:
    """Return the name of the legitimate class in `predictions.parquet`."""
    return str(read(run, "schema.json")["classes"][0])


def has_amounts(run: Run) -> bool:
    """Whether the table of the run has amounts."""
    return read(run, "schema.json")["spec"].get("amount") is not None


def points(run: Run) -> OperatingPoints:
    """Return all thresholds on the test rows of the run."""
    path = run.path / "predictions.parquet"
    if not path.is_file():
        raise MissingFileError(f"{path} is missing: it holds every test row; give a complete run folder")
    return _points(stamp(path), negative_class(run), has_amounts(run))


def threshold_of(run: Run) -> float:
    """Return the threshold that scoring uses: the tuned one, or one that was saved on the page Threshold."""
    return float(read(run, "decision.json")["threshold"])


def alarm_counts_of(run: Run) -> dict[str, Any]:
    """Return the counts of alarms from the report, or count them if an older version wrote it."""
    found = run.metrics.get("alarms")
    return dict(found) if found else points(run).metrics(float(run.metrics["threshold"]))


def all_runs() -> list[Run]:
    """Return all runs of the folder."""
    return find_runs(runs_folder())


def run_choice(place: Any) -> None:
    """Show the choice of the run, and keep it in the session and in the address of the page.

    A link with `?run=NAME` opens that run. A chosen run that is gone stays chosen, so that no other run takes
    its place without a word; `chosen_run` says so.

    Args:
        place: Where the choice is shown, for example `st.sidebar`.
    """
    names = [run.name for run in all_runs() if run.status == "complete"]
    state = st.session_state
    if state.get("run") is None:
        state["run"] = st.query_params.get("run") or (names[0] if names else None)
    chosen = state["run"]
    if chosen is None:
        return
    place.selectbox(
        "Run",
        names if chosen in names else [chosen, *names],
        key="run",
        format_func=lambda name: name if name in names else f"{name} (gone)",
        help="The run that the pages show",
    )
    if st.query_params.get("run") != chosen:
        st.query_params["run"] = chosen


def chosen_run(title: str = "") -> Run:
    """Return the run chosen in the sidebar; without any finished run, show what to do and end the page.

    Args:
        title: Title of the page, which is shown with the name of the run.
    """
    runs = all_runs()
    complete = [run for run in runs if run.status == "complete"]
    picked = st.session_state.get("run") or (complete[0].name if complete else None)
    found = next((run for run in runs if run.name == picked), None)
    if title:
        st.title(f"{title}: {plain(picked)}" if picked else title)
    if found is not None and found.status == "complete":
        return found
    return no_run_yet() if picked is None else _gone(picked, found, bool(complete))


def _gone(picked: str, found: Run | None, others: bool) -> NoReturn:
    """Say that the chosen run can't be shown any more, and end the page."""
    if found is None:
        st.error(f"The run **{plain(picked)}** is gone: its folder was deleted or renamed. Choose another run in the sidebar.")
    else:
        st.error(f"The run **{plain(picked)}** can't be shown any more: {plain(found.problem)}. Choose another run in the sidebar.")
    if not others:
        no_run_yet()
    st.stop()


def no_run_yet() -> NoReturn:
    """Offer to train on the sample table, and end the page."""
    st.info(
        f"There is no finished run in {plain(runs_folder())} yet. Train one on the sample table here (takes some minutes), or in a "
        "terminal: `balancer train --dataset data_samples/transactions.parquet`"
    )
    if st.button("Train on the sample now", type="primary", icon=":material/play_arrow:"):
        from balancer.app.jobs import start

        sample = sample_table()
        name = "sample"
        taken = {run.name for run in all_runs()} | {path.name for path in runs_folder().glob("*")}
        while name in taken:
            name += "-again"
        try:
            start(runs_folder(), name, "train", ["--dataset", str(sample)])
        except InputError as error:
            st.error(plain(error))
        else:
            st.switch_page("views/train.py")
    st.stop()


def sample_table() -> Path:
    """Return the path of the simulated table that is part of the package."""
    import balancer.data_samples

    return Path(next(iter(balancer.data_samples.__path__))) / "transactions.parquet"


@st.cache_resource(max_entries=1, show_spinner="Reading the table that the run was trained on")
def _dataset(run_path: str, fingerprint: str, changed: int) -> Dataset:
    from balancer.runs.run_folder import RunFolder
    from balancer.runs.trained_run import training_table

    return training_table(RunFolder.open(Path(run_path)))


def dataset(run: Run) -> Dataset:
    """Read the table of the run as for training.

    Raises:
        InputError: If the table is missing or has changed.
    """
    path = Path(run.dataset)
    return _dataset(str(run.path), read(run, "run.json")["fingerprint"], path.stat().st_mtime_ns if path.exists() else 0)


@st.cache_resource(max_entries=2, show_spinner="Preparing the data of the small students")
def _problem(_dataset: Dataset, fingerprint: str, seed: int) -> PopulationProblem:
    from balancer.envs.problem import dataset_problem

    return dataset_problem(_dataset, seed)[0]


def problem(run: Run) -> PopulationProblem:
    """Return the learning problem of the small students on the table of the run."""
    content = read(run, "run.json")
    return _problem(dataset(run), content["fingerprint"], int(content["seed"]))


@st.cache_resource(max_entries=2, show_spinner="Reading the model")
def _trained(path: str, model: tuple[Stamp, ...], decision: Stamp) -> TrainedRun:
    from balancer.runs.trained_run import TrainedRun

    return TrainedRun.load(Path(path), precision="auto")


def trained(run: Run) -> TrainedRun:
    """Return the trained detector of the run."""
    files = tuple(stamp(file) for file in model_files(run.path))
    return _trained(str(run.path), files, stamp(run.path / "decision.json"))


def show_chart(chart: Chart, name: str, *, about: str) -> None:
    """Show a chart as wide as its column, with a download as SVG.

    Args:
        chart: The chart.
        name: Name of the file.
        about: Text for screen readers.
    """
    # The prefixes of the keys select the style in streamlit_app.
    wide = isinstance(chart, alt.HConcatChart | alt.ConcatChart)
    prefix = "wide" if wide else "stacked" if isinstance(chart, alt.VConcatChart) else "single"
    with st.container(key=f"{prefix}-{name}"):
        st.altair_chart(chart, width="content" if wide else "stretch", key=f"chart-{name}", alt=about)
    download_svg(chart, name)


def download_svg(chart: Chart, name: str) -> None:
    """Offer a chart as an SVG file, which is rendered on request."""
    st.download_button(
        "SVG",
        partial(svg, chart),
        f"{name}.svg",
        "image/svg+xml",
        key=f"svg-{name}",
        type="tertiary",
        icon=":material/download:",
        on_click="ignore",
    )


def show_table(
    frame: pl.DataFrame, name: str, *, columns: Mapping[str, Any] | None = None, height: int | None = None, pick: bool = False
) -> int | None:
    """Show a table with downloads as CSV and Parquet.

    Args:
        frame: The table.
        name: Name of the files.
        columns: Streamlit's column configuration.
        height: Height in pixels.
        pick: Whether a row can be selected.

    Returns:
        The index of the selected row, or None.
    """
    size: dict[str, Any] = {} if height is None else {"height": height}
    event: Any = None
    if pick:
        event = st.dataframe(
            frame, hide_index=True, column_config=columns, key=f"table-{name}", on_select="rerun", selection_mode="single-row", **size
        )
    else:
        st.dataframe(frame, hide_index=True, column_config=columns, key=f"table-{name}", **size)
    with st.container(horizontal=True, gap="small"):
        options: dict[str, Any] = {"type": "tertiary", "icon": ":material/download:", "on_click": "ignore"}
        st.download_button("CSV", partial(as_csv, frame), f"{name}.csv", "text/csv", key=f"csv-{name}", **options)
        st.download_button(
            "Parquet", partial(as_parquet, frame), f"{name}.parquet", "application/octet-stream", key=f"parquet-{name}", **options
        )
    rows = event["selection"]["rows"] if event else []
    return int(rows[0]) if rows else None


def as_csv(frame: pl.DataFrame) -> bytes:
    """Convert a table to CSV; the items of a list are joined by spaces."""
    lists = [name for name, kind in frame.schema.items() if isinstance(kind, pl.List)]
    return frame.with_columns(pl.col(name).cast(pl.List(pl.String)).list.join(" ") for name in lists).write_csv().encode()


def as_parquet(frame: pl.DataFrame) -> bytes:
    """Convert a table to Parquet."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def number(value: float | None, decimals: int = 3) -> str:
    """Format a number; a dash for None."""
    return "–" if value is None else f"{value:,.{decimals}f}"


def percent(value: float | None, decimals: int = 1) -> str:
    """Format a share as a percentage; a dash for None."""
    return "–" if value is None else f"{100 * value:.{decimals}f} %"


def money(value: float | None) -> str:
    """Format an amount without decimals; a dash for None."""
    return "–" if value is None else f"{value:,.0f}"
