"""The page Weights: what was drawn and what counted, a map of constant weights, a game against the policy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import altair as alt
import polars as pl
import streamlit as st

from balancer.app.browsing import Run
from balancer.app.chart_parts import POLICY
from balancer.app.charts import epochs_chart, surface_chart, weights_chart
from balancer.app.loading import chosen_run, download_svg, number, percent, plain, problem, read, show_chart, show_table, table
from balancer.app.weights_charts import DRAWN
from balancer.app.weights_summary import (
    Verdict,
    class_shares,
    compared,
    drawn_and_counted,
    game_verdict,
    map_marks,
    map_verdict,
    noise_of,
    run_verdict,
    students_verdict,
    validation_frauds,
)
from balancer.errors import InputError
from balancer.evaluation.report_content import TITLES
from balancer.evaluation.report_parts import part_lines
from balancer.files import atomic_path
from balancer.runs.run_folder import epochs_file

if TYPE_CHECKING:
    from balancer.policy_learning.playground import Playground

SURFACE_FILE = "surface.parquet"
NO_HALF_LIFE = "none"
HALF_LIVES = {"1/8": 0.125, "1/4": 0.25, "1/2": 0.5, "1": 1.0, NO_HALF_LIFE: math.inf}
"""Half-lives that can be chosen, as fractions of the training period, by title."""
NONE, EVEN, AUTO = TITLES["none"], TITLES["one_to_one"], "auto, the constant"


def show() -> None:
    """Show the page."""
    run = chosen_run("Sampling weights")
    if not run.has_network:
        st.info(
            f"**{plain(run.name)}** is boosted trees without a network. They are fitted to the training rows without sampling weights, so there "
            "are none to show. Train a network as well with `balancer train --learner hybrid`."
        )
        return
    every, report = table(run, epochs_file(run.path).name), read(run, "report.json")
    epochs = every.filter(pl.col("model") == "run").drop("model")
    frauds = validation_frauds(report)
    drawn = drawn_and_counted(epochs, class_shares(every, report))
    on_trees = run.has_trees and report.get("run", {}).get("configuration", {}).get("margin") == "trees"
    _say(run_verdict(every, frauds=frauds, on_trees=on_trees))
    _tiles(epochs, drawn)
    line = part_lines(report).get("sampling") if report.get("run", {}).get("network") else None
    if line:
        st.markdown(f"**Sampling**: {plain(line)}.")
    st.header("By epoch")
    st.markdown(
        f"The sampling weights of the policy **{plain(run.policy)}** and the validation metrics after each epoch. *Drawn*: share of the draws "
        "that are fraud. *Counted*: their share of the loss. *Hardness*: how strongly rows with a large error are preferred. *Floor*: share "
        "of the draws that ignore hardness. *Importance*: how much less a row counts in the loss if it is drawn more often; 0: every drawn "
        "row counts alike, 1: the sampling is undone. Move the pointer over an epoch to highlight it in every panel."
    )
    chart = weights_chart(epochs, drawn)
    show_chart(chart, f"{run.name}-weights", about="share of fraud drawn and counted, hardness, floor and validation metrics by epoch")
    with st.expander("Weights and metrics as a table"):
        joined = epochs.join(drawn.rename({name: DRAWN[name] for name in drawn.columns if name in DRAWN}), on="epoch")
        show_table(joined, f"{run.name}-epochs-table")
    _rivals(run)
    st.header("Expected results of constant weights")
    _surface(run, epochs, frauds)
    st.header("Play against the policy")
    _game(run, frauds)


def _say(verdict: Verdict | None) -> None:
    """Show a verdict: green only where the run or the person is clearly better."""
    if verdict is None:
        return
    box, icon = {
        "better": (st.success, ":material/check_circle:"),
        "worse": (st.warning, ":material/trending_down:"),
        "unclear": (st.info, ":material/balance:"),
    }[verdict.outcome]
    box(plain(verdict.sentence), icon=icon)


def _tiles(epochs: pl.DataFrame, drawn: pl.DataFrame) -> None:
    """Show what was drawn and what counted in the last epoch, beside validation."""
    last = drawn.sort("epoch").row(-1, named=True)
    best = epochs.drop_nulls("average_precision").sort("average_precision", descending=True)
    tiles = {"Fraud among the drawn rows": percent(last["drawn"])}
    if "counted" in last:
        tiles |= {"Fraud in the loss": percent(last["counted"]), "Fraud in the training rows": percent(last["table"])}
    if best.height:
        tiles |= {"Validation average precision": number(best["average_precision"][0])}
    helps = {
        "Fraud among the drawn rows": "in the last epoch",
        "Fraud in the loss": "share of the loss weight in the last epoch: rows that are drawn more often can count less",
        "Validation average precision": f"of the best epoch, {best['epoch'][0] if best.height else '–'} of {max(epochs['epoch'].to_list())}",
    }
    for column, (title, value) in zip(st.columns(len(tiles)), tiles.items(), strict=True):
        column.metric(title, value, border=True, help=helps.get(title))


def _rivals(run: Run) -> None:
    """Show the evaluation of the learned policy on students with new seeds."""
    if not (run.path / "policy" / "policy.json").is_file():
        return
    training = read(run, "policy/policy.json").get("training", {})
    found = training.get("evaluation")
    if not found:
        return
    st.subheader("The policy on small students with new seeds")
    kept = read(run, "policy/policy.json").get("kept", "policy")
    if kept == "constant":
        st.markdown("The constant was kept, because PPO is not better by more than the noise of these students.")
    names = {
        "ppo": "PPO",
        "constant": AUTO,
        "one_to_one": EVEN,
        "none": NONE,
        "start": "its initial weights",
        "random": "random weights",
    }
    metric = training.get("told", {}).get("reward", "f1")
    if "ppo" in found and len(found) > 1 and all(metric in values for values in found.values()):
        _say(students_verdict(found, names, metric, training.get("margin_error")))
    rows = [{"policy": names.get(name, name)} | metrics for name, metrics in found.items()]
    frame = pl.DataFrame(rows).rename(
        {
            "average_precision": "average precision",
            "f1": "F1",
            "partial_auc": "partial AUC",
            "minority_share": "last share",
            "hardness": "last hardness",
        },
        strict=False,
    )
    columns = {name: st.column_config.NumberColumn(format="%.3f") for name in ("average precision", "F1", "partial AUC", "last hardness")}
    show_table(frame, f"{run.name}-rivals", columns=columns | {"last share": st.column_config.NumberColumn(format="percent")})


def _surface(run: Run, epochs: pl.DataFrame, frauds: int | None) -> None:
    """Show a map of constant weights and the path of the run; it is measured once and kept."""
    st.markdown(
        "Small students are trained on the rows of the run with every combination of share and hardness, with the sampler's loss. The "
        "colour is their metric on validation rows. The white line shows the weights of the run, from the first epoch to the last; the other "
        "marks are named below the map. Students do "
        "not read the history of a row, so the map shows which direction is better, not how much better."
    )
    file = run.path / SURFACE_FILE
    # Maps of version 0.1 were measured with another loss and lack the importance.
    if not file.is_file() or "class_importance" not in table(run, SURFACE_FILE).columns:
        if not st.button("Measure the map (about a minute)", icon=":material/map:"):
            return
        from balancer.policy_learning.playground import response_surface

        bar = st.progress(0.0, "Training small students with all combinations")

        def show_progress(done: int, total: int) -> None:
            bar.progress(done / total, f"Epoch {done} of {total} of all small students")

        made = response_surface(
            problem(run),
            seed=int(read(run, "run.json")["seed"]),
            progress=show_progress,
        )
        with atomic_path(file) as temporary:
            made.write_parquet(temporary)
        st.rerun()
    metric = st.segmented_control("Colour", ["average_precision", "f1"], default="average_precision", required=True, key="surface-metric", persist_state="session",
                                  format_func={"average_precision": "average precision", "f1": "F1"}.__getitem__)  # fmt: skip
    shares = [name for name in epochs.columns if name.startswith("share_")][1:]
    path = epochs.select("epoch", pl.sum_horizontal(shares).alias("share"), "hardness")
    made = table(run, SURFACE_FILE)
    _say(map_verdict(made, path, metric, frauds))
    marks = map_marks(made, metric) | _constant(run)
    show_chart(
        surface_chart(made, path, metric=metric, marks=marks),
        f"{run.name}-surface",
        about="expected metric by share and hardness, the path of the run, the best constant and no sampling",
    )
    best = made.sort(metric, descending=True, maintain_order=True).row(0, named=True)
    st.caption(
        f"Best constant weights on these students: share {100 * best['share']:.2g} %, hardness {best['hardness']:g}, with {best[metric]:.3f} "
        f"(importance of the classes {best['class_importance']:g} everywhere)."
    )


def _constant(run: Run) -> dict[str, tuple[float, float]]:
    """Share and hardness of the constant with which the policy was compared, by its name."""
    if not (run.path / "policy" / "policy.json").is_file():
        return {}
    found = (read(run, "policy/policy.json").get("training", {}).get("evaluation") or {}).get("constant", {})
    if "minority_share" not in found or "hardness" not in found:
        return {}
    return {AUTO: (float(found["minority_share"]), float(found["hardness"]))}


@st.fragment
def _game(run: Run, frauds: int | None) -> None:
    """Let the user choose the weights of each epoch; rivals train identical students with other weights."""
    st.markdown(
        f"Choose the weights of the next epoch and train. Identical students train with **{POLICY}**, **{NONE}** and **{EVEN}**: the same "
        "networks, initial weights, random numbers and loss. The loss corrects for the shares that are drawn, so the scores stay comparable; "
        "how much less a row counts that is drawn often is yours to choose."
    )
    state = st.session_state
    if state.get("game-run") != run.name:
        state.pop("game", None)
        state["game-going"] = False
    game: Playground | None = state.get("game")
    first, second, third, fourth = st.columns(4)
    share = first.slider("Share of draws that are fraud, %", 0.1, 90.0, 10.0, 0.1, key="game-share", persist_state="session")
    hardness = second.slider(
        "Hardness exponent",
        0.0,
        3.0,
        0.0,
        0.1,
        key="game-hardness",
        persist_state="session",
        help="How strongly rows with a large error are preferred",
    )
    importance = third.slider(
        "Importance of classes",
        0.0,
        1.0,
        0.5,
        0.1,
        key="game-importance",
        persist_state="session",
        help="How much less a row counts if its class is drawn more often. 0: every drawn row counts alike; 1: the sampling is undone",
    )
    age = fourth.select_slider(
        "Half-life of a row's age",
        list(HALF_LIVES),
        NO_HALF_LIFE,
        key="game-half-life",
        persist_state="session",
        help="Age at which a row is drawn half as often, as a part of the training period",
    )
    with st.container(horizontal=True):
        over = game is not None and game.over
        going = bool(state.get("game-going")) and not over
        one = st.button("Train one epoch", icon=":material/skip_next:", disabled=going or over)
        if st.button("Train to the end", icon=":material/fast_forward:", disabled=going or over):
            state["game-going"] = going = True
        if st.button("Stop", icon=":material/stop:", disabled=not going):
            state["game-going"] = going = False
        if st.button("Start again", icon=":material/restart_alt:", disabled=game is None):
            state.pop("game", None)
            state["game-going"], game = False, None
    if (one or going) and game is None:
        try:
            game = state["game"] = _new_game(run)
        except InputError as error:
            state["game-going"] = False
            st.error(plain(error))
            return
        state["game-run"] = run.name
    if game is None:
        return
    from balancer.sampling.weights import SamplingWeights, proportional_share

    place = st.empty()
    # A click on Stop or a moved slider ends this script run between two epochs and starts the next one.
    trained = False
    while (one or going) and not game.over:
        shares = proportional_share(game.prior, share / 100)
        game.play(SamplingWeights(shares, hardness, class_importance=importance, half_life=HALF_LIVES[age]))
        with place.container():
            _standing(game, frauds)
        one, trained = False, True
    if trained:  # the buttons above show the state before
        state["game-going"] = False
        st.rerun()
    with place.container():
        chart = _standing(game, frauds)
    if chart is None:
        return
    rows = pl.DataFrame(game.rows)
    download_svg(chart, "game")
    with st.expander("Weights and metrics of all players"):
        show_table(rows, "game-rows")
    if game.over:
        last = dict(rows.filter(pl.col("epoch") == game.epoch).select("player", "average_precision").rows())
        _say(game_verdict(last, game.players[0], frauds))


def _standing(game: Playground, frauds: int | None) -> alt.LayerChart | None:
    """Show the results after the last epoch and return their chart; None before the first epoch."""
    st.progress(game.epoch / game.epochs, f"Epoch {game.epoch} of {game.epochs}")
    if not game.rows:
        return None
    rows = pl.DataFrame(game.rows)
    last = {row["player"]: row["average_precision"] for row in rows.filter(pl.col("epoch") == game.epoch).to_dicts()}
    yours = last[game.players[0]]
    noise = noise_of(yours, frauds)
    for column, name in zip(st.columns(len(game.players)), game.players, strict=True):
        if name == game.players[0]:
            column.metric(f"{name}: AP", f"{last[name]:.3f}", border=True, help="average precision on validation rows")
            continue
        # The sign comes first: Streamlit takes colour and arrow from it.
        unclear = compared(yours, last[name], noise) == "unclear"
        delta = f"{yours - last[name]:+.3f} for you" + (", no clear difference" if unclear else "")
        column.metric(f"{name}: AP", f"{last[name]:.3f}", delta, delta_color="off" if unclear else "normal", border=True)
    chart = epochs_chart(rows.rename({"player": "model"}), metric="average_precision", title="validation AP of the students")
    st.altair_chart(chart, width="stretch", alt="average precision by epoch of each player")
    return chart


def _new_game(run: Run) -> Playground:
    from balancer.policy_learning.playground import Playground
    from balancer.sampling.policies import ConstantPolicy, load_policy

    learned, content = run.path / "policy", read(run, "run.json")
    classes = len(read(run, "schema.json")["classes"])
    policy = load_policy(learned if learned.is_dir() else content["config"]["policy"], num_classes=classes)
    rivals = {POLICY: policy, NONE: ConstantPolicy(None, 0.0), EVEN: ConstantPolicy(0.5, 0.0)}
    return Playground(problem(run), rivals, seed=int(content["seed"]))


if __name__ == "__main__":
    show()
