"""Weights: what the policy did epoch by epoch, what constant weights would reach, and a game against it."""

from __future__ import annotations

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
POLICY, NONE, EVEN = "the run's policy", "no sampling", "1:1 over-sampling"


def show() -> None:
    """The page."""
    run = chosen_run()
    st.title("Sampling weights")
    st.markdown(
        f"How **{run.name}** drew its training rows (policy `{run.policy}`), and what its validation rows said after each epoch. "
        "*Share* is how many of the draws are fraud, *hardness* how much rows that the model gets wrong are preferred, *floor* the part drawn "
        "regardless of that. Move over an epoch to see it in every panel."
    )
    own = table(run, epochs_file(run.path).name).filter(pl.col("model") == "run").drop("model")
    show_chart(weights_chart(own), f"{run.name}-weights", about="shares, hardness, floor and validation figures by epoch")
    with st.expander("The figures"):
        show_table(own, f"{run.name}-history")
    _rivals(run)
    st.header("What weights would reach")
    _surface(run, own)
    st.header("Play against the policy")
    _game(run)


def _rivals(run: Run) -> None:
    """How the learned policy stood against its rivals on the students of seeds it never saw, as its training measured."""
    if not (run.path / "policy" / "policy.json").is_file():
        return
    found = read(run, "policy/policy.json").get("training", {}).get("evaluation")
    if not found:
        return
    st.subheader("The policy on small students of seeds it never saw")
    names = {
        "ppo": POLICY,
        "constant": "a good constant",
        "one_to_one": EVEN,
        "none": NONE,
        "start": "its starting weights",
        "random": "random weights",
    }
    rows = [{"policy": names.get(name, name)} | own for name, own in found.items()]
    frame = pl.DataFrame(rows).rename(
        {"average_precision": "average precision", "f1": "F1", "minority_share": "last share", "hardness": "last hardness"}
    )
    columns = {name: st.column_config.NumberColumn(format="%.3f") for name in ("average precision", "F1", "partial_auc", "last hardness")}
    show_table(frame, f"{run.name}-rivals", columns=columns | {"last share": st.column_config.NumberColumn(format="percent")})


def _surface(run: Run, own: pl.DataFrame) -> None:
    """The map of constants with the run's way on it; measured once, then kept in the run folder."""
    st.markdown(
        "Small students are trained side by side on the run's own rows under every combination of share and hardness; the colour is what they "
        "reach on its validation rows, the line the way that the run took, from its first epoch to its last. Students see a row's own fields, not "
        "its history: read directions off it, not sizes."
    )
    file = run.path / SURFACE_FILE
    if not file.is_file():
        if not st.button("Measure the map (about a minute)", icon=":material/map:"):
            return
        from balancer.policy_learning.playground import response_surface

        bar = st.progress(0.0, "training small students under all combinations")

        def tell(done: int, total: int) -> None:
            bar.progress(done / total, f"epoch {done} of {total} of all small students")

        made = response_surface(
            problem(run),
            seed=int(read(run, "run.json")["seed"]),
            progress=tell,
        )
        with atomic_path(file) as temporary:
            made.write_parquet(temporary)
        st.rerun()
    figure = st.segmented_control("Colour", ["average_precision", "f1"], default="average_precision", required=True, key="surface-figure",
                                  format_func={"average_precision": "average precision", "f1": "F1"}.__getitem__)  # fmt: skip
    shares = [name for name in own.columns if name.startswith("share_")][1:]
    way = own.select("epoch", pl.sum_horizontal(shares).alias("share"), "hardness")
    made = table(run, SURFACE_FILE)
    show_chart(
        surface_chart(made, way, figure=figure), f"{run.name}-surface", about="expected figure by share and hardness, and the run's way"
    )
    best = made.sort(figure, descending=True).row(0, named=True)
    st.caption(
        f"Best constant on these students: share {100 * best['share']:.2g} %, hardness {best['hardness']:g}, with {best[figure]:.3f}."
    )


@st.fragment
def _game(run: Run) -> None:
    """Weights by hand, an epoch at a time; the other players are siblings of the person's students."""
    st.markdown(
        f"Set the weights for the next epoch and train. Beside your students, their siblings train under **{POLICY}**, **{NONE}** and **{EVEN}**: "
        "same nets, same starting weights, same random numbers."
    )
    state = st.session_state
    if state.get("game-run") != run.name:
        state.pop("game", None)
        state["game-going"] = False
    game: Playground | None = state.get("game")
    left, middle, right = st.columns(3)
    share = left.slider("Share of draws that are fraud, %", 0.1, 90.0, 10.0, 0.1, key="game-share")
    hardness = middle.slider("Hardness exponent", 0.0, 3.0, 0.0, 0.1, key="game-hardness")
    floor = right.slider("Floor", 0.0, 1.0, 0.05, 0.05, key="game-floor")
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
    from balancer.policy_learning.playground import minority_share
    from balancer.sampling.weights import SamplingWeights

    place = st.empty()
    # A click on Stop, or a moved slider, ends this pass between two epochs and begins another, which goes on or doesn't.
    trained = False
    while (one or going) and not game.over:
        game.play(SamplingWeights(minority_share(game.prior, share / 100), hardness, floor))
        with place.container():
            _standing(game)
        one, trained = False, True
    if trained:  # the buttons above were drawn before
        state["game-going"] = False
        st.rerun()
    with place.container():
        chart = _standing(game)
    if chart is None:
        return
    rows = pl.DataFrame(game.rows)
    download_svg(chart, "game")
    with st.expander("Every player's weights and figures"):
        show_table(rows, "game-rows")
    if game.over:
        last = rows.filter(pl.col("epoch") == game.epoch)
        own = last.filter(pl.col("player") == game.players[0])["average_precision"].item()
        ahead = last.filter((pl.col("player") != game.players[0]) & (pl.col("average_precision") < own))["player"].to_list()
        st.success(
            f"The game is over: you end above {', '.join(ahead)}." if ahead else "The game is over: every rival ends above you or level."
        )


def _standing(game: Playground) -> alt.Chart | None:
    """Who stands where after the last epoch, and the chart; None before the first."""
    st.progress(game.epoch / game.epochs, f"epoch {game.epoch} of {game.epochs}")
    if not game.rows:
        return None
    rows = pl.DataFrame(game.rows)
    last = {row["player"]: row["average_precision"] for row in rows.filter(pl.col("epoch") == game.epoch).to_dicts()}
    own = last[game.players[0]]
    for column, name in zip(st.columns(len(game.players)), game.players, strict=True):
        column.metric(f"{name}: AP", f"{last[name]:.3f}", None if name == game.players[0] else f"you {own - last[name]:+.3f}", border=True)
    chart = epochs_chart(rows.rename({"player": "model"}), figure="average_precision", title="students' validation AP")
    st.altair_chart(chart, width="stretch", alt="average precision by epoch of each player")
    return chart


def _new_game(run: Run) -> Playground:
    from balancer.policy_learning.playground import Playground
    from balancer.sampling.policies import ConstantPolicy, load_policy

    own, content = run.path / "policy", read(run, "run.json")
    classes = len(read(run, "schema.json")["classes"])
    policy = load_policy(own if own.is_dir() else content["config"]["policy"], num_classes=classes)
    rivals = {POLICY: policy, NONE: ConstantPolicy(None, 0.0), EVEN: ConstantPolicy(0.5, 0.0)}
    return Playground(problem(run), rivals, seed=int(content["seed"]))


if __name__ == "__main__":
    show()
