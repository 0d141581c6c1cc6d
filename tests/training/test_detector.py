"""Small runs of every kind of detector from the command line: train, score, stream, evaluate, resume,
refuse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from balancer.cli import main
from balancer.data.score_memory import STAGE1_LOGIT, memory_names
from balancer.data.simulation.stream import simulate
from balancer.errors import UnsupportedError
from balancer.inference.decision import Decision
from balancer.models import load_classifier, part_of
from balancer.runs.trained_run import TrainedRun, training_table
from tests.conftest import HYBRID
from tests.inference.test_tree_stages import DAMAGES
from tests.training.test_pipeline import report_of, without_times

SIZES = ("--d-model", "16", "--layers", "1", "--history-length", "6")
SHORT = ("--budget", "quick", "--epochs", "2", "--steps-per-epoch", "10", "--policy", "auto", "--threads", "1")
PLAIN = {"none", "one_to_one", "class_weight", "lightgbm"}
TREES = {"stage1", "stage2"}


@dataclass(frozen=True)
class Case:
    """A run and what is expected of it."""

    flags: tuple[str, ...] = HYBRID
    table: str = "table"
    start: str | None = None
    """The case whose run it starts from."""
    members: frozenset[str] | None = frozenset({"network", "stage2"})
    baselines: frozenset[str] = frozenset(PLAIN | TREES | {"network"})


CASES = {
    "hybrid": Case(),
    "network": Case(("--learner", "network"), members=None, baselines=frozenset(PLAIN)),
    "trees": Case(("--learner", "trees"), members=frozenset({"stage2"}), baselines=frozenset({"lightgbm"} | TREES)),
    "six kinds": Case(table="kinds"),
    "six kinds, trees": Case(("--learner", "trees"), "kinds", members=frozenset({"stage2"}), baselines=frozenset({"lightgbm"} | TREES)),
    "without entity": Case((*HYBRID, "--entity", "none")),
    "without context": Case((*HYBRID, "--context", "none")),
    "thirty frauds": Case((), "thirty", members=None, baselines=frozenset(PLAIN)),
    "without margin": Case((*HYBRID, "--margin", "none")),
    "tasks on whole histories": Case((*HYBRID, "--form", "histories", "--attention", "sparse", "--tasks", "masked_fields,next_fields")),
    "head of a hybrid": Case(("--train-only", "head"), "later", "hybrid"),
    "from a network": Case((), "later", "network", members=None, baselines=frozenset(PLAIN)),
}


@pytest.fixture(scope="module", autouse=True)
def few_trees() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("balancer.training.tree_fitting.FIXED_ROUNDS", 15)
        patch.setattr("balancer.evaluation.baselines.MAX_ROUNDS", 15)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tables."""
    made = tmp_path_factory.mktemp("detector")
    table = simulate(4_000, seed=3, fraud_rate=0.04)
    table.write_parquet(made / "table.parquet")
    simulate(4_000, seed=4, fraud_rate=0.04).write_parquet(made / "later.parquet")
    fraud = pl.col("is_fraud") == 1
    few = table.with_columns(pl.when(fraud & (fraud.cum_sum() % 5 != 0)).then(0).otherwise("is_fraud").cast(pl.Int8).alias("is_fraud"))
    few.write_parquet(made / "thirty.parquet")
    assert few["is_fraud"].sum() == 32
    kinds = simulate(4_000, seed=5, fraud_rate=0.08, labels="types")
    split = pl.col("fraud_type").is_in(["stolen_card", "account_takeover"]) & (pl.col("transaction_id") % 2 == 0)
    kinds = kinds.with_columns(pl.when(split).then(pl.col("fraud_type") + "_2").otherwise("fraud_type").alias("fraud_type"))
    assert kinds["fraud_type"].n_unique() == 7
    kinds.write_parquet(made / "kinds.parquet")
    return made


@pytest.fixture(scope="module")
def run_of(folder: Path) -> Callable[[str], Path]:
    """A function from the name of a case to its run, which is trained when it is first asked for."""

    def trained(name: str) -> Path:
        out, case = folder / name.replace(" ", "_").replace(",", ""), CASES[name]
        if not out.exists():
            assert main(command(folder, case, trained, out)) == 0
        return out

    return trained


