"""The stages of ``balancer train``: policy, classifier, baselines, boosted trees, report.

All checks come before the run folder exists, so bad input leaves no files behind. After that each stage
writes its result atomically under ``work/`` and runs only once: an interruption costs at most one epoch, and
the resumed run gives the same bits.

Several processes run the same stages. All of them fit the networks; everything else the leader does, and the
others read from the run folder what they need of it.
"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import torch
from rich.console import Console

from balancer.data.split import Split
from balancer.devices import random_state_kept
from balancer.evaluation.baselines import MAX_ROUNDS, fit_lightgbm
from balancer.files import read_arrays, read_json, write_json
from balancer.inference.attribution import explain
from balancer.inference.decision import NETWORK
from balancer.inference.tree_stages import TREES_FOLDER, TreeStages
from balancer.models import (
    load_classifier,
    save_classifier,
    save_delta,
)
from balancer.models.quantization.storage import PLAN_FILE, WEIGHTS_FILE
from balancer.names import counted
from balancer.options.run import folder_to_resume
from balancer.options.train import TrainConfig
from balancer.runs.progress import PROGRESS_FILE, SECONDS_FILE, StageClock, TrainingProgress, describe
from balancer.runs.results import FULL, Scores, write_results
from balancer.runs.run_folder import RunFolder
from balancer.runs.work_files import WorkFiles
from balancer.sampling.policies import AutoPolicy, BundlePolicy, Policy, load_policy, policy_notes
from balancer.sampling.seeding import integer_seed
from balancer.training.auxiliary_evaluation import describe_tasks
from balancer.training.costs import print_costs
from balancer.training.distributed import ALONE, Workers
from balancer.training.fitting import Pools, fit_classifier
from balancer.training.opening import opened_run
from balancer.training.policy_stage import learn_policy
from balancer.training.precision_stage import plan_network, planned_scores
from balancer.training.preparation import Prepared
from balancer.training.treatment import BASELINES, Treatment, fixed_treatment, policy_treatment
from balancer.training.tree_stage import blend_weights, fit_stages, run_scores, stage_scores

NETWORK_FIELDS = (
    *("embedding", "attention", "head", "num_layers", "d_model"),
    *("form", "history_length", "attention_window", "global_nodes"),
)
"""Fields of `ModelConfig` that the report of a run has."""


@random_state_kept()
def train_run(config: TrainConfig, given: dict[str, Any], console: Console, workers: Workers = ALONE) -> Path:
    """Train, or resume a run.

    Args:
        config: Configuration of a new run; to resume, ``resume`` and ``out`` are used and the rest comes from
            the run folder.
        given: Fields of ``config`` that were typed; to resume, they must agree with the run.
        console: Where the leader prints progress.
        workers: The processes that train the run; each calls this function with the same arguments. If they
            were started again, they resume the run.

    Returns:
        The run folder.

    Raises:
        InputError: The options or the table can't be used. Either no file was written, or the run can be
            resumed.
    """
    console = console if workers.leads else Console(markup=False, quiet=True, file=io.StringIO())
    saved = None
    if config.resume or workers.agreed(workers.again and config.out is not None and (config.out / "run.json").is_file()):
        saved = workers.each(lambda: _to_resume(config, given))
        if saved.complete:
            console.print(f"{saved.path} is complete already", highlight=False, soft_wrap=True)
            return saved.path
    with opened_run(config, console, saved=saved, given=given, workers=workers) as (prepared, folder):
        _run_stages(prepared, folder, console)
    return folder.path


def _to_resume(config: TrainConfig, given: dict[str, Any]) -> RunFolder:
    saved = RunFolder.open(folder_to_resume(config.out))
    saved.refuse_other_flags(given)
    return saved


def _run_stages(prepared: Prepared, folder: RunFolder, console: Console) -> None:
    workers = prepared.workers
    if prepared.learner != "trees":
        workers.lead(lambda: print_costs(prepared, console))
    workers.lead(lambda: folder.work.mkdir(exist_ok=True))
    clock = StageClock(folder.work / SECONDS_FILE if workers.leads else None)
    files = WorkFiles(folder, lambda text: console.print(text, highlight=False, soft_wrap=True))
    stages, policy = None, None
    scores: dict[str, Scores] = {}
    with TrainingProgress(console, folder.work / PROGRESS_FILE if workers.leads else None) as progress:
        if prepared.learner != "network":
            stages = _trees(prepared, folder, files, clock, progress)
            prepared = prepared.with_network()
        if prepared.learner != "trees":
            policy = _networks(prepared, folder, files, clock, progress, scores)
        precision = workers.lead(lambda: _last_stages(prepared, folder, files, clock, progress, scores))
    workers.lead(lambda: _conclude(prepared, folder, clock, console, stages, policy, precision, scores))


def _trees(prepared: Prepared, folder: RunFolder, files: WorkFiles, clock: StageClock, progress: TrainingProgress) -> TreeStages:
    """Fit the boosted trees, or read those that the leader fitted, and fill the score fields."""
    stages = prepared.workers.lead(lambda: fit_stages(prepared, folder, files, clock, progress))
    if stages is None:
        stages = TreeStages.load(folder.path / TREES_FOLDER, prepared.dataset.schema)
        stages.fill(prepared.dataset)
    return stages


def _last_stages(
    prepared: Prepared, folder: RunFolder, files: WorkFiles, clock: StageClock, progress: TrainingProgress, scores: dict[str, Scores]
) -> dict[str, Any] | None:
    """Plan the precision of the network, and fit the last baseline; their scores are added to ``scores``.

    Returns:
        What was done to the precision, for the report.
    """
    precision = None
    if prepared.learner != "trees" and prepared.config.precision == "planned":
        with clock.stage("precision"):
            precision = _precision_stage(prepared, folder, files, progress, scores)
    with clock.stage("lightgbm"):
        scores["lightgbm"] = _lightgbm_stage(prepared, folder, files, progress)
    return precision


def _conclude(
    prepared: Prepared,
    folder: RunFolder,
    clock: StageClock,
    console: Console,
    stages: TreeStages | None,
    policy: Policy | None,
    precision: dict[str, Any] | None,
    scores: dict[str, Scores],
) -> None:
    """Combine the scores of the stages, write the results, and finish the run."""
    config, dataset, members = prepared.config, prepared.dataset, None
    if stages is not None:
        network = scores.get("run")
        members = blend_weights(stages, dataset, network)
        full = {FULL: run_scores(stages, dataset, members, scores[FULL])} if FULL in scores else {}
        scores = (
            {"run": run_scores(stages, dataset, members, network)} | {name: each for name, each in scores.items() if name != "run"} | full
        )
        scores |= stage_scores(stages, dataset)
        if network is not None:
            scores["network"] = replace(network, figures=[])
    tasks: dict[str, Any] = {}
    explanation: dict[str, pl.Series] = {}
    if prepared.learner != "trees":
        tasks, explanation = _explained(prepared, folder, clock, console)
    write_results(
        folder,
        dataset,
        scores,
        policy={"asked": config.policy, "name": "none"} if policy is None else _describe_policy(config, policy),
        tasks=tasks,
        schedule=prepared.schedule,
        config=config,
        clock=clock,
        explanation=explanation,
        members=members,
        precision=precision,
        network=None if prepared.learner == "trees" else _network(prepared),
    )
    if config.policy == "ppo" and policy is not None:
        console.print(f"policy: {clock.share('policy')}", highlight=False, soft_wrap=True)
    folder.finish(members=members)


def _networks(
    prepared: Prepared, folder: RunFolder, files: WorkFiles, clock: StageClock, progress: TrainingProgress, scores: dict[str, Scores]
) -> Policy:
    """Learn the policy, fit the networks of run and baselines, and add their scores to ``scores``."""
    with clock.stage("policy"):
        policy = _policy(prepared, folder, progress)
    for note in policy_notes(policy):
        progress.say(f"policy {prepared.config.policy}: {note}")
    counts = Pools.of(prepared.dataset).train_counts
    for treatment in (policy_treatment("run", policy), *(fixed_treatment(name, counts) for name in BASELINES)):
        with clock.stage(NETWORK if treatment.name == "run" else treatment.name):
            scores[treatment.name] = _classifier_stage(prepared, folder, files, treatment, progress)
    return policy


def _network(prepared: Prepared) -> dict[str, Any]:
    """What the network of the run consists of, for the report."""
    config, model = prepared.config, prepared.model
    found: dict[str, Any] = {name: getattr(model, name) for name in NETWORK_FIELDS}
    return found | {"by_default": config.attention == config.form == "auto" and config.history_length is None}


def _precision_stage(
    prepared: Prepared, folder: RunFolder, files: WorkFiles, progress: TrainingProgress, scores: dict[str, Scores]
) -> dict[str, Any]:
    """Plan the precision of the run's network; from then on ``scores["run"]`` is that of the planned network.

    Returns:
        What was done, for the report.
    """
    result, about = folder.work / "planned.scores.safetensors", folder.work / "planned.json"
    written = (result, about, folder.path / WEIGHTS_FILE, folder.path / PLAN_FILE)
    device = torch.device(prepared.device)
    with progress.stage("precision of each layer", 1) as advance:
        if not (files.finished(*written) and files.readable(result, Scores.load)):
            planned = plan_network(
                prepared.dataset, load_classifier(folder.path, prepared.device), folder.path, seed=prepared.config.seed, device=device
            )
            if isinstance(planned, str):
                progress.say(f"note: the network keeps its full precision: {planned}")
                return {"refused": planned}
            planned_scores(prepared.dataset, planned.model, scores["run"], device).save(result)
            write_json(about, planned.about | {"ms": planned.ms})
            files.keep(*written)
        found = read_json(about, what="it is a finished step of the run")
        scores[FULL], scores["run"] = replace(scores["run"], figures=[]), Scores.load(result)
        advance(1, ", ".join(f"{count} layers {name.upper()}" for name, count in found["layers"].items()))
    return found


def _explained(prepared: Prepared, folder: RunFolder, clock: StageClock, console: Console) -> tuple[dict[str, Any], dict[str, pl.Series]]:
    """Metrics of the auxiliary tasks, and the earlier transactions attended to for each test row."""
    dataset = prepared.dataset
    with (
        console.status("attribution: which earlier transactions the score of each test row depends on"),
        clock.stage("explanation"),
    ):
        model, device = load_classifier(folder.path, prepared.device), torch.device(prepared.device)
        tasks = describe_tasks(model, dataset, prepared.config.seed, device)
        explanation = explain(model, dataset, dataset.rows(Split.TEST), device=device)
    if not explanation:
        console.print(
            f"note: attention {model.config.attention} has no weights to show: predictions.parquet names no earlier transactions",
            highlight=False,
            soft_wrap=True,
        )
    return tasks, explanation


def _policy(prepared: Prepared, folder: RunFolder, progress: TrainingProgress) -> Policy:
    config, classes = prepared.config, len(prepared.dataset.schema.classes)
    if config.policy == "ppo":
        prepared.workers.lead(
            lambda: learn_policy(
                prepared.dataset.without_score_fields(),
                config,
                budget=config.budget,
                seed=config.seed,
                folder=folder.path / "policy",
                device=prepared.device,
                progress=progress,
            )
        )
        return load_policy(folder.path / "policy", num_classes=classes)
    return load_policy(config.policy, num_classes=classes)


def _describe_policy(config: TrainConfig, policy: Policy) -> dict[str, Any]:
    """The policy for the report, with its notes; for a learned one also figures of its training."""
    summary = policy.summary if isinstance(policy, BundlePolicy | AutoPolicy) else {}
    kept = isinstance(policy, BundlePolicy) and policy.kept == "constant"
    found: dict[str, Any] = {"asked": config.policy, "name": "auto" if kept else policy.name}
    found |= {key: summary[key] for key in ("env_steps", "beats_constant", "margin_over_constant", "evaluation") if key in summary}
    notes = policy_notes(policy)
    return found | ({"notes": notes} if notes else {})


def _classifier_stage(prepared: Prepared, folder: RunFolder, files: WorkFiles, treatment: Treatment, progress: TrainingProgress) -> Scores:
    """Fit a classifier and store its scores of the threshold and test rows; the run's model is stored too."""
    config, workers, result = prepared.config, prepared.workers, folder.work / f"{treatment.name}.scores.safetensors"
    is_run = treatment.name == "run"
    written = (result, folder.path / "model.safetensors", folder.path / "model.json") if is_run else (result,)
    if workers.agreed(workers.lead(lambda: files.finished(*written) and files.readable(result, Scores.load))):
        return Scores.load(result)
    checkpoint = folder.work / f"{treatment.name}.checkpoint.safetensors"

    def read(file: Path) -> list[Any]:
        return list(read_arrays(file, what="it is a checkpoint")[1]["figures"])

    def after_epoch(epoch: int, line: dict[str, Any]) -> None:
        files.keep(checkpoint)
        advance(epoch, describe(line))

    done = workers.lead(lambda: read(checkpoint) if files.readable(checkpoint, read) else []) or []
    title = "classifier" if is_run else f"baseline {treatment.name}"
    dataset = prepared.dataset if is_run else prepared.baseline_dataset
    with progress.stage(title, prepared.schedule.epochs, len(done)) as advance:
        trainer, figures = fit_classifier(
            dataset,
            prepared.model if is_run else prepared.baseline_model,
            treatment,
            prepared.schedule,
            config,
            seed=config.seed,
            device=prepared.device,
            checkpoint=checkpoint,
            after_epoch=after_epoch,
            start=prepared.start,
            new_head=prepared.new_head,
            train_only=config.train_only,
            task_weights=config.fixed_task_weights(),
            micro_batches=prepared.micro_batches,
        )
    reward = trainer.score(dataset.rows(Split.REWARD)) if is_run and prepared.learner == "hybrid" else None
    scores = Scores(trainer.score(dataset.rows(Split.THRESHOLD)), trainer.score(dataset.rows(Split.TEST)), figures, reward)

    def store() -> None:
        if is_run and config.train_only is not None and config.from_ is not None:
            save_delta(trainer.model, folder.path, base=config.from_, parts=config.train_only)
        elif is_run:
            save_classifier(trainer.model, folder.path)
        scores.save(result)
        files.keep(*written)
        checkpoint.unlink()

    workers.lead(store)
    return scores


def _lightgbm_stage(prepared: Prepared, folder: RunFolder, files: WorkFiles, progress: TrainingProgress) -> Scores:
    result = folder.work / "lightgbm.scores.safetensors"
    if files.readable(result, Scores.load):
        return Scores.load(result)
    with progress.stage("LightGBM, same features", MAX_ROUNDS) as advance:
        fitted = fit_lightgbm(
            prepared.dataset.without_score_fields(),
            seed=integer_seed(prepared.config.seed, "lightgbm"),
            threads=prepared.threads,
            # Early stopping may end it before MAX_ROUNDS; the last step is shown when it has ended.
            progress=lambda trees, _: advance(min(trees, MAX_ROUNDS - 1)),
        )
        advance(MAX_ROUNDS, f"kept {counted(fitted.trees, 'tree')}")
    scores = Scores(fitted.threshold_score, fitted.test_score, [])
    scores.save(result)
    files.keep(result)
    return scores
