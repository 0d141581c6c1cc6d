"""Compare: policies and baselines over time windows and seeds, with intervals; and what another way of choosing weights would have brought."""

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

WHAT_IF = {
    "zero-shot: the shipped policy as it is": "auto",
    "fine-tuned: PPO goes on from it on your table": "ppo",
    "constant: the best share that trials found": "constant_share",
    "constant: share and hardness on a grid": "constant",
    "constant: found by a TPE search": "tpe",
    "a bandit, no state": "bandit",
    "the usual 1:1 over-sampling": "one_to_one",
    "no sampling": "none",
}
QUICK = (
    "--windows",
    "1",
    "--seeds",
    "3",
    "--search-trials",
    "8",
    "--ppo-rollouts",
    "4",
    "--policies",
    "none,one_to_one,constant_share,auto,ppo,lightgbm",
)


def show() -> None:
    """The page."""
    st.title("Policies side by side")
    st.markdown(
        "What `balancer compare` found: every policy trains with the same budget, over windows of time and seeds; differences come with 95 % intervals."
    )
    found = find_comparisons(runs_folder())
    _start(bool(found))
    if not found:
        return
    picked = st.selectbox("Comparison", found, format_func=lambda path: path.parent.name, key="comparison")
    content = read_comparison(picked)
    st.info(content["sentence"], icon=":material/gavel:")
    _what_if(content)
    st.subheader(f"Difference to {content['reference']}")
    show_chart(
        comparison_chart(content, columns=2, titled=False),
        f"{picked.parent.name}-chart",
        about="difference of each policy to the reference with its interval, by metric",
    )
    _tables(content, picked)


def _start(others: bool) -> None:
    runs = runs_folder()
    jobs = [job for job in find_jobs(runs) if job.kind == "compare"]
    with st.expander("Compare now", expanded=not others, icon=":material/play_arrow:"):
        tables = list(dict.fromkeys([str(sample_table()), *(run.dataset for run in all_runs() if run.dataset)]))
        chosen = st.selectbox("Table", tables, key="compare-table")
        name = st.text_input("Name", "comparison", key="compare-name")
        st.caption(
            "A quick one: the whole table, three seeds, six policies; a few minutes on the sample. More of everything: `balancer compare --help`."
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
    """One comparison at work: what it printed last; the page shows it when it has ended."""
    job = next((job for job in find_jobs(runs_folder()) if job.name == name and job.kind == "compare"), None)
    if job is None:
        return
    seen = st.session_state.setdefault("compare-alive", {})
    alive = job.alive
    if seen.get(name) and not alive:
        seen[name] = False
        st.rerun()
    seen[name] = alive
    if alive:
        st.info(f"**{name}** is at work", icon=":material/hourglass_top:")
        st.code("\n".join(job.tail().splitlines()[-6:]) or "starting", language=None)
        if st.button("Stop", key=f"stop-{name}"):
            job.stop()
            st.rerun()
    elif job.error:
        st.error(f"**{name}**: {job.error}")


def _what_if(content: dict[str, Any]) -> None:
    """The policies that stand for ways of choosing weights, in the words of the question."""
    averages, differences = content["means"], content["paired"]
    offered = {title: name for title, name in WHAT_IF.items() if name in averages}
    if len(offered) < 2:
        return
    st.subheader("What if")
    chosen = st.multiselect("How would the weights be chosen?", list(offered), default=list(offered), key="what-if")
    rows = []
    for title in chosen:
        own, against = averages[offered[title]], differences.get(offered[title], {}).get("average_precision")
        rows.append(
            {
                "weights": title,
                "average precision": own.get("average_precision"),
                f"against {content['reference']}": None if against is None else against["difference"],
                "is that more than noise?": "the reference itself" if against is None else noise(against),
            }
        )
    columns = {
        "average precision": st.column_config.NumberColumn(format="%.3f"),
        f"against {content['reference']}": st.column_config.NumberColumn(format="%+.3f"),
    }
    show_table(pl.DataFrame(rows, strict=False), "what-if", columns=columns)


def _tables(content: dict[str, Any], picked: Path) -> None:
    means = pl.DataFrame([{"policy": name} | dict(own) for name, own in content["means"].items()], strict=False, infer_schema_length=None)
    titles = {name: about.title for name, about in METRICS.items() if name in means.columns}
    with st.expander("Means of every figure"):
        show_table(
            means.rename(titles),
            f"{picked.parent.name}-means",
            columns={title: st.column_config.NumberColumn(format="%.4f") for title in titles.values()},
        )
    rows = [
        {"policy": policy, "figure": METRICS[metric].title if metric in METRICS else metric}
        | {key: value for key, value in found.items() if not isinstance(value, dict | list)}
        for policy, own in content["paired"].items()
        for metric, found in own.items()
    ]
    with st.expander(f"Every paired difference to {content['reference']}"):
        show_table(pl.DataFrame(rows, strict=False, infer_schema_length=None), f"{picked.parent.name}-paired")


if __name__ == "__main__":
    show()
