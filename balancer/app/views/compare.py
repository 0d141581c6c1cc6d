"""The page Compare: treatments over time folds and seeds, with intervals of their differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import streamlit as st

from balancer.app.browsing import find_comparisons, read_comparison
from balancer.app.jobs import find_jobs, start
from balancer.app.loading import all_runs, runs_folder, sample_table, show_chart, show_table
from balancer.comparison.chart import comparison_chart
from balancer.comparison.statistics import METRICS
from balancer.comparison.summary import noise
from balancer.errors import InputError

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
"""Treatments that are ways to choose the sampling weights, by title."""
QUICK = (
    "--folds",
    "1",
    "--seeds",
    "3",
    "--search-trials",
    "8",
    "--ppo-rollouts",
    "4",
    "--treatments",
    "none,one_to_one,constant_share,auto,ppo,lightgbm",
)


def show() -> None:
    """Show the page."""
    st.title("Comparison")
    st.markdown(
        "Results of `balancer compare`: every treatment trains with the same budget, over several time folds and seeds. Differences have 95 % intervals."
    )
    found = find_comparisons(runs_folder())
    _start(bool(found))
    if not found:
        return
    picked = st.selectbox("Comparison", found, format_func=lambda path: path.parent.name, key="comparison")
    content = read_comparison(picked)
    st.info(content["sentence"], icon=":material/gavel:")
    _weight_choices(content)
    st.subheader(f"Difference from {content['reference']}")
    show_chart(
        comparison_chart(content, columns=2, titled=False),
        f"{picked.parent.name}-chart",
        about="difference of each treatment from the reference with its interval, by metric",
    )
    _tables(content, picked)


def _start(others: bool) -> None:
    runs = runs_folder()
    jobs = [job for job in find_jobs(runs) if job.kind == "compare"]
    with st.expander("Start a comparison", expanded=not others, icon=":material/play_arrow:"):
        tables = list(dict.fromkeys([str(sample_table()), *(run.dataset for run in all_runs() if run.dataset)]))
        chosen = st.selectbox("Table", tables, key="compare-table")
        name = st.text_input("Name", "comparison", key="compare-name")
        st.caption(
            "A short comparison: one fold with the whole table, three seeds, six treatments; a few minutes on the sample table. For more, see "
            "`balancer compare --help`."
        )
        if st.button("Compare", type="primary", key="compare-start"):
            try:
                start(runs, name, "compare", ["--dataset", str(Path(chosen).resolve()), *QUICK])
            except InputError as error:
                st.error(str(error))
        for job in jobs[:3]:
            _watch(job.name)


@st.fragment(run_every=2.0)
def _watch(name: str) -> None:
    """Show the last output of a running comparison, and its result when it has ended."""
    job = next((job for job in find_jobs(runs_folder()) if job.name == name and job.kind == "compare"), None)
    if job is None:
        return
    running = st.session_state.setdefault("compare-alive", {})
    alive = job.alive
    if running.get(name) and not alive:
        running[name] = False
        st.rerun()
    running[name] = alive
    if alive:
        st.info(f"**{name}** is running", icon=":material/hourglass_top:")
        st.code("\n".join(job.tail().splitlines()[-6:]) or "starting", language=None)
        if st.button("Stop", key=f"stop-{name}"):
            job.stop()
            st.rerun()
    elif job.error:
        st.error(f"**{name}**: {job.error}")


def _weight_choices(content: dict[str, Any]) -> None:
    """Show the treatments that are ways to choose the weights, with their titles."""
    averages, differences = content["means"], content["paired"]
    offered = {title: name for title, name in WEIGHT_CHOICES.items() if name in averages}
    if len(offered) < 2:
        return
    st.subheader("Ways to choose the weights")
    chosen = st.multiselect("Show", list(offered), default=list(offered), key="weight-choices")
    rows = []
    for title in chosen:
        mean, difference = averages[offered[title]], differences.get(offered[title], {}).get("average_precision")
        rows.append(
            {
                "weights": title,
                "average precision": mean.get("average_precision"),
                f"difference from {content['reference']}": None if difference is None else difference["difference"],
                "more than noise?": "the reference" if difference is None else noise(difference),
            }
        )
    columns = {
        "average precision": st.column_config.NumberColumn(format="%.3f"),
        f"difference from {content['reference']}": st.column_config.NumberColumn(format="%+.3f"),
    }
    show_table(pl.DataFrame(rows, strict=False), "weight-choices", columns=columns)


def _tables(content: dict[str, Any], picked: Path) -> None:
    means = pl.DataFrame(
        [{"treatment": name} | dict(values) for name, values in content["means"].items()], strict=False, infer_schema_length=None
    )
    titles = {name: about.title for name, about in METRICS.items() if name in means.columns}
    with st.expander("Means of all metrics"):
        show_table(
            means.rename(titles),
            f"{picked.parent.name}-means",
            columns={title: st.column_config.NumberColumn(format="%.4f") for title in titles.values()},
        )
    rows = [
        {"treatment": treatment, "metric": METRICS[metric].title if metric in METRICS else metric}
        | {key: value for key, value in found.items() if not isinstance(value, dict | list)}
        for treatment, metrics in content["paired"].items()
        for metric, found in metrics.items()
    ]
    with st.expander(f"All paired differences from {content['reference']}"):
        show_table(pl.DataFrame(rows, strict=False, infer_schema_length=None), f"{picked.parent.name}-paired")


if __name__ == "__main__":
    show()
