"""The page Train: choose a table, the roles of its columns and a budget; watch, stop and resume runs.

A run is a process of its own, so it continues when the page is closed.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import streamlit as st

from balancer.app.browsing import find_runs
from balancer.app.jobs import ENDINGS, MAX_UPLOAD, PACKED, keep_shares, keep_upload, start, uploaded
from balancer.app.loading import plain, runs_folder, sample_table
from balancer.app.role_fields import ask_roles
from balancer.app.table_checks import FIELDS, check_upload, page_words
from balancer.app.watching import propose, watch_runs
from balancer.data.spec import LIST_ROLES
from balancer.errors import InputError
from balancer.names import counted
from balancer.options.fit import BUDGETS
from balancer.options.flags import flag_of, parameters
from balancer.options.model import HISTORY_LENGTH, HYBRID_HISTORY_LENGTH
from balancer.options.train import TrainConfig

PARAMETERS = {each.name: each for each in parameters(TrainConfig)}
LEARNERS = {
    "auto": "automatic",
    "hybrid": "trees and a network",
    "network": "a network alone",
    "trees": "trees alone",
}
POLICIES = {
    "ppo": "learned (PPO)",
    "auto": "constant (auto)",
    "bandit": "bandit",
    "schedule": "schedule",
    "rule": "rule",
}


def show() -> None:
    """Show the page."""
    st.title("Train")
    watch_runs()
    st.header("A new run")
    source = _source()
    if source is None:
        return
    try:
        flags, ready = ask_roles(source)
    except InputError as error:
        st.error(plain(str(error)))
        return
    st.subheader("Training")
    flags |= _method()
    budget = _budget(source, flags)
    propose("run-name", source.stem)
    name = st.text_input("Name of the run", key="run-name")
    if st.button("Start training", type="primary", icon=":material/play_arrow:", disabled=not ready):
        try:
            start(runs_folder(), name.strip(), "train", _arguments(source, flags | {"budget": budget}))
        except InputError as error:
            st.error(plain(page_words(str(error))))
        else:
            st.session_state["run-name-started"] = name
            st.rerun()
    if not ready:
        st.caption("Training can start when every role is clear and nothing above must be corrected.")


def _source() -> Path | None:
    """Ask for the table: the sample, one used or uploaded before, a path, or an upload."""
    used = [Path(run.dataset) for run in find_runs(runs_folder()) if run.dataset and Path(run.dataset).exists()]
    known = list(dict.fromkeys(path.resolve() for path in [sample_table(), *uploaded(runs_folder()), *used]))
    how = st.segmented_control(
        "Table", ["known here", "a path", "upload"], default="known here", required=True, key="how", persist_state="session"
    )
    if how == "known here":
        return st.selectbox("Choose", known, format_func=_shown, key="known", persist_state="session", label_visibility="collapsed")
    if how == "a path":
        text = st.text_input(
            "Path of a Parquet or CSV file, of JSON lines, or of a folder of such files", key="path", persist_state="session"
        ).strip()
        return Path(text).expanduser().resolve() if text else None
    return _upload()


def _shown(path: Path) -> str:
    """The path relative to the working directory, if it lies in it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _upload() -> Path | None:
    """Ask for a file; one that can't be read is refused at once."""
    endings = [ending.lstrip(".") for ending in (*ENDINGS, *PACKED)]
    given = st.file_uploader(f"Parquet, CSV or JSON lines, up to {MAX_UPLOAD // 2**20} MB", endings, key="upload")
    if given is None:
        return None
    kept: dict[str, Path | str] = st.session_state.setdefault("uploads", {})
    if given.file_id not in kept:
        try:
            with st.spinner("Reading the table"):
                path = keep_upload(runs_folder(), given.name, given.getvalue())
                check_upload(path)
            kept[given.file_id] = path
        except InputError as error:
            kept[given.file_id] = str(error)
    found = kept[given.file_id]
    if isinstance(found, Path):
        return found
    st.error(plain(found))
    return None


