"""The page Compare: treatments over time folds and seeds with intervals, and how runs differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import streamlit as st

from balancer.app.browsing import find_comparisons, read_comparison
from balancer.app.comparison_charts import forest_chart, parallel_chart
from balancer.app.comparisons import (
    SIZES,
    TREATMENTS,
    comparison_progress,
    configuration_differences,
    find_unfinished,
    forest_rows,
    in_titles,
    parallel_rows,
    unfinished,
)
from balancer.app.jobs import Job, find_jobs, start
from balancer.app.loading import all_runs, plain, runs_folder, sample_table, show_chart, show_table
from balancer.app.table_checks import page_words
from balancer.app.watching import ended_box, progress_box, propose, restart, running_job, stop_button
from balancer.comparison.cells import RESULT_FILE
from balancer.comparison.config import POPULATION_TREATMENTS
from balancer.comparison.statistics import METRICS
from balancer.comparison.summary import noise
from balancer.comparison.verdict import best_fixed, learned_verdict, title_of
from balancer.errors import InputError

# Treatments that are ways to choose the sampling weights, by title:
WEIGHT_CHOICES = {
    "the constant of the package (auto), not tuned on your table": "auto",
    "PPO, fine-tuned on your table; or auto, where PPO is not better": "ppo",
    "constant weights: the best share of several trials": "constant_share",
    "constant weights: the best share and hardness of a grid": "constant",
    "constant weights: found by a TPE search": "tpe",
    "a bandit, not tuned on your table": "bandit",
    "the usual 1:1 over-sampling": "one_to_one",
    "no sampling": "none",
}
SIZE_WORDS = {
    "short": "one time fold, three seeds: some minutes on the sample; a result for one time only",
    "usual": "five time folds, three seeds: about ten times as long; needed for a sound verdict",
}
VERDICT_ICONS = {
    "better": ":material/trending_up:",
    "worse": ":material/trending_down:",
    "unclear": ":material/balance:",
    "missing": ":material/help:",
}
_SHOWN_JOBS = 3
_FEWEST_LINES = 3  # runs from which parallel coordinates say something


def show() -> None:
    """Show the page."""
    st.title("Compare")
    found = find_comparisons(runs_folder())
    _jobs()
    _start(expanded=not found and not any(job.kind == "compare" for job in find_jobs(runs_folder())))
    if found:
        ended = st.session_state.pop("comparison-ended", None)  # the one that has just ended is shown
        if (path := next((path for path in found if path.parent.name == ended), None)) is not None:
            st.session_state["comparison"] = path
        picked = st.selectbox("Comparison", found, format_func=lambda path: path.parent.name, key="comparison", persist_state="session")
        try:
            _result(read_comparison(picked), picked)
        except InputError as error:
            st.error(plain(error))
    _runs()


def _jobs() -> None:
    """Show comparisons that were started here, and those that can be resumed."""
    jobs = [job for job in find_jobs(runs_folder()) if job.kind == "compare"][:_SHOWN_JOBS]
    for job in jobs:
        if job.alive:
            _watch(job.name)
        else:
            _ended(job)
    others = [each for each in find_unfinished(runs_folder()) if each.name not in {job.name for job in jobs}]
    if others:
        with st.container(border=True):
            st.markdown("**Comparisons that were stopped before they were finished**")
            with st.container(horizontal=True):
                for each in others:
                    label = f"Resume {plain(each.name)} ({each.done:,} of {each.planned:,} trainings)"
                    if st.button(label, icon=":material/resume:", key=f"resume-{each.name}"):
                        restart(each.name, "compare", [], resume=True)


@st.fragment(run_every=1.0)
def _watch(name: str) -> None:
    """Show a comparison that runs."""
    st.session_state.setdefault("comparisons-seen", set()).add(name)
    job = running_job(name, "compare")
    with st.container(border=True):
        st.subheader(plain(name), anchor=False)
        now = comparison_progress(job.out)
        progress_box("Reading the table", now and now | {"stage": "trainings", "stages": []})
        stop_button(job)
        with st.expander("Log"):
            st.code("\n".join(job.tail().splitlines()[-12:]) or "nothing yet", language=None)


def _ended(job: Job) -> None:
    """Show a comparison that was stopped or failed, or choose the result of one that has just ended."""
    seen = job.name in st.session_state.get("comparisons-seen", set())
    st.session_state.get("comparisons-seen", set()).discard(job.name)
    if (job.out / RESULT_FILE).exists() and not job.error:
        if seen:
            st.session_state["comparison-ended"] = job.name
        return
    with st.container(border=True):
        st.subheader(plain(job.name), anchor=False)
        state = unfinished(job.out)
        ended_box(job, state is not None, "" if state is None else f"{state.done:,} of {state.planned:,} trainings are finished and kept.")


def _start(*, expanded: bool) -> None:
    """Offer to start a comparison."""
    runs = runs_folder()
    with st.expander("Start a comparison", expanded=expanded, icon=":material/play_arrow:"):
        st.caption(
            "Every treatment trains small networks with the same budget, over the same rows and seeds, so that differences come from the "
            "sampling weights. The same is done by `balancer compare` in a terminal."
        )
        tables = list(dict.fromkeys([str(sample_table()), *(run.dataset for run in all_runs() if run.dataset)]))
        left, right = st.columns(2)
        chosen = left.selectbox("Table", tables, key="compare-table", persist_state="session")
        propose("compare-name", "comparison")
        name = right.text_input("Name", key="compare-name")
        size = st.radio(
            "Size", list(SIZES), format_func=lambda key: f"{key}: {SIZE_WORDS.get(key, '')}", key="compare-size", persist_state="session"
        )
        treatments = st.multiselect(
            "Treatments", POPULATION_TREATMENTS, TREATMENTS, format_func=title_of, key="compare-treatments", persist_state="session"
        )
        if st.button("Compare", type="primary", key="compare-start", icon=":material/play_arrow:", disabled=len(treatments) < 2):
            flags = ["--dataset", str(Path(chosen).resolve()), *SIZES[size], "--treatments", ",".join(treatments)]
            try:
                start(runs, name.strip(), "compare", flags)
            except InputError as error:
                st.error(plain(page_words(str(error))))
            else:
                st.session_state["compare-name-started"] = name
                st.rerun()


def _result(content: dict[str, Any], picked: Path) -> None:
    """Show a finished comparison: the verdict, the forest plot, and tables."""
    verdict = learned_verdict(content["results"])
    with st.container(border=True):
        st.markdown(f"#### {VERDICT_ICONS[verdict.outcome]} {plain(verdict.sentence)}")
        st.caption(
            "The best fixed ratio is the best on the test rows, which favours it a little. An interval that includes 0 is no clear difference."
        )
    st.caption(plain(in_titles(content["sentence"], content["means"])))
    _forest(content, picked)
    _weight_choices(content)
    _tables(content, picked)


def _forest(content: dict[str, Any], picked: Path) -> None:
    """Show the forest plot, with the reference and the metric of choice."""
    names = list(content["means"])
    usual = best_fixed(content["means"]) or content["reference"]
    metrics = [key for key in METRICS if any(key in values for values in content["means"].values())]
    st.subheader("Treatments against one of them")
    left, right = st.columns(2)
    best = f"{title_of(usual)} (the best fixed ratio)" if usual == best_fixed(content["means"]) else title_of(usual)
    reference = left.selectbox(
        "Reference, at zero",
        names,
        names.index(usual),
        format_func=lambda name: best if name == usual else title_of(name),
        key=f"forest-reference-{picked}",
    )
    metric = right.selectbox("Metric", metrics, format_func=lambda key: METRICS[key].title, key=f"forest-metric-{picked}")
    if not metrics or (rows := forest_rows(content["results"], reference, metric)).is_empty():
        st.info("No treatment has this metric in the same fold and seed as the reference.")
        return
    show_chart(
        forest_chart(rows, reference, metric),
        f"{picked.parent.name}-chart",
        about=f"difference of {METRICS[metric].title} of each treatment from {title_of(reference)} with its interval, the best first",
    )
    st.caption(
        "Bars are 95 % intervals over time folds, or over seeds where there is one fold. A bar that crosses zero is no clear difference."
    )


def _weight_choices(content: dict[str, Any]) -> None:
    """Show the treatments that are ways to choose the weights, with their titles."""
    averages, differences = content["means"], content["paired"]
    offered = {title: name for title, name in WEIGHT_CHOICES.items() if name in averages}
    if len(offered) < 2:
        return
    st.subheader("Ways to choose the weights")
    chosen = st.multiselect("Show", list(offered), default=list(offered), key="weight-choices")
    rows, difference_title = [], f"difference from {title_of(content['reference'])}"
    for title in chosen:
        mean, difference = averages[offered[title]], differences.get(offered[title], {}).get("average_precision")
        rows.append(
            {
                "weights": title,
                "average precision": mean.get("average_precision"),
                difference_title: 0.0 if difference is None else difference["difference"],
                "verdict": "the reference" if difference is None else noise(difference),
            }
        )
    columns = {
        "average precision": st.column_config.NumberColumn(format="%.3f"),
        difference_title: st.column_config.NumberColumn(format="%+.3f"),
    }
    show_table(pl.DataFrame(rows, strict=False), "weight-choices", columns=columns)


def _tables(content: dict[str, Any], picked: Path) -> None:
    means = pl.DataFrame(
        [{"treatment": title_of(name)} | dict(values) for name, values in content["means"].items()], strict=False, infer_schema_length=None
    )
    titles = {name: about.title for name, about in METRICS.items() if name in means.columns}
    with st.expander("Means of all metrics"):
        show_table(
            means.rename(titles),
            f"{picked.parent.name}-means",
            columns={title: st.column_config.NumberColumn(format="%.4f") for title in titles.values()},
        )
    rows = [
        {"treatment": title_of(treatment), "metric": METRICS[metric].title if metric in METRICS else metric}
        | {key: value for key, value in found.items() if not isinstance(value, dict | list)}
        for treatment, metrics in content["paired"].items()
        for metric, found in metrics.items()
    ]
    with st.expander(f"All paired differences from {title_of(content['reference'])}"):
        show_table(pl.DataFrame(rows, strict=False, infer_schema_length=None), f"{picked.parent.name}-paired")


def _runs() -> None:
    """Show how chosen runs differ in their settings, and many of them as parallel coordinates."""
    complete = [run for run in all_runs() if run.status == "complete"]
    if len(complete) < 2:
        return
    st.header("How runs differ")
    names = [run.name for run in complete]
    chosen = st.multiselect(
        "Runs", names, names[:5], key="compare-runs", persist_state="session", help="Finished runs of the folder, the latest first."
    )
    runs = [run for run in complete if run.name in chosen]
    if len(runs) < 2:
        st.caption("Choose two runs or more.")
        return
    differences = configuration_differences(runs)
    if differences.is_empty():
        st.markdown("These runs were started with the same settings.")
        return
    show_table(differences, "configurations", columns={"setting": st.column_config.TextColumn(pinned=True)})
    if len(runs) >= _FEWEST_LINES:
        chart = parallel_chart(parallel_rows(runs))
        show_chart(chart, "parallel", about="one line for each run across the settings that differ, recall and average precision")
        if len({run.dataset for run in runs}) > 1:
            st.caption("These runs were trained on different tables, so their results can't be compared.")


if __name__ == "__main__":
    show()
