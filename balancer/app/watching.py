"""The boxes on the page Train: runs that train, have ended, or were stopped, with buttons to go on."""

from __future__ import annotations

from typing import Any

import streamlit as st

from balancer.app.browsing import Run, find_runs, metrics_so_far, progress_of, read_run
from balancer.app.charts import epochs_chart, labelled
from balancer.app.jobs import Job, find_jobs, forget, start
from balancer.app.loading import NAMES, plain, runs_folder
from balancer.app.table_checks import page_words, weak_result
from balancer.errors import InputError

_SHOWN = 4
"""Most jobs that are shown."""
_LOG, _END = 3_000, 2_000
"""Characters of a log that are shown while a run trains, and after it failed."""
_CHART_HEIGHT = 220


def watch_runs() -> None:
    """Show the latest runs that were started on the page, and those that can be resumed."""
    jobs = [job for job in find_jobs(runs_folder()) if job.kind == "train"]
    for job in jobs[:_SHOWN]:
        if job.alive:
            _watch(job.name)
        else:
            _ended(job)
    shown = {job.name for job in jobs[:_SHOWN]}
    stopped = [run for run in find_runs(runs_folder()) if run.status == "stopped" and run.name not in shown]
    if stopped:
        with st.container(border=True):
            st.markdown("**Runs that were stopped before they were finished**")
            with st.container(horizontal=True):
                for run in stopped:
                    if st.button(f"Resume {plain(run.name)}", icon=":material/resume:", key=f"resume-{run.name}"):
                        restart(run.name, "train", [], resume=True)


def propose(key: str, stem: str) -> None:
    """Fill in a name that is free; a name that was typed stays, until something has been started with it.

    Args:
        key: Key of the field.
        stem: What the name begins with.
    """
    state, folder = st.session_state, runs_folder()
    taken = {path.name for path in folder.glob("*")} | {job.name for job in find_jobs(folder)}
    free, number = stem, 1
    while free in taken:
        number += 1
        free = f"{stem}-{number}"
    if state.get(key) in (None, state.get(f"{key}-proposed")) or state.get(key) == state.get(f"{key}-started"):
        state[key] = free
    state[f"{key}-proposed"] = free


def restart(name: str, kind: str, arguments: list[str], *, resume: bool) -> None:
    """Start or resume a job and run the page again, or show why that is impossible."""
    try:
        start(runs_folder(), name, "compare" if kind == "compare" else "train", arguments, resume=resume)
    except InputError as error:
        st.error(plain(page_words(str(error))))
    else:
        st.rerun()


def progress_box(before: str, now: dict[str, Any] | None) -> None:
    """Show how far a job is.

    Args:
        before: What it does before its first stage.
        now: Its progress, as `balancer.runs.progress` writes it.
    """
    if now is None:
        st.progress(0.0, before)
        return
    left = now["seconds_left"]
    remaining = (
        "" if left is None or not now["done"] else f", about {left:,.0f} s left" if left < 90 else f", about {left / 60:,.0f} min left"
    )
    st.progress(min(1.0, now["done"] / max(1, now["total"])), f"{plain(now['stage'])}: {now['done']:,} of {now['total']:,}{remaining}")
    stages = [plain(each["stage"]) for each in now["stages"]]
    steps = (
        " → ".join(f"**{stage}**" if place == len(stages) - 1 else stage for place, stage in enumerate(stages)) if len(stages) > 1 else ""
    )
    st.caption("  ".join(part for part in (steps, plain(str(now["detail"]))) if part) or " ")


def ended_box(job: Job, folder_exists: bool, finished: str) -> None:
    """Say how a job ended that gave no result, and offer to go on.

    Args:
        job: The job.
        folder_exists: Whether it has a folder to resume.
        finished: What is kept.
    """
    if job.error:
        st.error(plain(page_words(job.error)))
    elif folder_exists:
        st.warning(f"Stopped; {finished}" if job.stopped else f"Interrupted; {finished}", icon=":material/pause_circle:")
    elif job.stopped:
        st.warning("Stopped before its first step was finished.", icon=":material/pause_circle:")
    else:
        st.error("It ended without a result. The end of its log:")
        st.code(job.tail()[-_END:], language=None)
    with st.container(horizontal=True):
        if folder_exists:
            if st.button("Resume", key=f"resume-{job.name}", icon=":material/resume:", type="primary"):
                restart(job.name, job.kind, [], resume=True)
        elif job.arguments and st.button("Start again", key=f"again-{job.name}", icon=":material/replay:"):
            restart(job.name, job.kind, list(job.arguments), resume=False)
        if st.button("Remove from this list", key=f"forget-{job.name}", icon=":material/close:", type="tertiary"):
            forget(job)
            st.rerun()


def stop_button(job: Job) -> None:
    """Offer to stop a job."""
    if st.button("Stop", key=f"stop-{job.name}", icon=":material/stop:", help="Finished work is kept, and it can be resumed."):
        job.stop()
        st.rerun()


@st.fragment(run_every=1.0)
def _watch(name: str) -> None:
    """Show a run that trains: progress, metrics so far, log, and a button to stop it."""
    job = running_job(name, "train")
    with st.container(border=True):
        st.subheader(plain(name), anchor=False)
        progress_box("Reading the table", progress_of(job.out))
        stop_button(job)
        _metrics(job)
        with st.expander("Log"):
            st.code(job.tail()[-_LOG:] or "nothing yet", language=None)


def running_job(name: str, kind: str) -> Job:
    """Return a running job; where it has ended, draw the whole page again, which then shows its end.

    What has ended is not drawn by a part of the page that repeats itself: such a part can't open another page
    without a race between the two.
    """
    job = next((job for job in find_jobs(runs_folder()) if job.name == name and job.kind == kind), None)
    if job is None or not job.alive:
        st.rerun()
    return job


def _ended(job: Job) -> None:
    """Show a run that is trained, was stopped or failed, with buttons to go on."""
    with st.container(border=True):
        st.subheader(plain(job.name), anchor=False)
        state = read_run(job.out) if job.out.is_dir() else None
        if state is not None and state.status == "complete":
            _finished(job, state)
        elif state is not None and state.status == "broken":
            st.error(plain(state.problem))
        else:
            ended_box(job, state is not None and state.status == "stopped", "finished work is kept.")


def _finished(job: Job, run: Run) -> None:
    """Say how good a run is; a result at the level of chance is no success."""
    weak = weak_result(run.metrics)
    score = f"**{plain(run.name)}** is trained: average precision {run.metrics['average_precision']:.3f} on the test rows"
    share = run.metrics["positives"] / max(1, run.metrics["rows"])
    if weak:
        st.warning(f"**{plain(run.name)}** is trained, but it is not usable. {plain(weak)}", icon=":material/warning:")
    else:
        st.success(f"{score}, where a random ranking has {share:.3f}.", icon=":material/check_circle:")
    with st.container(horizontal=True):
        if st.button("See the results", key=f"see-{job.name}", icon=":material/list:", on_click=_choose, args=(run.name,)):
            st.switch_page("views/runs.py")
        if st.button("Remove from this list", key=f"forget-{job.name}", icon=":material/close:", type="tertiary"):
            forget(job)
            st.rerun()
    _metrics(job)


def _choose(name: str) -> None:
    st.session_state["run"] = name


def _metrics(job: Job) -> None:
    lines = metrics_so_far(job.out)
    if lines.height:
        chart = epochs_chart(labelled(lines, NAMES), metric="average_precision", title="average precision on validation rows")
        st.altair_chart(chart.properties(height=_CHART_HEIGHT), width="stretch", key=f"live-{job.name}")