def _method() -> dict[str, Any]:
    """Ask how to train; fields by name."""
    first, left, middle, right = st.columns(4)
    learner = first.selectbox(
        FIELDS["learner"],
        PARAMETERS["learner"].choices,
        key="learner",
        format_func=lambda name: LEARNERS.get(name, name),
        help="Automatic is trees and a network, or a network alone where there are too few frauds for trees.",
    )
    policy = left.selectbox(
        FIELDS["policy"],
        list(POLICIES),
        key="policy",
        format_func=POLICIES.__getitem__,
        disabled=learner == "trees",
        help="How often each class is drawn while training. Weights that are learned on this table are kept only where they are better "
        "than the constant of the package on validation rows; the constant takes no time.",
    )
    length = middle.number_input(
        FIELDS["history_length"],
        1,
        4096,
        None,
        key="history_length",
        disabled=learner == "trees",
        placeholder="automatic",
        help=f"Transactions of an entity that the network reads, the scored one included. Automatic: {HYBRID_HISTORY_LENGTH} where it adds to "
        f"the trees, {HISTORY_LENGTH} where it is alone.",
    )
    seed = right.number_input(
        FIELDS["seed"], 0, 2**31 - 1, 0, key="seed", persist_state="session", help="The same seed gives the same run."
    )
    chosen = {"learner": learner, "policy": policy, "seed": int(seed)}
    return chosen if length is None else chosen | {"history_length": int(length)}


def _budget(source: Path, flags: dict[str, Any]) -> str:
    """Ask for the budget; the estimated times are shown once they have been measured."""
    if flags["learner"] == "trees":
        st.caption("Trees have no epochs, so there is no budget to choose; they take less time than a network.")
        return next(iter(BUDGETS))
    prices = st.session_state.get("prices", {})
    key = (str(source), tuple(sorted((name, str(value)) for name, value in flags.items())))
    seconds = prices.get(key, {})
    words = [
        f"{counted(budget.epochs, 'epoch')} of up to {counted(budget.steps_per_epoch, 'step')}"
        + (f", about {seconds[name] / 60:.1f} min" if seconds else "")
        for name, budget in BUDGETS.items()
    ]
    chosen = st.radio(
        FIELDS["budget"],
        list(BUDGETS),
        captions=words,
        key="budget",
        help="The time does not include LightGBM and the trees.",
    )
    if st.button("Check the table and estimate the times", icon=":material/timer:"):
        try:
            st.session_state["prices"] = {key: _prices(source, flags)}
        except InputError as error:
            st.error(plain(page_words(str(error))))
        else:
            st.rerun()
    return str(chosen)


def _prices(source: Path, flags: dict[str, Any]) -> dict[str, float]:
    """Seconds by budget, from a few timed training steps on the table."""
    from rich.console import Console

    from balancer.devices import torch_threads
    from balancer.training.costs import estimate
    from balancer.training.preparation import prepare

    with st.spinner("Reading the table and timing a few steps"):
        given: dict[str, Any] = {name: () if value == "none" and name in LIST_ROLES else value for name, value in flags.items()}
        if "shares" in given:
            given["spec"] = keep_shares(runs_folder(), given.pop("shares"))
        config = TrainConfig(dataset=source, **given)
        with torch_threads(config.threads):
            prepared = prepare(config, Console(markup=False, file=io.StringIO()))
            return {name: budget.seconds for name, budget in estimate(prepared).items()}


def _arguments(source: Path, flags: dict[str, Any]) -> list[str]:
    """The arguments of balancer train."""
    arguments = ["--dataset", str(source)]
    for name, value in flags.items():
        if name == "shares":  # no flag has them
            arguments += ["--spec", str(keep_shares(runs_folder(), value))]
            continue
        arguments += [flag_of(name), ",".join(value) or "none" if isinstance(value, tuple) else str(value)]
    return arguments


if __name__ == "__main__":
    show()
