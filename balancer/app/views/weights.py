"""The page Weights: weights by epoch, results of constant weights, a game against the policy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import altair as alt
import polars as pl
import streamlit as st

from balancer.app.browsing import Run
from balancer.app.charts import epochs_chart, surface_chart, weights_chart
from balancer.app.loading import chosen_run, download_svg, problem, read, show_chart, show_table, table
from balancer.errors import InputError
from balancer.files import atomic_path
from balancer.runs.run_folder import epochs_file

if TYPE_CHECKING:
    from balancer.policy_learning.playground import Playground

SURFACE_FILE = "surface.parquet"
NO_HALF_LIFE = "none"
HALF_LIVES = {"1/8": 0.125, "1/4": 0.25, "1/2": 0.5, "1": 1.0, NO_HALF_LIFE: math.inf}
"""Half-lives that can be chosen, as fractions of the training period, by title."""
POLICY, NONE, EVEN = "the policy of the run", "no sampling", "1:1 over-sampling"


def show() -> None:
    """Show the page."""
    run = chosen_run()
    st.title("Sampling weights")
    if not run.has_network:
        st.info(
            f"**{run.name}** is boosted trees without a network. They are fitted to the training rows without sampling weights, so there "
            "are none to show. Train a network as well with `balancer train --learner hybrid`."
        )
        return
    st.markdown(
        f"The sampling weights of **{run.name}** (policy `{run.policy}`) and the validation metrics after each epoch. *Share*: share of the "
        "draws that are fraud. *Hardness*: how strongly rows with a large error are preferred. *Floor*: share of the draws that ignore "
        "hardness. *Importance*: how much less a row counts in the loss if it is drawn more often; 0: every drawn row counts alike, "
        "1: the sampling is undone. Move the pointer over an epoch to highlight it in every panel."
    )
    epochs = table(run, epochs_file(run.path).name).filter(pl.col("model") == "run").drop("model")
    show_chart(weights_chart(epochs), f"{run.name}-weights", about="shares, hardness, floor and validation metrics by epoch")
    with st.expander("Weights and metrics as a table"):
        show_table(epochs, f"{run.name}-epochs-table")
    _rivals(run)
    st.header("Expected results of constant weights")
    _surface(run, epochs)
    st.header("Play against the policy")
    _game(run)


def _rivals(run: Run) -> None:
    """Show the evaluation of the learned policy on students with new seeds."""
    if not (run.path / "policy" / "policy.json").is_file():
        return
    found = read(run, "policy/policy.json").get("training", {}).get("evaluation")
    if not found:
        return
    st.subheader("The policy on small students with new seeds")
    kept = read(run, "policy/policy.json").get("kept", "policy")
    if kept == "constant":
        st.markdown("The constant was kept, because PPO is not better by more than the noise of these students.")
    names = {
        "ppo": "PPO",
        "constant": "auto, the constant",
        "one_to_one": EVEN,
        "none": NONE,
        "start": "its initial weights",
        "random": "random weights",
    }
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


def _surface(run: Run, epochs: pl.DataFrame) -> None:
    """Show a map of constant weights and the path of the run; it is measured once and kept."""
    st.markdown(
        "Small students are trained on the rows of the run with every combination of share and hardness, with the sampler's loss. The "
        "colour is their metric on validation rows. The line shows the weights of the run, from the first epoch to the last. Students do "
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
    metric = st.segmented_control("Colour", ["average_precision", "f1"], default="average_precision", required=True, key="surface-metric",
                                  format_func={"average_precision": "average precision", "f1": "F1"}.__getitem__)  # fmt: skip
    shares = [name for name in epochs.columns if name.startswith("share_")][1:]
    path = epochs.select("epoch", pl.sum_horizontal(shares).alias("share"), "hardness")
    made = table(run, SURFACE_FILE)
    show_chart(
        surface_chart(made, path, metric=metric),
        f"{run.name}-surface",
        about="expected metric by share and hardness, and the path of the run",
    )
    best = made.sort(metric, descending=True).row(0, named=True)
    st.caption(
        f"Best constant weights on these students: share {100 * best['share']:.2g} %, hardness {best['hardness']:g}, with {best[metric]:.3f} "
        f"(importance of the classes {best['class_importance']:g} everywhere)."
    )


@st.fragment
def _game(run: Run) -> None:
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
    share = first.slider("Share of draws that are fraud, %", 0.1, 90.0, 10.0, 0.1, key="game-share")
    hardness = second.slider(
        "Hardness exponent", 0.0, 3.0, 0.0, 0.1, key="game-hardness", help="How strongly rows with a large error are preferred"
    )
    importance = third.slider(
        "Importance of classes",
        0.0,
        1.0,
        0.5,
        0.1,
        key="game-importance",
        help="How much less a row counts if its class is drawn more often. 0: every drawn row counts alike; 1: the sampling is undone",
    )
    age = fourth.select_slider(
        "Half-life of a row's age",
        list(HALF_LIVES),
        NO_HALF_LIFE,
        key="game-half-life",
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
            st.error(str(error))
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
            _standing(game)
        one, trained = False, True
    if trained:  # the buttons above show the state before
        state["game-going"] = False
        st.rerun()
    with place.container():
        chart = _standing(game)
    if chart is None:
        return
    rows = pl.DataFrame(game.rows)
    download_svg(chart, "game")
    with st.expander("Weights and metrics of all players"):
        show_table(rows, "game-rows")
    if game.over:
        last = rows.filter(pl.col("epoch") == game.epoch)
        yours = last.filter(pl.col("player") == game.players[0])["average_precision"].item()
        beaten = last.filter((pl.col("player") != game.players[0]) & (pl.col("average_precision") < yours))["player"].to_list()
        st.success(
            f"The game is over: you are better than {', '.join(beaten)}." if beaten else "The game is over: no rival is worse than you."
        )


def _standing(game: Playground) -> alt.Chart | None:
    """Show the results after the last epoch and return their chart; None before the first epoch."""
    st.progress(game.epoch / game.epochs, f"Epoch {game.epoch} of {game.epochs}")
    if not game.rows:
        return None
    rows = pl.DataFrame(game.rows)
    last = {row["player"]: row["average_precision"] for row in rows.filter(pl.col("epoch") == game.epoch).to_dicts()}
    yours = last[game.players[0]]
    for column, name in zip(st.columns(len(game.players)), game.players, strict=True):
        column.metric(
            f"{name}: AP", f"{last[name]:.3f}", None if name == game.players[0] else f"you {yours - last[name]:+.3f}", border=True
        )
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
