"""One real, tiny run: the files in its folder, metrics that agree with each other, and documented uses and
errors."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import average_precision_score, f1_score

from balancer.cli import main
from balancer.policy_learning.budgets import POLICY_BUDGETS
from tests.conftest import FINE_TUNED, HYBRID, TINY

FILES = {
    "run.json",
    "schema.json",
    "decision.json",
    "model.json",
    "model.safetensors",
    "epochs.parquet",
    "predictions.parquet",
    "threshold_scores.parquet",
    "report.json",
    "report.md",
}
KEYS = {
    "average_precision",
    "f1",
    "f1_at_half",
    "precision",
    "recall",
    "fpr",
    "false_alarms_per_10k_at_recall",
    "recall_at_fpr",
    "card_precision_at_100",
    "brier",
    "ece",
    "threshold",
    "per_class",
}


def report_of(run: Path) -> dict[str, Any]:
    report = json.loads((run / "report.json").read_text())
    assert isinstance(report, dict)
    return report


def without_times(report: dict[str, Any]) -> dict[str, Any]:
    """The report without its times."""
    return {key: without_times(value) if isinstance(value, dict) else value for key, value in report.items() if key != "timing"}


def test_folder_holds_what_is_documented_and_nothing_intermediate(tiny_run: Path) -> None:
    names = {path.name for path in tiny_run.iterdir()}
    assert names >= FILES
    assert "work" not in names
    assert (tiny_run / "policy" / "policy.safetensors").is_file() and (tiny_run / "policy" / "policy.json").is_file()
    assert json.loads((tiny_run / "run.json").read_text())["status"] == "complete"


def test_report_has_all_models_and_keys(tiny_run: Path) -> None:
    report = report_of(tiny_run)
    assert set(report["baselines"]) == {"none", "one_to_one", "class_weight", "lightgbm", "stage1", "stage2", "network", "full"}
    for figures in (report["test"], *report["baselines"].values()):
        assert set(figures) >= KEYS
        assert set(figures["false_alarms_per_10k_at_recall"]) >= {"0.60", "0.70"}
        assert "0.001" in figures["recall_at_fpr"]


def test_predictions_reproduce_the_report(tiny_run: Path, tiny_table: Path) -> None:
    report, rows = report_of(tiny_run)["test"], pl.read_parquet(tiny_run / "predictions.parquet")
    positive = (rows["label"] != "0").to_numpy()
    assert average_precision_score(positive, rows["score"].to_numpy()) == pytest.approx(report["average_precision"], abs=1e-9)
    assert f1_score(positive, rows["decision"].to_numpy()) == pytest.approx(report["f1"], abs=1e-9)
    truth = pl.read_parquet(tiny_table).select(pl.col("transaction_id").alias("id"), "time", "is_fraud", "amount")
    joined = rows.join(truth, on="id", suffix="_true")
    assert joined.height == rows.height
    assert (joined["label"].cast(pl.Int8) == joined["is_fraud"]).all()
    assert (joined["time"] == joined["time_true"]).all()
    assert (joined["amount"] == joined["amount_true"]).all()


def test_history_has_a_row_per_model_and_epoch_with_shares_that_sum_to_1(tiny_run: Path) -> None:
    history = pl.read_parquet(tiny_run / "epochs.parquet")
    assert history.group_by("model").len().sort("model").rows() == [("class_weight", 2), ("none", 2), ("one_to_one", 2), ("run", 2)]
    np.testing.assert_allclose(history["share_0"] + history["share_1"], 1)
    assert history.filter(pl.col("model") == "one_to_one")["share_1"].to_list() == pytest.approx([0.5, 0.5])


def test_evaluate_on_the_training_table_repeats_the_report(tiny_run: Path, tiny_table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(tiny_run), "--dataset", str(tiny_table), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["part"] == "test"
    assert result["test"] == report_of(tiny_run)["test"]


def test_evaluate_on_another_table_takes_all_its_rows(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.parquet"
    assert main(["simulate", "--rows", "4000", "--fraud-rate", "0.03", "--seed", "9", "--out", str(other)]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tiny_run), "--dataset", str(other), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["part"], result["rows"]) == ("all", 4000)
    assert main(["evaluate", str(tiny_run), "--dataset", str(other)]) == 0
    printed = capsys.readouterr().out
    assert "AP" in printed
    assert f"{result['test']['average_precision']:.3f}" in printed


def test_score_needs_no_labels_and_gives_the_same_rows_back(tiny_run: Path, tiny_table: Path, tmp_path: Path) -> None:
    table = pl.read_parquet(tiny_table)
    plain, output = tmp_path / "plain.parquet", tmp_path / "scored.parquet"
    shuffled = table.sample(fraction=1.0, shuffle=True, seed=1)
    shuffled.drop("is_fraud").write_parquet(plain)
    assert main(["score", str(tiny_run), "--input", str(plain), "--output", str(output)]) == 0
    scored = pl.read_parquet(output)
    assert scored.columns[-3:] == ["score", "decision", "class"]
    assert scored.select(plain_columns := pl.read_parquet(plain).columns).equals(shuffled.select(plain_columns))
    assert scored["score"].is_between(0, 1).all()
    threshold = json.loads((tiny_run / "decision.json").read_text())["threshold"]
    assert (scored["decision"] == (scored["score"] >= threshold)).all()
    assert set(scored.filter(~pl.col("decision"))["class"]) <= {"0"}


def test_score_with_history_equals_scores_within_the_whole_table(tiny_run: Path, tiny_table: Path, tmp_path: Path) -> None:
    table = pl.read_parquet(tiny_table)
    past, new = tmp_path / "past.parquet", tmp_path / "new.csv"
    table.head(5_000).write_parquet(past)
    table.tail(1_000).write_csv(new)
    output = tmp_path / "scored.csv"
    assert main(["score", str(tiny_run), "--input", str(new), "--output", str(output), "--past", str(past)]) == 0
    scored = pl.read_csv(output).select(pl.col("transaction_id").alias("id"), "score")
    joined = pl.read_parquet(tiny_run / "predictions.parquet").join(scored, on="id", suffix="_again")
    assert joined.height > 500
    np.testing.assert_allclose(joined["score"], joined["score_again"], atol=1e-6)


def test_another_process_order_same_seed_same_report(tiny_run: Path, tiny_table: Path, tmp_path: Path) -> None:
    assert main(["train", "--dataset", str(tiny_table), "--out", str(tmp_path / "again"), *HYBRID, *TINY, *FINE_TUNED]) == 0
    assert without_times(report_of(tmp_path / "again")) == without_times(report_of(tiny_run))
    for name in ("model.safetensors", "model.quantized.safetensors", "precision.json", "policy/policy.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tiny_run / name).read_bytes()


def test_resume_of_a_complete_run_reports_again_and_refuses_other_flags(
    tiny_run: Path, tiny_table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--resume", "--out", str(tiny_run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == report_of(tiny_run)
    assert main(["train", "--resume", "--out", str(tiny_run), "--dataset", str(tiny_table), "--seed", "5"]) == 2
    assert "--seed 5" in capsys.readouterr().err


def test_an_output_folder_that_exists_is_refused(tiny_run: Path, tiny_table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (tiny_run / "run.json").read_bytes()
    assert main(["train", "--dataset", str(tiny_table), "--out", str(tiny_run)]) == 2
    error = capsys.readouterr().err
    assert "--out" in error and "--resume" in error
    assert (tiny_run / "run.json").read_bytes() == before


@pytest.mark.parametrize("name", ["run.json", "schema.json", "decision.json", "model.json", "model.quantized.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign"])
def test_a_damaged_run_folder_is_refused_by_the_name_of_the_file(
    tiny_run: Path, tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    if damage == "missing":
        (run / name).unlink()
    else:
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[: len(content) // 2] if damage == "truncated" else b'{"hello": "world"}')
    output = tmp_path / "scored.parquet"
    assert main(["score", str(run), "--input", str(tiny_table), "--output", str(output)]) == 2
    error = capsys.readouterr().err
    assert name in error and error.count("\n") == 1
    assert not output.exists()


def test_a_policy_bundle_of_one_run_trains_another(tiny_run: Path, tiny_table: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["train", "--dataset", str(tiny_table), "--out", str(out), *HYBRID, *TINY, "--policy", str(tiny_run / "policy")]) == 0
    # The same policy, the same seed: only who learned the policy differs.
    assert report_of(out)["test"] == report_of(tiny_run)["test"]


@pytest.mark.usefixtures("few_trees")
@pytest.mark.parametrize("policy", ["rule", "constant:share=.2,hardness=1", "auto"])
def test_policies_that_are_not_learned_here_train(policy: str, tiny_table: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["train", "--dataset", str(tiny_table), "--out", str(out), *HYBRID, *TINY, "--policy", policy]) == 0
    report = report_of(out)
    assert report["run"]["policy"]["asked"] == policy
    history = pl.read_parquet(out / "epochs.parquet").filter(pl.col("model") == "run")
    if policy == "auto":
        assert report["run"]["policy"]["name"] == "auto"
        assert history["share_1"].min() > 0.03  # above the prior
    elif policy != "rule":
        assert history["share_1"].to_list() == pytest.approx([0.2, 0.2])


@pytest.mark.usefixtures("few_trees")
def test_named_classes_in_a_table_without_an_entity_and_with_seconds_as_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from balancer.data.simulation.stream import simulate

    table, out = tmp_path / "types.csv", tmp_path / "run"
    frame = simulate(8_000, seed=5, fraud_rate=0.06, labels="types")
    frame.with_columns(pl.col("time").dt.epoch("s")).write_csv(table)
    roles = ["--time", "time", "--entity", "none", "--label", "fraud_type", "--negative", "legitimate"]
    assert main(["train", "--dataset", str(table), "--out", str(out), *roles, *HYBRID, *TINY]) == 0
    report = report_of(out)
    assert set(report["test"]["per_class"]) == {"card_testing", "stolen_card", "account_takeover", "compromised_merchant"}
    assert report["test"]["card_precision_at_100"] is None
    capsys.readouterr()
    assert main(["evaluate", str(out), "--dataset", str(table), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["test"] == report["test"]


@pytest.mark.usefixtures("few_trees")
def test_ppo_is_kept_only_where_it_is_better_and_the_report_says_why(
    tiny_table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where PPO would have to be better by far, a run is that of auto; where anything will do, it is not."""
    short = replace(POLICY_BUDGETS["quick"], num_students=16, epochs=4, test_groups=2, test_episodes=1)
    monkeypatch.setitem(POLICY_BUDGETS, "quick", short)
    runs = {}
    for name, margin, policy in (("auto", 0.0, "auto"), ("constant", 1e9, "ppo"), ("ppo", -1e9, "ppo")):
        monkeypatch.setattr("balancer.policy_learning.training.MARGIN", margin)
        out = tmp_path / name
        assert main(["train", "--dataset", str(tiny_table), "--out", str(out), *HYBRID, *TINY, "--policy", policy]) == 0
        printed, runs[name] = capsys.readouterr().out, report_of(out)
        described = runs[name]["run"]["policy"]
        if policy == "auto":
            assert described == {"asked": "auto", "name": "auto"}
            assert "% of the run's" not in printed
            continue
        assert described["asked"] == "ppo"
        assert described["name"] == ("auto" if name == "constant" else "ppo")
        (note,) = described["notes"]
        assert note.startswith("kept auto, the constant:" if name == "constant" else "kept PPO:")
        assert f"policy ppo: {note}" in printed
        assert set(described["evaluation"]) == {"ppo", "constant", "one_to_one", "none", "start", "random"}
        seconds = runs[name]["timing"]["seconds"]
        share = re.search(r"^policy: (\d+) s, (\d+) % of the run's (\d+) s$", printed, re.MULTILINE)
        assert share is not None
        total = sum(value for stage, value in seconds.items() if stage != "run")  # run is the sum of network and trees
        policy_seconds, percent, all_seconds = map(int, share.groups())
        assert (policy_seconds, all_seconds) == pytest.approx((seconds["policy"], total), abs=1)
        # The report's seconds are rounded to a tenth, which is up to .1 of the whole for both together.
        assert percent == pytest.approx(100 * seconds["policy"] / total, abs=1 + 100 * 0.1 * len(seconds) / total)
        assert f"- note of the policy: {note}" in (out / "report.md").read_text()
    assert runs["constant"]["test"] == runs["auto"]["test"]
    assert runs["constant"]["baselines"] == runs["auto"]["baselines"]
    for part in ("network", "full"):  # the run's network without the trees, and the run before rounding
        own = {name: runs[name]["baselines"].pop(part) for name in ("auto", "ppo")}
        assert own["auto"] != own["ppo"]
    assert runs["auto"]["baselines"] == runs["ppo"]["baselines"]
    assert (tmp_path / "constant" / "model.safetensors").read_bytes() == (tmp_path / "auto" / "model.safetensors").read_bytes()
    assert runs["ppo"]["test"] != runs["auto"]["test"]
    weights = pl.read_parquet(tmp_path / "ppo" / "epochs.parquet").filter(pl.col("model") == "run")
    assert weights["class_importance"].is_between(0, 1).all()
    assert weights.schema["half_life"] == pl.Float64
    plain = pl.read_parquet(tmp_path / "ppo" / "epochs.parquet").filter(pl.col("model") == "none")
    assert plain["class_importance"].to_list() == [0.0, 0.0]