def command(folder: Path, case: Case, run_of: Callable[[str], Path], out: Path) -> list[str]:
    start = SIZES if case.start is None else ("--from", str(run_of(case.start)))
    roles = ("--label", "fraud_type", "--negative", "legitimate") if case.table == "kinds" else ()
    return ["train", "--dataset", str(folder / f"{case.table}.parquet"), "--out", str(out), *start, *roles, *case.flags, *SHORT]


def scored(run: Path, table: pl.DataFrame, tmp_path: Path, *flags: str) -> pl.DataFrame:
    """The table with the columns that `balancer score` adds."""
    table.write_parquet(tmp_path / "given.parquet")
    output = tmp_path / "scored.parquet"
    table_and_output = ("--input", str(tmp_path / "given.parquet"), "--output", str(output), "--overwrite")
    assert main(["score", str(run), *table_and_output, *flags]) == 0
    return pl.read_parquet(output)


@pytest.mark.parametrize("name", CASES)
def test_a_run_is_evaluated_scored_and_streamed(
    name: str, folder: Path, run_of: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case, run = CASES[name], run_of(name)
    report, table = report_of(run), pl.read_parquet(folder / f"{case.table}.parquet")
    members = Decision.load(run).members
    assert (None if members is None else frozenset(members)) == case.members
    assert frozenset(report["baselines"]) - {"full"} == case.baselines and report["run"].get("members") == members
    assert ("full" in report["baselines"]) == (members is None or "network" in members), "the detector before rounding"
    assert (run / "trees").is_dir() == (members is not None) and not (run / "work").exists()
    assert (run / "model.json").exists() == (members is None or "network" in members)
    cpu = report["timing"]["cpu_seconds"]
    assert cpu.keys() == report["timing"]["seconds"].keys() and (members is None or {"stage1", "stage2", "lightgbm"} <= cpu.keys())

    capsys.readouterr()
    assert main(["evaluate", str(run), "--dataset", str(folder / f"{case.table}.parquet"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["test"] == report["test"]

    label = "fraud_type" if case.table == "kinds" else "is_fraud"
    predicted = pl.read_parquet(run / "predictions.parquet")
    table.head(3_600).write_parquet(tmp_path / "past.parquet")
    again = scored(run, table.tail(400), tmp_path, "--past", str(tmp_path / "past.parquet"))
    joined = again.join(predicted.select(pl.col("id").alias("transaction_id"), "score", "class"), on="transaction_id", suffix="_report")
    assert joined.height == 400
    np.testing.assert_allclose(joined["score"], joined["score_report"], atol=1e-6)
    assert (joined["class"] == joined["class_report"]).all()

    early = table.head(300).drop(label)
    # With rounded layers the last bit of an input may decide a rounding.
    for precision, close in (("full", 1e-5), ("auto", 5e-3)):
        whole, streamed = (
            scored(run, early, tmp_path, "--precision", precision, *flags)["score"].to_numpy() for flags in ((), ("--streaming",))
        )
        np.testing.assert_allclose(streamed, whole, atol=0 if name.endswith("trees") else close)
    assert len(np.unique(np.round(whole, 6))) > 5


def test_streaming_prints_nothing_beside_its_result(
    run_of: Callable[[str], Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    scored(run_of("trees"), pl.read_parquet(folder / "table.parquet").head(50), tmp_path, "--streaming")
    printed = capsys.readouterr()
    assert printed.out.startswith("50 rows scored") and all(line.strip() for line in printed.err.splitlines())


def test_streamed_scores_are_those_of_the_report(folder: Path, run_of: Callable[[str], Path], tmp_path: Path) -> None:
    """The whole table, row by row, with score memory from the first row on."""
    again = scored(run_of("hybrid"), pl.read_parquet(folder / "table.parquet"), tmp_path, "--streaming")
    predicted = pl.read_parquet(run_of("hybrid") / "predictions.parquet")
    joined = again.join(predicted.select(pl.col("id").alias("transaction_id"), "score"), on="transaction_id", suffix="_report")
    assert joined.height == predicted.height
    np.testing.assert_allclose(joined["score"], joined["score_report"], atol=1e-5)


def test_the_baselines_of_a_detector_with_trees_are_those_of_a_network(run_of: Callable[[str], Path]) -> None:
    """They see neither scores nor margin, and LightGBM has the same fields in every run."""
    hybrid, network, trees = (report_of(run_of(name))["baselines"] for name in ("hybrid", "network", "trees"))
    for name in PLAIN:
        assert hybrid[name] == network[name], name
    assert hybrid["lightgbm"] == trees["lightgbm"] and hybrid["stage2"] == trees["stage2"]
    assert trees["stage2"]["average_precision"] == report_of(run_of("trees"))["test"]["average_precision"]


def test_the_network_reads_the_scores_and_starts_from_the_margin(run_of: Callable[[str], Path]) -> None:
    with_margin, without = (load_classifier(run_of(name)).config for name in ("hybrid", "without margin"))
    assert with_margin.margin == STAGE1_LOGIT and without.margin == ""
    assert with_margin.numeric_fields == without.numeric_fields and with_margin.numeric_fields[:12] == memory_names(True)
    one, two = (report_of(run_of(name))["baselines"] for name in ("hybrid", "without margin"))
    assert one["stage2"] == two["stage2"] and one["network"] != two["network"]
    assert load_classifier(run_of("without entity")).config.numeric_fields[:2] == (STAGE1_LOGIT, "amount_log")
    assert load_classifier(run_of("network")).config.margin == ""


def test_training_rows_have_scores_by_trees_that_did_not_see_their_entity(run_of: Callable[[str], Path]) -> None:
    run = TrainedRun.load(run_of("hybrid"))
    data, stages = training_table(run.folder), run.detector.stages
    assert stages is not None and data.schema.score_fields == memory_names(True)
    found = data.store.values.copy()
    base = data.without_score_fields().store
    own = stages.folds[0].raw(base.values)
    from balancer.inference.tree_stages import row_folds

    early = base.time <= stages.train_end
    chosen = early & (row_folds(data) == 0)
    assert chosen.sum() > 300
    np.testing.assert_array_equal(found[chosen, 0], own[chosen].astype(np.float32))
    mean = sum(trees.raw(base.values) for trees in stages.folds) / 3
    np.testing.assert_array_equal(found[~early, 0], mean[~early].astype(np.float32))


def test_only_the_head_of_a_hybrid_is_trained(run_of: Callable[[str], Path]) -> None:
    before, after = (load_classifier(run_of(name)) for name in ("hybrid", "head of a hybrid"))
    assert before.config.margin == after.config.margin == STAGE1_LOGIT and before.config.edges == after.config.edges
    old, new = before.state_dict(), after.state_dict()
    assert {part_of(name) for name in new if not torch.equal(old[name], new[name])} == {"head"}
    # Its trees are those of its own table.
    one, two = (run_of(name) / "trees" / "first-0.txt" for name in ("hybrid", "head of a hybrid"))
    assert one.read_text() != two.read_text()


def test_too_few_frauds_for_trees_are_noted_or_refused(
    folder: Path, run_of: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (note,) = [note for note in report_of(run_of("thirty frauds"))["run"]["data"]["notes"] if "without boosted trees" in note]
    assert note.startswith("a fold of the training rows has fewer than 50 frauds")
    for learner in ("hybrid", "trees"):
        out = tmp_path / learner
        assert main(["train", "--dataset", str(folder / "thirty.parquet"), "--out", str(out), "--learner", learner, *SHORT]) == 2
        error = capsys.readouterr().err
        assert "too few for boosted trees: use --learner network" in error and error.count("\n") == 1
        assert not out.exists()


@pytest.mark.parametrize(
    ("start", "flags", "named"),
    [
        ("trees", (), "boosted trees and no network to start from"),
        ("hybrid", ("--margin", "none"), "--margin none differs from the model"),
        ("network", ("--learner", "hybrid", "--train-only", "head"), "has other fields"),
        (None, ("--learner", "trees", "--tasks", "masked_fields"), "--learner trees trains no network, so --tasks has no effect"),
        (None, ("--learner", "network", "--margin", "none"), "--margin none has no effect on --learner network"),
        (None, ("--learner", "trees", "--quantize"), "so --quantize has no effect"),
        ("hybrid", ("--learner", "trees"), "so --from has no effect"),
        (None, ("--learner", "forest"), "--learner"),
    ],
)
def test_what_does_not_go_together_is_refused(
    start: str | None,
    flags: tuple[str, ...],
    named: str,
    folder: Path,
    run_of: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    origin = () if start is None else ("--from", str(run_of(start)))
    capsys.readouterr()
    out = tmp_path / "run"
    assert main(["train", "--dataset", str(folder / "later.parquet"), "--out", str(out), *origin, *flags, *SHORT]) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1
    assert not out.exists()


def same_files(one: Path, two: Path) -> None:
    """Compare two runs: the same files with the same content, apart from times."""
    names = sorted(str(path.relative_to(one)) for path in one.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(two)) for path in two.rglob("*") if path.is_file())
    for name in names:
        if name.endswith(".parquet"):
            assert pl.read_parquet(one / name).equals(pl.read_parquet(two / name)), name
        elif name not in ("run.json", "report.json", "report.md"):
            assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert without_times(report_of(one)) == without_times(report_of(two))


@pytest.mark.parametrize("name", ["hybrid", "six kinds, trees"])
def test_two_runs_give_the_same_bits(name: str, folder: Path, run_of: Callable[[str], Path], tmp_path: Path) -> None:
    assert main(command(folder, CASES[name], run_of, tmp_path / "again")) == 0
    same_files(run_of(name), tmp_path / "again")


def test_a_run_stopped_in_each_stage_and_resumed_gives_the_same_bits(
    folder: Path, run_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from balancer.training import fitting, tree_stage

    whole, out = run_of("hybrid"), tmp_path / "cut"
    first, second, write = tree_stage.fit_fold, tree_stage.fit_second, fitting.write_arrays
    fitted: list[str] = []

    def stopping(done: int, _: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    def fold(dataset: Any, number: int, **given: Any) -> str:
        fitted.append(f"first {number}")
        return first(dataset, number, **given | ({"progress": stopping} if fitted.count("first 1") == 1 and number == 1 else {}))

    def last(dataset: Any, member: int, **given: Any) -> str:
        fitted.append(f"second {member}")
        return second(dataset, member, **given | ({"progress": stopping} if fitted.count("second 1") == 1 and member == 1 else {}))

    def checkpoint(*given: Any) -> None:
        write(*given)
        fitted.append("epoch")
        if fitted.count("epoch") == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(tree_stage, "fit_fold", fold)
    monkeypatch.setattr(tree_stage, "fit_second", last)
    monkeypatch.setattr(fitting, "write_arrays", checkpoint)
    assert main(command(folder, CASES["hybrid"], run_of, out)) == 130
    assert sorted(path.name for path in (out / "work").glob("*.txt")) == ["first-0.txt"] and not (out / "trees").exists()
    assert main(["train", "--resume", "--out", str(out)]) == 130
    assert not (out / "trees").exists() and (out / "work" / "second-0.txt").exists()
    assert main(["train", "--resume", "--out", str(out)]) == 130
    assert (out / "work" / "run.checkpoint.safetensors").exists()
    assert main(["train", "--resume", "--out", str(out)]) == 0
    trees = ["first 0", "first 1", "first 1", "first 2", "second 0", "second 1", "second 1"]
    assert fitted[:7] == trees and set(fitted[7:]) == {"epoch"}
    same_files(whole, out)


def refused(run: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """`score` and `evaluate` of a damaged run: exit 2, the same single line, no output."""
    output, errors = tmp_path / "scored.parquet", set()
    capsys.readouterr()
    for arguments in (["score", str(run), "--input", str(table), "--output", str(output)], ["evaluate", str(run), "--dataset", str(table)]):
        assert main(arguments) == 2
        errors.add(capsys.readouterr().err)
    (error,) = errors
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not output.exists()
    return error


@pytest.mark.parametrize("case", [*DAMAGES, "a missing file"])
def test_damaged_trees_are_refused_by_the_name_of_the_file(
    case: str, folder: Path, run_of: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_of("hybrid"), run)
    if case == "a missing file":
        (run / "trees" / "first-1.txt").unlink()
        named = "first-1.txt"
    else:
        damage, named = DAMAGES[case]
        damage(run / "trees")
    assert named in refused(run, folder / "table.parquet", tmp_path, capsys)


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        ({"members": {"network": 0.5, "stage2": 0.4}}, "decision.json has members without valid weights"),
        ({"members": {"network": 0.5, "lightgbm": 0.5}}, "decision.json has members without valid weights"),
        ({"members": None}, "one names boosted trees and the other does not"),
    ],
)
def test_members_that_do_not_fit_are_refused(
    edit: dict[str, Any], named: str, folder: Path, run_of: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_of("hybrid"), run)
    content = json.loads((run / "decision.json").read_text()) | edit
    (run / "decision.json").write_text(json.dumps(content))
    assert named in refused(run, folder / "table.parquet", tmp_path, capsys)


def test_trees_and_schema_of_two_runs_are_refused(
    folder: Path, run_of: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for other in ("without context", "network"):
        run = tmp_path / other.replace(" ", "_")
        shutil.copytree(run_of("hybrid"), run)
        shutil.copy(run_of(other) / "schema.json", run / "schema.json")
        assert "schema.json" in refused(run, folder / "table.parquet", tmp_path, capsys)


def test_a_run_of_trees_alone_says_that_it_has_no_network(
    folder: Path, run_of: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of("trees")
    with pytest.raises(UnsupportedError, match="boosted trees and no network"):
        TrainedRun.load(run).model  # noqa: B018
    given = ["--input", str(folder / "table.parquet"), "--output", str(tmp_path / "x.parquet")]
    for arguments in (["score", str(run), *given, "--precision", "quantized"], ["quantize", str(run)]):
        capsys.readouterr()
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert "boosted trees and no network" in error and error.count("\n") == 1


def copied(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copied"))


def with_stages(run: Path, **changes: Any) -> None:
    file = run / "trees" / "stages.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


FOREIGN: dict[str, tuple[Callable[[Path, Callable[[str], Path]], object], str]] = {
    "the trees of another run": (
        lambda run, run_of: shutil.copytree(run_of("head of a hybrid") / "trees", run / "trees", dirs_exist_ok=True),
        "stages.json is not the file that the run was finished with",
    ),
    "the network of another run": (
        lambda run, run_of: [shutil.copy(run_of("without margin") / name, run / name) for name in ("model.json", "model.safetensors")],
        "model.json is not the file that the run was finished with",
    ),
    "two folds": (lambda run, _: with_stages(run, first=["first-0.txt", "first-1.txt"]), "does not name first-0.txt to first-2.txt"),
    "one file three times": (lambda run, _: with_stages(run, first=["first-0.txt"] * 3), "does not name first-0.txt to first-2.txt"),
    "another order": (lambda run, _: with_stages(run, first=["first-2.txt", "first-1.txt", "first-0.txt"]), "in this order"),
    "another end of training": (
        lambda run, _: with_stages(run, train_end=0.0),
        "stages.json is not the file that the run was finished with",
    ),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_files_of_another_run_are_refused(
    case: str, folder: Path, run_of: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, named = FOREIGN[case]
    run = copied(run_of("hybrid"), tmp_path)
    change(run, run_of)
    assert named in refused(run, folder / "table.parquet", tmp_path, capsys)
    # A run that starts from it refuses it with the same words.
    capsys.readouterr()
    assert main(["train", "--dataset", str(folder / "later.parquet"), "--from", str(run), "--out", str(tmp_path / "new"), *SHORT]) == 2
    assert named in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_a_run_without_digests_is_accepted(run_of: Callable[[str], Path], tmp_path: Path) -> None:
    run = copied(run_of("hybrid"), tmp_path)
    content = json.loads((run / "run.json").read_text())
    assert set(content["parts"]) == {"schema.json", "model.json", "trees/stages.json", "precision.json"} and set(content["members"]) == {
        "network",
        "stage2",
    }
    (run / "run.json").write_text(json.dumps({key: value for key, value in content.items() if key not in ("parts", "members")}))
    assert TrainedRun.load(run).detector.stages is not None


@pytest.mark.parametrize(
    ("name", "edit", "named"),
    [
        ("hybrid", {"threshold": 1.5}, "decision.json has the threshold 1.5, which is not between 0 and 1"),
        ("network", {"threshold": -0.1}, "decision.json has the threshold -0.1"),
        ("hybrid", {"threshold": float("nan")}, "decision.json has the threshold nan"),
        ("hybrid", {"members": {"network": 1.0}}, "decision.json does not name stage2, which the run has"),
        ("hybrid", {"members": {"stage2": 1.0}}, "decision.json does not name network, which the run has"),
        ("hybrid", {"members": {"network": 0.9, "stage2": 0.1}}, "weights the members otherwise than the run was finished with"),
        ("trees", {"members": {"network": 0.5, "stage2": 0.5}}, "names a network, and"),
        ("trees", {"members": {}}, "it names none"),
        ("hybrid", {"members": {"network": 0.5, "stage2": 0.4}}, "their sum is 0.9, not 1"),
        ("hybrid", {"members": {"network": 0.5, "stage1": 0.5}}, "'stage1' is none of network, stage2"),
        ("hybrid", {"members": {"network": 1.5, "stage2": -0.5}}, "a weight is not a number from 0 to 1"),
    ],
)
def test_a_decision_that_can_not_be_is_refused(
    name: str,
    edit: dict[str, Any],
    named: str,
    folder: Path,
    run_of: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = copied(run_of(name), tmp_path)
    content = json.loads((run / "decision.json").read_text()) | edit
    (run / "decision.json").write_text(json.dumps(content))
    assert named in refused(run, folder / "table.parquet", tmp_path, capsys)


def test_flags_without_effect_and_fields_left_out_are_noted(run_of: Callable[[str], Path]) -> None:
    def notes(name: str) -> list[str]:
        return list(report_of(run_of(name))["run"]["data"]["notes"])

    (of_trees,) = [note for note in notes("trees") if "no effect" in note]
    assert of_trees.endswith("have no effect: the detector has no network")
    for flag in ("--d-model", "--layers", "--history-length", "--epochs", "--steps-per-epoch", "--budget", "--policy"):
        assert flag in of_trees
    assert "--threads" not in of_trees and not [note for note in notes("hybrid") if "no effect" in note or "there is no" in note]
    entity = notes("without entity")
    assert [note for note in entity if note.startswith("there is no entity column") and "no memory of earlier scores" in note]
    assert [note for note in entity if note.startswith("--history-length has no effect: without an entity column")]
    assert [note for note in notes("without context") if note.startswith("there is no context column")]


def test_a_start_from_a_run_with_trees_says_that_there_are_few_frauds(run_of: Callable[[str], Path], folder: Path, tmp_path: Path) -> None:
    out, flags = tmp_path / "few", ("--train-only", "head", *SHORT)
    table = pl.read_parquet(folder / "table.parquet")
    fraud = pl.col("is_fraud") == 1
    few = table.with_columns(pl.when(fraud & (fraud.cum_sum() % 2 != 0)).then(0).otherwise("is_fraud").cast(pl.Int8).alias("is_fraud"))
    few.write_parquet(tmp_path / "few.parquet")
    assert main(["train", "--dataset", str(tmp_path / "few.parquet"), "--from", str(run_of("hybrid")), "--out", str(out), *flags]) == 0
    (note,) = [note for note in report_of(out)["run"]["data"]["notes"] if "fewer than 50 frauds" in note]
    assert "each of the 3 folds needs 50" in note and "boosted trees are fitted all the same" in note
    assert (out / "trees").is_dir()


@pytest.mark.parametrize("damage", ["replaced", "cut", "empty"])
def test_a_resumed_run_does_a_damaged_step_again(
    damage: str,
    folder: Path,
    run_of: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from balancer.training import tree_stage

    second, out = tree_stage.fit_second, tmp_path / "cut"

    def stopped(*_: Any, **__: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(tree_stage, "fit_second", stopped)
    assert main(command(folder, CASES["trees"], run_of, out)) == 130
    file = out / "work" / "first-1.txt"
    text = {"replaced": (out / "work" / "first-0.txt").read_text(), "cut": file.read_text()[:2000], "empty": ""}[damage]
    file.write_text(text)
    monkeypatch.setattr(tree_stage, "fit_second", second)
    capsys.readouterr()
    assert main(["train", "--resume", "--out", str(out)]) == 0
    assert f"note: {file} is not what this run wrote: its step is done again" in capsys.readouterr().out
    same_files(run_of("trees"), out)


def test_times_of_the_network_and_of_the_whole_run(run_of: Callable[[str], Path]) -> None:
    for name, parts in (
        ("hybrid", {"policy", "stage1", "stage2", "network", "precision"}),
        ("trees", {"stage1", "stage2"}),
        ("network", {"policy", "network", "precision"}),
    ):
        cpu = report_of(run_of(name))["timing"]["cpu_seconds"]
        assert cpu["run"] == pytest.approx(sum(cpu[part] for part in parts), abs=0.3)
    assert not (run_of("trees") / "epochs.parquet").exists() and (run_of("hybrid") / "epochs.parquet").exists()


def test_a_report_of_trees_has_no_row_twice(run_of: Callable[[str], Path]) -> None:
    page = (run_of("trees") / "report.md").read_text()
    assert "trees, stage 1" in page and "| trees, stage 2" not in page
    assert "| trees, stage 2" in (run_of("hybrid") / "report.md").read_text()
