"""The page Train: choose a table, the roles of its columns and a budget; watch, stop and resume runs.

A run is a process of its own, so it continues when the page is closed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import polars as pl
import streamlit as st

from balancer.app.browsing import find_runs, metrics_so_far, progress_of, read_run
from balancer.app.charts import epochs_chart, labelled
from balancer.app.jobs import ENDINGS, MAX_UPLOAD, PACKED, UPLOADS, Job, find_jobs, keep_upload, start
from balancer.app.loading import NAMES, runs_folder, sample_table, stamp
from balancer.data.inspection import inspect_table
from balancer.data.leaks import leak_notes
from balancer.data.reading import collect, scan
from balancer.data.spec import LIST_ROLES
from balancer.data.spec_text import duration
from balancer.errors import InputError
from balancer.names import counted
from balancer.options.fit import BUDGETS
from balancer.options.flags import flag_of, parameters
from balancer.options.train import TrainConfig

SINGLE = ("entity", "time", "label", "amount", "id")
NOTHING = "–"
PARAMETERS = {each.name: each for each in parameters(TrainConfig)}
HELP = {name: each.flag.help for name, each in PARAMETERS.items()}


def show() -> None:
    """Show the page."""
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
    first, left, middle, right = st.columns(4)
    learner = first.selectbox("Learner", PARAMETERS["learner"].choices, key="learner", help=PARAMETERS["learner"].flag.help)
    policies = ["ppo", "auto", "bandit", "schedule", "rule"]
    policy = left.selectbox(
        "Policy",
        policies,
        key="policy",
        disabled=learner == "trees",
        help="ppo is fine-tuned on this table, and kept only where it is better than auto; auto is a constant that suits any table and "
        "takes no time",
    )
    length = middle.number_input(
        "History length",
        1,
        4096,
        16,
        key="history_length",
        disabled=learner == "trees",
        help="Transactions of an entity that the network reads, the scored one included",
    )
    seed = right.number_input("Seed", 0, 2**31 - 1, 0, key="seed")
    flags |= {"learner": learner, "policy": policy, "history_length": int(length), "seed": int(seed)}
    budget = _budget(source, flags)
    name = st.text_input("Name of the run", _free_name(source.stem), key="run-name")
    if st.button("Start training", type="primary", icon=":material/play_arrow:", disabled=not ready):
        try:
            start(runs_folder(), name.strip(), "train", _arguments(source, flags | {"budget": budget}))
        except InputError as error:
            st.error(str(error))
        else:
            st.rerun()


def _shown(path: Path) -> str:
    """The path relative to the working directory, if it lies in it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _source() -> Path | None:
    """Ask for the table: the sample, one used or uploaded before, a path, or an upload."""
    uploads = sorted((runs_folder() / UPLOADS).glob("*"))
    used = [Path(run.dataset) for run in find_runs(runs_folder()) if run.dataset and Path(run.dataset).exists()]
    known = list(dict.fromkeys(path.resolve() for path in [sample_table(), *uploads, *used]))
    how = st.segmented_control("Table", ["known here", "a path", "upload"], default="known here", required=True, key="how")
    if how == "known here":
        return st.selectbox("Choose", known, format_func=_shown, key="known", label_visibility="collapsed")
    if how == "a path":
        text = st.text_input("Path of a Parquet or CSV file, of JSON lines, or of a folder of such files", key="path").strip()
        return Path(text).expanduser().resolve() if text else None
    endings = [ending.lstrip(".") for ending in (*ENDINGS, *PACKED)]
    given = st.file_uploader(f"Parquet, CSV or JSON lines, up to {MAX_UPLOAD // 2**20} MB", endings, key="upload")
    if given is None:
        return None
    try:
        return keep_upload(runs_folder(), given.name, given.getvalue())
    except InputError as error:
        st.error(str(error))
        return None


@st.cache_data(max_entries=16, show_spinner="reading the columns")
def _inspected(source: str, changed: Any, given: dict[str, Any]) -> dict[str, Any]:
    """What `balancer inspect` finds."""
    return inspect_table(Path(source), overrides=given).to_dict()


@st.cache_data(max_entries=16, show_spinner=False)
def _preview(source: str, changed: Any) -> pl.DataFrame:
    return collect(scan(Path(source)).head(5), Path(source))


