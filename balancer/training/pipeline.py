"""`balancer train`: policy, classifier, baselines, boosted trees, report, each stage finished once and for good.

What is special: everything before the run folder exists is checking, so bad input leaves nothing behind; everything after is a stage that writes
its result atomically under ``work/``, so a kill at any moment costs at most an epoch, and the resumed run ends in the same bits.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from balancer.data.split import Split
from balancer.devices import torch_threads
from balancer.errors import InputError
from balancer.evaluation.baselines import MAX_ROUNDS, fit_lightgbm
from balancer.files import read_arrays
from balancer.inference.attribution import explain
from balancer.models import (
    load_classifier,
    save_classifier,
    save_delta,
)
from balancer.options.train import TrainConfig
from balancer.runs.progress import PROGRESS_FILE, TrainingProgress, describe
from balancer.runs.results import Scores, write_results
from balancer.runs.run_folder import RunFolder
from balancer.sampling.policies import AutoPolicy, BundlePolicy, Policy, load_policy
from balancer.sampling.seeding import integer_seed
from balancer.training.auxiliary_sampling import describe_tasks
from balancer.training.costs import print_costs
from balancer.training.fitting import BASELINES, Pools, Scheme, baseline_scheme, fit_classifier
from balancer.training.policy_stage import learn_policy
from balancer.training.preparation import Prepared, describe_data, prepare


def train_run(config: TrainConfig, given: dict[str, Any], console: Console) -> Path:
    """Train as ``config`` says, or resume; return the run folder.

    Parameters
    ----------
    given
        The fields of ``config`` that were typed; on ``resume`` they are compared with the run's own.
    console
        Where progress and the report go.

    Raises
    ------
    InputError
        On anything a person can mend; nothing was written then, or what was written can be resumed.
    """
    if config.resume:
        assert config.out is not None
        folder = RunFolder.open(config.out)
        folder.refuse_other_flags(given)
        if folder.complete:
            console.print(f"{folder.path} is complete already")
            return folder.path
        threads = int(folder.content["threads"])
    else:
        path, threads = config.out or RunFolder.default_path(config.dataset), config.threads
        RunFolder.refuse_existing(path)
    with torch_threads(threads):
        if config.resume:
            prepared = prepare(folder.config(), console, device=folder.content["device"], threads=threads)
            if prepared.dataset.fingerprint != folder.content["fingerprint"]:
                changed = f"--dataset {prepared.config.dataset} has changed since the run in {folder.path} was started"
                raise InputError(f"{changed}: start a new run")
        else:
            prepared = prepare(config, console, given=given)
            folder = RunFolder.create(
                path,
                prepared.config,
                fingerprint=prepared.dataset.fingerprint,
                device=prepared.device,
                threads=prepared.threads,
                data=describe_data(prepared.dataset),
            )
        console.print(f"run folder {folder.path}", highlight=False, soft_wrap=True)
        with folder.locked():
            _run_stages(prepared, folder, console)
    return folder.path


def _run_stages(prepared: Prepared, folder: RunFolder, console: Console) -> None:
    config, dataset = prepared.config, prepared.dataset
    print_costs(prepared.dataset, prepared.model, config, prepared.device, console)
    folder.work.mkdir(exist_ok=True)
    seconds: dict[str, float] = {}
    with TrainingProgress(console, folder.work / PROGRESS_FILE) as progress:
        started = time.monotonic()
        policy = _policy(prepared, folder, progress)
        seconds["policy"] = time.monotonic() - started
        counts = Pools.of(dataset).train_counts
        scores: dict[str, Scores] = {}
        for scheme in (Scheme("run", policy), *(baseline_scheme(name, counts) for name in BASELINES)):
            started = time.monotonic()
            scores[scheme.name] = _classifier_stage(prepared, folder, scheme, progress)
            seconds[scheme.name] = time.monotonic() - started
        started = time.monotonic()
        scores["lightgbm"] = _lightgbm_stage(prepared, folder, progress)
        seconds["lightgbm"] = time.monotonic() - started
    with console.status("which earlier transactions weighed on each test row"):
        started = time.monotonic()
        model, device = load_classifier(folder.path, prepared.device), torch.device(prepared.device)
        tasks = describe_tasks(model, dataset, config.seed, device)
        explanation = explain(model, dataset, dataset.rows(Split.TEST), device=device)
        seconds["explanation"] = time.monotonic() - started
    write_results(
        folder,
        dataset,
        scores,
        policy=_describe_policy(config, policy),
        tasks=tasks,
        schedule=prepared.schedule,
        config=config,
        seconds=seconds,
        explanation=explanation,
    )
    folder.finish()


def _policy(prepared: Prepared, folder: RunFolder, progress: TrainingProgress) -> Policy:
    config, classes = prepared.config, len(prepared.dataset.schema.classes)
    if config.policy == "ppo":
        learn_policy(prepared.dataset, config, folder=folder.path / "policy", device=prepared.device, progress=progress)
        return load_policy(folder.path / "policy", num_classes=classes)
    return load_policy(config.policy, num_classes=classes)


def _describe_policy(config: TrainConfig, policy: Policy) -> dict[str, Any]:
    """For the report: which policy, and of a learned one what its training says."""
    summary = policy.summary if isinstance(policy, BundlePolicy | AutoPolicy) else {}
    return {"asked": config.policy, "name": policy.name} | {
        key: summary[key] for key in ("env_steps", "beats_constant", "evaluation") if key in summary
    }


def _classifier_stage(prepared: Prepared, folder: RunFolder, scheme: Scheme, progress: TrainingProgress) -> Scores:
    """Fit, score the threshold half and the test rows, keep the scores; the run's own model goes into the run folder."""
    result = folder.work / f"{scheme.name}.scores.safetensors"
    if result.exists():
        return Scores.load(result)
    checkpoint = folder.work / f"{scheme.name}.checkpoint.safetensors"
    done = read_arrays(checkpoint, what="it is a checkpoint")[1]["figures"] if checkpoint.exists() else []
    title = "classifier" if scheme.name == "run" else f"baseline {scheme.name}"
    with progress.stage(title, prepared.schedule.epochs, len(done)) as advance:
        student, figures = fit_classifier(
            prepared.dataset,
            prepared.model,
            scheme,
            prepared.schedule,
            prepared.config,
            device=prepared.device,
            checkpoint=checkpoint,
            after_epoch=lambda epoch, line: advance(epoch, describe(line)),
            start=prepared.start,
        )
    if scheme.name == "run":
        parts, base = prepared.config.train_only, prepared.config.from_
        if parts is not None and base is not None:
            save_delta(student.model, folder.path, base=base, parts=parts)
        else:
            save_classifier(student.model, folder.path)
    dataset = prepared.dataset
    scores = Scores(student.score(dataset.rows(Split.THRESHOLD)), student.score(dataset.rows(Split.TEST)), figures)
    scores.save(result)
    checkpoint.unlink()
    return scores


def _lightgbm_stage(prepared: Prepared, folder: RunFolder, progress: TrainingProgress) -> Scores:
    result = folder.work / "lightgbm.scores.safetensors"
    if result.exists():
        return Scores.load(result)
    with progress.stage("LightGBM, same features", MAX_ROUNDS) as advance:
        fitted = fit_lightgbm(
            prepared.dataset,
            seed=integer_seed(prepared.config.seed, "lightgbm"),
            threads=prepared.threads,
            progress=lambda trees, _: advance(min(trees, MAX_ROUNDS - 1)),  # it may stop early; the last step is the end
        )
        advance(MAX_ROUNDS, f"kept {fitted.trees} trees")
    scores = Scores(fitted.threshold_score, fitted.test_score, [])
    scores.save(result)
    return scores
