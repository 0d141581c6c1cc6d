"""Train: a table, the roles of its columns, a budget with its price; then watch, stop and resume runs that go on without the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import streamlit as st

from balancer.app.browsing import figures_so_far, find_runs, progress_of, read_run
from balancer.app.charts import epochs_chart, labelled
from balancer.app.jobs import MAX_UPLOAD, UPLOADS, Job, find_jobs, keep_upload, start
from balancer.app.loading import NAMES, runs_folder, sample_table, stamp
from balancer.data.reading import column_types, scan
from balancer.data.roles import resolve_spec
from balancer.errors import InputError
from balancer.options.flags import flag_of

SINGLE = ("entity", "time", "label", "amount", "id")
LISTS = ("numeric", "categorical", "context")
NOTHING = "–"
HELP = {
    "entity": "card, account or customer: whose history a row belongs to",
    "time": "when it happened",
    "label": "fraud or not, or the type of fraud",
    "amount": "money",
    "id": "names the transaction",
    "numeric": "further numbers to use",
    "categorical": "columns of few named values",
    "context": "keys such as terminal or merchant, whose earlier frauds are a hint",
}


def show() -> None:
    """The page."""
    st.title("Train")
    for job in [job for job in find_jobs(runs_folder()) if job.kind == "train"][:4]:
        _watch(job.name)
    _unfinished()
    st.header("A new run")
    source = _source()
    if source is None:
        return
    try:
        flags, ready = _roles(source)
    except InputError as error:
        st.error(str(error))
        return
    left, middle, right = st.columns(3)
    policies = ["ppo", "auto", "bandit", "schedule", "rule", "constant"]
    policy = left.selectbox(
        "Policy", policies, key="policy", help="ppo learns on this table; auto was learned beforehand and costs nothing"
    )
    length = middle.number_input("History length: transactions of an entity that the model reads", 1, 4096, 16, key="history_length")
    seed = right.number_input("Seed", 0, 2**31 - 1, 0, key="seed")
    flags |= {"policy": policy, "history_length": int(length), "seed": int(seed)}
    budget = _budget(source, flags)
    name = st.text_input("Name of the run", _free_name(source.stem), key="run-name")
    if st.button("Start training", type="primary", icon=":material/play_arrow:", disabled=not ready):
        try:
            start(runs_folder(), name.strip(), "train", _arguments(source, flags | {"budget": budget}))
        except InputError as error:
            st.error(str(error))
        else:
            st.rerun()


def _source() -> Path | None:
    """The table: the sample, one used or uploaded before, a path, or an upload."""
    uploads = sorted((runs_folder() / UPLOADS).glob("*"))
    used = [Path(run.dataset) for run in find_runs(runs_folder()) if run.dataset and Path(run.dataset).exists()]
    known = list(dict.fromkeys(path.resolve() for path in [sample_table(), *uploads, *used]))
    how = st.segmented_control("Table", ["known here", "a path", "upload"], default="known here", required=True, key="how")
    if how == "known here":
        return st.selectbox("Choose", known, format_func=str, key="known", label_visibility="collapsed")
    if how == "a path":
        text = st.text_input("Path of a Parquet or CSV file, or of a folder of Parquet files", key="path").strip()
        return Path(text).expanduser().resolve() if text else None
    given = st.file_uploader(f"Parquet or CSV, up to {MAX_UPLOAD // 2**20} MB", ["parquet", "csv"], key="upload")
    if given is None:
        return None
    try:
        return keep_upload(runs_folder(), given.name, given.getvalue())
    except InputError as error:
        st.error(str(error))
        return None


@st.cache_data(max_entries=16, show_spinner="looking at the columns")
def _detected(source: str, changed: Any, given: dict[str, Any]) -> dict[str, Any]:
    return resolve_spec(Path(source), overrides=given).to_dict()


@st.cache_data(max_entries=16, show_spinner=False)
def _preview(source: str, changed: Any) -> tuple[pl.DataFrame, list[str]]:
    return scan(Path(source), typed=True).head(5).collect(), list(column_types(Path(source)))


def _roles(source: Path) -> tuple[dict[str, Any], bool]:
    """What each column is for: as detected, or as the person says; flags for the run, and whether they are complete."""
    if not source.exists():
        raise InputError(f"{source} does not exist: give the path of a table on this machine")
    changed = stamp(source) if source.is_file() else source.stat().st_mtime_ns
    try:
        head, columns = _preview(str(source), changed)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{source} can't be read as a table ({error}): give a Parquet or CSV file") from error
    st.dataframe(head, hide_index=True)
    doubt, found = "", {}
    try:
        found = _detected(str(source), changed, {})
    except InputError as error:
        doubt = str(error)
    with st.expander("Roles of the columns", expanded=bool(doubt), icon=":material/view_column:"):
        if doubt:
            st.warning(f"Not every role is clear: {doubt}")
        given: dict[str, Any] = {}
        for place, role in zip(st.columns(len(SINGLE)), SINGLE, strict=True):
            options = [NOTHING, *columns]
            now = found.get(role) or NOTHING
            answer = place.selectbox(role, options, options.index(now), key=f"role-{role}-{source}", help=HELP[role])
            given[role] = "none" if answer == NOTHING and role != "time" else answer
        for place, role in zip(st.columns(len(LISTS)), LISTS, strict=True):
            given[role] = tuple(place.multiselect(role, columns, found.get(role) or [], key=f"role-{role}-{source}", help=HELP[role]))
        left, right = st.columns(2)
        delay = left.text_input("Label delay: how long until a label is known", "7d", key=f"delay-{source}", help="7d, 12h or seconds")
        negative = right.text_input(
            "Legitimate class", "", key=f"negative-{source}", placeholder="found by itself: 0, false, legitimate, …"
        ).strip()
        given |= {"label_delay": delay} | ({"negative": negative} if negative else {})
    if given["time"] == NOTHING or given["label"] == "none":
        st.warning("Say which columns are the time and the label.")
        return given, False
    _detected(str(source), changed, given)  # what the person says is checked as flags are
    return given, True


def _budget(source: Path, flags: dict[str, Any]) -> str:
    """The budget, with what each costs here when that was asked for."""
    from balancer.options.train import BUDGETS

    prices = st.session_state.get("prices", {})
    key = (str(source), tuple(sorted((name, str(value)) for name, value in flags.items())))
    told = prices.get(key, {})
    words = {
        name: f"{name}: {budget.epochs} epochs of up to {budget.steps_per_epoch} steps"
        + (f", about {told[name] / 60:.1f} min" if told else "")
        for name, budget in BUDGETS.items()
    }
    chosen = st.radio(
        "Budget", list(BUDGETS), format_func=words.__getitem__, key="budget", help="boosted trees, the last baseline, come on top"
    )
    if st.button("Check the table and price the budgets", icon=":material/payments:"):
        st.session_state["prices"] = {key: _prices(source, flags)}
        st.rerun()
    return str(chosen)


def _prices(source: Path, flags: dict[str, Any]) -> dict[str, float]:
    """Seconds by budget, from a few timed steps on the table itself."""
    import io

    from rich.console import Console

    from balancer.data.split import Split
    from balancer.devices import torch_threads
    from balancer.options.train import BUDGETS, TrainConfig
    from balancer.training.costs import estimate
    from balancer.training.preparation import prepare, schedule_for

    with st.spinner("reading the table and timing a few steps"):
        given = {name: () if value == "none" and name in LISTS else value for name, value in flags.items()}
        configs = {name: TrainConfig(source, **given, budget=name) for name in BUDGETS}  # type: ignore[arg-type]
        with torch_threads(configs["quick"].threads):
            ready = prepare(configs["quick"], Console(file=io.StringIO()))
            rows = len(ready.dataset.rows(Split.TRAIN))
            schedules = {name: schedule_for(config, rows) for name, config in configs.items()}
            return estimate(ready.dataset, ready.model, configs["quick"], schedules, ready.device)


def _arguments(source: Path, flags: dict[str, Any]) -> list[str]:
    """Flags of balancer train."""
    arguments = ["--dataset", str(source)]
    for name, value in flags.items():
        arguments += [flag_of(name), ",".join(value) or "none" if isinstance(value, tuple) else str(value)]
    return arguments


def _free_name(stem: str) -> str:
    name, number = stem, 1
    while (runs_folder() / name).exists():
        number += 1
        name = f"{stem}-{number}"
    return name


@st.fragment(run_every=1.0)
def _watch(name: str) -> None:
    """One run: how far it is, its figures so far, its log; stop and resume."""
    job = next((job for job in find_jobs(runs_folder()) if job.name == name and job.kind == "train"), None)
    if job is None:
        return
    with st.container(border=True):
        st.subheader(name)
        if job.alive:
            _at_work(job)
            return
        state = read_run(job.out) if job.out.is_dir() else None
        if state is not None and state.status == "complete":
            st.success(
                f"**{name}** is trained: average precision {state.figures['average_precision']:.3f} on the test rows. See the page Runs."
            )
            _figures(job)
            # The list of runs beside the pages was drawn before this run was one of them.
            if st.session_state.setdefault("told-complete", {}).get(name) is False:
                st.session_state["told-complete"][name] = True
                st.rerun()
        elif job.error:
            st.error(job.error)
        elif state is not None and state.status == "stopped":
            st.warning("Stopped; what was finished is kept.")
            if st.button("Resume", key=f"resume-{name}", icon=":material/resume:"):
                _resume(name)
        else:
            st.error("It ended without a result; the end of its log:")
            st.code(job.tail()[-2000:], language=None)


def _at_work(job: Job) -> None:
    st.session_state.setdefault("told-complete", {})[job.name] = False
    now = progress_of(job.out)
    if now is None:
        st.progress(0.0, "reading the table")
    else:
        left = now["seconds_left"]
        text = f"{now['stage']}: {now['done']} of {now['total']}" + (f", {left:.0f} s to go" if left is not None and now["done"] else "")
        st.progress(now["done"] / max(1, now["total"]), text)
        st.caption(
            " → ".join(f"**{each['stage']}**" if each["stage"] == now["stage"] else each["stage"] for each in now["stages"])
            + f"  {now['detail']}"
        )
    if st.button("Stop", key=f"stop-{job.name}", icon=":material/stop:", help="what is finished is kept; it can be resumed"):
        job.stop()
        st.rerun()
    _figures(job)
    with st.expander("Log"):
        st.code(job.tail()[-3000:] or "nothing yet", language=None)


def _figures(job: Job) -> None:
    lines = figures_so_far(job.out)
    if lines.height:
        chart = epochs_chart(labelled(lines, NAMES), figure="average_precision", title="average precision on validation rows")
        st.altair_chart(chart.properties(height=220), width="stretch", key=f"live-{job.name}")


def _unfinished() -> None:
    """Runs that were begun elsewhere and not finished: they can be resumed here."""
    here = {job.name for job in find_jobs(runs_folder())}
    for run in find_runs(runs_folder()):
        if run.status == "stopped" and run.name not in here and st.button(f"Resume {run.name}", icon=":material/resume:"):
            _resume(run.name)


def _resume(name: str) -> None:
    """Go on with a run, or say why not."""
    try:
        start(runs_folder(), name, "train", [], resume=True)
    except InputError as error:
        st.error(str(error))
    else:
        st.rerun()


if __name__ == "__main__":
    show()