def _roles(source: Path) -> tuple[dict[str, Any], bool]:
    """Ask for the roles of the columns, with those found automatically as defaults.

    Returns:
        The flags for the run, and whether they are complete.

    Raises:
        InputError: The table can't be read, or a role does not fit.
    """
    if not source.exists():
        raise InputError(f"{source} does not exist: give the path of a table on this machine")
    changed = stamp(source) if source.is_file() else source.stat().st_mtime_ns
    head = _preview(str(source), changed)
    found = _inspected(str(source), changed, {})
    st.dataframe(head, hide_index=True)
    with st.expander("Roles of the columns", expanded=bool(found["doubts"]), icon=":material/view_column:"):
        if found["doubts"]:
            st.warning("Not every role is clear:" + "".join(f"\n- {_plain(doubt)}" for doubt in found["doubts"]))
        given = _choices(source, head.columns, found["spec"])
    if given["label"] == "none":
        st.warning("Choose the column of the label.")
        return given, False
    now = _inspected(
        str(source), changed, {"by" if role == "split" else role: value for role, value in given.items()}
    )  # checks the roles as balancer train does
    _columns(source, found, now)
    for doubt in now["doubts"]:
        st.error(_plain(doubt))
    for text in (*now["to_correct"], *now["cautions"]):
        st.warning(_plain(text), icon=":material/warning:")
    return given, not now["doubts"]


def _choices(source: Path, columns: list[str], found: dict[str, Any]) -> dict[str, Any]:
    """Ask for each role; the flags of balancer train."""
    given: dict[str, Any] = {}
    *places, sixth = [place for _ in range(2) for place in st.columns(3)]
    for place, role in zip(places, SINGLE, strict=True):
        now = found.get(role) or NOTHING
        options = list(dict.fromkeys((NOTHING, *columns, now)))
        answer = place.selectbox(role, options, options.index(now), key=f"role-{role}-{source}", help=HELP[role])
        given[role] = "none" if answer == NOTHING else answer
    for place, role in zip(st.columns(len(LIST_ROLES)), LIST_ROLES, strict=True):
        options = list(dict.fromkeys((*columns, *found[role])))
        given[role] = tuple(place.multiselect(role, options, found[role], key=f"role-{role}-{source}", help=HELP[role]))
    left, middle, _ = st.columns(3)
    delay = left.text_input(
        "Label delay", duration(found["label_delay"]), key=f"delay-{source}", help="Time until a label is known: 7d, 12h or seconds"
    )
    negative = sixth.text_input(
        "Legitimate class", "", key=f"negative-{source}", placeholder="found automatically: 0, false, legitimate, …"
    ).strip()
    by = middle.selectbox("Parts", ["time", "random"], key=f"split-{source}", help=HELP["split"])
    return given | {"label_delay": delay, "split": by} | ({"negative": negative} if negative else {})


def _columns(source: Path, found: dict[str, Any], now: dict[str, Any]) -> None:
    """Show the role of each column with the reason, what looks wrong, and the spec file."""
    for warning in leak_notes(now["leaks"], "take it out of the roles"):
        st.warning(_plain(warning), icon=":material/warning:")
    before = {each["name"]: each for each in found["columns"]}
    rows = [
        {
            "column": each["name"],
            "role": each["role"] or "left out",
            "why": before[each["name"]]["reason"] if before[each["name"]]["role"] == each["role"] else "chosen here",
            "values": each["distinct"],
            "missing": 100 * each["missing"],
            "first": ", ".join(each["first"]),
        }
        for each in now["columns"]
    ]
    used = sum(row["role"] != "left out" for row in rows)
    with st.expander(f"Columns: {used} of {len(rows)} are used", icon=":material/table_chart:"):
        shape = {"missing": st.column_config.NumberColumn(format="%.1f %%"), "values": st.column_config.NumberColumn(format="localized")}
        st.dataframe(pl.DataFrame(rows), hide_index=True, column_config=shape, key=f"columns-{source}")
        for note in now["notes"]:
            st.caption(_plain(note))
        if now["time"]:
            st.caption(
                f"Time: {now['time']['days']:,.4g} days, from {_plain(str(now['time']['first']))} to {_plain(str(now['time']['last']))}"
            )
        if now["classes"]:
            total = max(1, sum(now["classes"].values()))
            st.caption(
                "Classes: " + ", ".join(f"{_plain(name)} {count:,} ({100 * count / total:.2f} %)" for name, count in now["classes"].items())
            )
        st.download_button(
            "Spec",
            now["spec_toml"],
            f"{source.stem}.toml",
            "application/toml",
            key=f"spec-{source}",
            icon=":material/download:",
            help="The roles as a file for balancer train --spec",
            on_click="ignore",
        )


def _plain(text: str) -> str:
    """Text whose marks are not taken for Markdown."""
    return re.sub(r"([\\`*_\[\]#$~|<>:])", r"\\\1", text)


def _budget(source: Path, flags: dict[str, Any]) -> str:
    """Ask for the budget; the estimated times are shown once they have been measured."""
    prices = st.session_state.get("prices", {})
    key = (str(source), tuple(sorted((name, str(value)) for name, value in flags.items())))
    seconds = prices.get(key, {})
    words = {
        name: f"{name}: {counted(budget.epochs, 'epoch')} of up to {counted(budget.steps_per_epoch, 'step')}"
        + (f", about {seconds[name] / 60:.1f} min" if seconds else "")
        for name, budget in BUDGETS.items()
    }
    chosen = st.radio(
        "Budget", list(BUDGETS), format_func=words.__getitem__, key="budget", help="The time does not include LightGBM, the last baseline."
    )
    if st.button("Check the table and estimate the times", icon=":material/timer:"):
        st.session_state["prices"] = {key: _prices(source, flags)}
        st.rerun()
    return str(chosen)


def _prices(source: Path, flags: dict[str, Any]) -> dict[str, float]:
    """Seconds by budget, from a few timed training steps on the table."""
    import io

    from rich.console import Console

    from balancer.devices import torch_threads
    from balancer.training.costs import estimate
    from balancer.training.preparation import prepare

    with st.spinner("reading the table and timing a few steps"):
        given: dict[str, Any] = {name: () if value == "none" and name in LIST_ROLES else value for name, value in flags.items()}
        config = TrainConfig(dataset=source, **given)
        with torch_threads(config.threads):
            prepared = prepare(config, Console(file=io.StringIO()))
            return {name: budget.seconds for name, budget in estimate(prepared).items()}


def _arguments(source: Path, flags: dict[str, Any]) -> list[str]:
    """The arguments of balancer train."""
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
    """Show one run: progress, metrics so far, log, and buttons to stop and resume it."""
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
                f"**{name}** is trained: average precision {state.metrics['average_precision']:.3f} on the test rows. See the page Runs."
            )
            _metrics(job)
            # The list of runs in the sidebar was drawn before this run was complete.
            if st.session_state.setdefault("announced", {}).get(name) is False:
                st.session_state["announced"][name] = True
                st.rerun()
        elif job.error:
            st.error(job.error)
        elif state is not None and state.status == "stopped":
            st.warning("Stopped; finished work is kept.")
            if st.button("Resume", key=f"resume-{name}", icon=":material/resume:"):
                _resume(name)
        else:
            st.error("The run ended without a result. The end of its log:")
            st.code(job.tail()[-2000:], language=None)


def _at_work(job: Job) -> None:
    st.session_state.setdefault("announced", {})[job.name] = False
    now = progress_of(job.out)
    if now is None:
        st.progress(0.0, "reading the table")
    else:
        left = now["seconds_left"]
        text = f"{now['stage']}: {now['done']} of {now['total']}" + (f", {left:.0f} s left" if left is not None and now["done"] else "")
        st.progress(now["done"] / max(1, now["total"]), text)
        st.caption(
            " → ".join(f"**{each['stage']}**" if each["stage"] == now["stage"] else each["stage"] for each in now["stages"])
            + f"  {now['detail']}"
        )
    if st.button("Stop", key=f"stop-{job.name}", icon=":material/stop:", help="Finished work is kept; the run can be resumed."):
        job.stop()
        st.rerun()
    _metrics(job)
    with st.expander("Log"):
        st.code(job.tail()[-3000:] or "nothing yet", language=None)


def _metrics(job: Job) -> None:
    lines = metrics_so_far(job.out)
    if lines.height:
        chart = epochs_chart(labelled(lines, NAMES), metric="average_precision", title="average precision on validation rows")
        st.altair_chart(chart.properties(height=220), width="stretch", key=f"live-{job.name}")


def _unfinished() -> None:
    """Offer to resume unfinished runs that were started outside the app."""
    here = {job.name for job in find_jobs(runs_folder())}
    for run in find_runs(runs_folder()):
        if run.status == "stopped" and run.name not in here and st.button(f"Resume {run.name}", icon=":material/resume:"):
            _resume(run.name)


def _resume(name: str) -> None:
    """Resume a run, or show why it can't be resumed."""
    try:
        start(runs_folder(), name, "train", [], resume=True)
    except InputError as error:
        st.error(str(error))
    else:
        st.rerun()


if __name__ == "__main__":
    show()
