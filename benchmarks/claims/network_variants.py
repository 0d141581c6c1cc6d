"""What a network adds to boosted trees, what each change of it gives, and how other learners compare.

For each stream the table is prepared and both tree stages are fitted once, with seed 0. Then every variant of
the network is trained with the standard budget of `balancer train`, with several seeds on the same trees. The
table has the mean over the seeds, and the difference to ``base`` with the same seeds and its standard error.
The blend takes its weight from the reward half of validation, as `balancer train` does.

Variants of the network on the trees' margin:

- base: what `balancer train` does. mean_of_seeds: mean of the logits of all seeds of base, without an error.
- ema: exponential average of the weights of base over about a tenth of the steps. snapshots: mean of the
  logits after each of the last three epochs. best_epoch: weights of the epoch with the best average precision
  on the reward rows. All three read the same trainings as base.
- second_margin: the margin is the out-of-fold log-odds of a second stage that is fitted by the same folds;
  later rows have the mean of the three. second_margin_whole: the same, but later rows have those of the
  second stage of the detector, which saw all training rows.
- gru: a gated recurrent unit in the place of attention. histories: whole histories of 64 rows are read.
- muon: this optimizer for the matrices. heads: an ensemble of 16 heads on one trunk, after TabM.
- pretrained: starts from a network that was trained without labels.
- network_memory: fields with the earlier scores of networks that were trained by the same folds of entities.

Networks without trees, on the fields without scores and with a history of 16: no_trees, and no_trees_...
with one of the changes above.

Trees (one seed): stage2 as it is; stage2_shares, frauds weighted as the sampling policy would draw them;
stage2_random and stage2_hard, a fifth of the legitimate rows, drawn evenly or by the first stage's score and
weighted back. Rivals (one seed) on the fields without scores and, with the ending _scores, on all fields:
lightgbm, xgboost, catboost, tabm.

Every training of the first two seeds is read in all these ways; further seeds by the last weights alone.

Every training is stored as soon as it is finished, so a stopped run continues.

    python -m benchmarks.claims.network_variants          # all -> benchmarks/results/network_variants.json
    python -m benchmarks.claims.network_variants --only sparkov --variants base,gru --seeds 3
    python -m benchmarks.claims.network_variants --table  # prints the table of what is recorded
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from balancer.data.score_memory import TableScores, clipped, memory_fields
from balancer.data.split import Split
from balancer.evaluation.metrics import Ranking
from balancer.inference.detector import log_odds
from balancer.inference.scoring import score_rows
from balancer.inference.tree_stages import FOLDS, TreeStages, row_folds
from balancer.models import fit_edges
from balancer.options.fit import Budget
from balancer.sampling.seeding import generator, integer_seed
from balancer.sampling.weights import class_prior
from balancer.training.auxiliary_sampling import AuxiliarySampling
from balancer.training.auxiliary_targets import make_task
from balancer.training.fitting import Pools
from balancer.training.trainer import ClassifierTrainer
from balancer.training.tree_fitting import TreeRows, few_frauds, fit_rows, fit_second, second_members
from balancer.training.tree_stage import FEW_WEIGHT, STEPS
from balancer.trees import TreeEnsemble
from benchmarks.lib.commands import parser
from benchmarks.lib.muon import MuonAndAdamW
from benchmarks.lib.network_trial import READINGS, SPLITS, Logits, Training, train_and_read
from benchmarks.lib.recording import RESULTS, recorded, rounded, write
from benchmarks.lib.rivals import RIVALS, missing_rival
from benchmarks.lib.stage_cache import Stages, opened_stages
from benchmarks.lib.streams import STREAMS, missing

PATH = RESULTS / "network_variants.json"
RECALLS = (0.6, 0.7, 0.8)
SEEDS = 5
PRETRAINING = Budget(10, 240)
PRETRAINING_TASKS = ("next_fields", "masked_fields")
KEPT_NEGATIVES = 0.2
"""Share of the legitimate rows that the thinned trees are fitted on."""
SECOND = "stage2_logit"
"""Field with the out-of-fold log-odds of a second stage."""
ENSEMBLE = "mean_of_seeds"
Cells = dict[str, dict[str, Any]]
"""Figures by variant and seed."""


def figures(fraud: NDArray[np.bool_], score: NDArray[np.floating]) -> dict[str, Any]:
    """Average precision, and false alarms per 10,000 legitimate rows by recall."""
    ranking = Ranking.of(fraud, score)
    alarms = {f"{recall:.2f}": ranking.false_alarms_at_recall(recall) for recall in RECALLS}
    return {"average_precision": float(average_precision_score(fraud, score)), "false_alarms_per_10k": alarms}


def blended(stages: Stages, logits: Logits) -> dict[str, Any]:
    """Figures of a network and of its blend with the second stage."""
    reward, test = (stages.fraud(split) for split in SPLITS)
    weight = FEW_WEIGHT
    if not few_frauds(stages.dataset):
        one, two = logits[Split.REWARD].astype(np.float64), stages.second[Split.REWARD]
        found = [average_precision_score(reward, step / STEPS * one + (1 - step / STEPS) * two) for step in range(STEPS + 1)]
        weight = int(np.argmax(found)) / STEPS
    network = logits[Split.TEST].astype(np.float64)
    blend = weight * network + (1 - weight) * stages.second[Split.TEST]
    validation = float(average_precision_score(reward, logits[Split.REWARD]))
    return {"network": figures(test, network), "blend": figures(test, blend), "weight": weight, "validation": validation}


def base(stages: Stages) -> Training:
    """What `balancer train` does."""
    prepared = stages.prepared
    return Training(stages.dataset, prepared.model, stages.treatment, prepared.schedule, prepared.config)


def no_trees(stages: Stages) -> Training:
    """The network alone, as with ``--learner network``."""
    prepared = stages.prepared
    return replace(base(stages), dataset=prepared.baseline_dataset, model=prepared.baseline_model)


def second_margin(stages: Stages) -> Training:
    """The margin is the log-odds of a second stage that never saw the entity; later rows get the mean."""
    dataset, made = stages.dataset, base(stages)
    fold = row_folds(dataset)
    crossed = []
    for number in range(FOLDS):
        path = stages.folder / "work" / f"second-without-{number}.txt"
        if not path.exists():
            split = dataset.split.copy()
            split[(split == Split.TRAIN) & (fold == number)] = Split.GAP
            path.write_text(fit_second(replace(dataset, split=split), 0, seed=0, threads=1, progress=lambda *_: None))
        crossed.append(TreeEnsemble.read(path))
    logit = TreeStages(tuple(crossed), (), stages.trees.train_end).first_logit(dataset.store.values, dataset.store.time, fold)
    added = with_fields(made, {SECOND: clipped(logit)})
    later = dataset.store.time > stages.trees.train_end
    values = added.dataset.store.values.copy()
    values[later, 0] = clipped(stages.trees.second_logit(dataset.store.values[later]))
    whole = replace(added.dataset, store=replace(added.dataset.store, values=values))
    return replace(added, model=replace(added.model, margin=SECOND), others={"whole": whole})


def with_fields(made: Training, columns: dict[str, NDArray[np.floating]]) -> Training:
    """A training on further numeric fields (N,) of all store rows, which come first."""
    dataset, store, model = made.dataset, made.dataset.store, made.model
    values = np.concatenate([np.stack(list(columns.values()), axis=1).astype(np.float32), store.values], axis=1)
    train = dataset.rows(Split.TRAIN)
    label = store.label[train].astype(np.int64)
    edges = fit_edges(values[train, : len(columns)], label, seed=integer_seed(0, " ".join(columns)))
    names = (*columns, *model.numeric_fields)
    return replace(
        made,
        dataset=replace(
            dataset,
            store=replace(store, values=values, num_numeric=store.num_numeric + len(columns)),
            schema=replace(dataset.schema, numeric_fields=names),
        ),
        model=replace(model, numeric_fields=names, edges=(*edges, *model.edges)),
    )


def pretrained(stages: Stages) -> Training:
    """Starts from a network that learned the next row's fields, and hidden ones, without labels (seed 0)."""
    made = base(stages)
    dataset, model = made.dataset, made.model
    tasks = tuple(make_task(task, dataset, model) for task in PRETRAINING_TASKS)
    learner = replace(model, tasks=tasks, margin="", field_dropout=0.0, dropout=0.1)
    steps = PRETRAINING.epochs * PRETRAINING.steps_per_epoch
    trainer = ClassifierTrainer(dataset, learner, seed=0, total_steps=steps, task_weights=dict.fromkeys(PRETRAINING_TASKS, 1.0))
    shape: dict[str, Any] = {"epochs": PRETRAINING.epochs, "steps": PRETRAINING.steps_per_epoch, "batch_size": 256, "seed": 0, "share": 1.0}
    sampling = AuxiliarySampling(dataset, learner, **shape)
    for epoch in range(PRETRAINING.epochs):
        trainer.fit(np.zeros(0, dtype=np.int64), sampling.draw(epoch))
    changes: dict[str, Any] = {"dropout": model.dropout, "field_dropout": model.field_dropout, "margin": model.margin}
    return replace(made, start=lambda: trainer.model.replace(head=model.head, tasks=(), **changes).model)


def network_memory(stages: Stages) -> Training:
    """Fields with the earlier scores of networks, three of them, that never saw the row's entity (seed 0).

    A row of the training period is scored by the network that was trained without its fold; later rows get
    the mean of all three.
    """
    made, dataset = base(stages), stages.dataset
    store, fold = dataset.store, row_folds(dataset)
    path = stages.folder / "network_logits.npy"
    if not path.exists():
        early, total = store.time <= stages.trees.train_end, np.zeros(len(store))
        for number in range(FOLDS):
            split = dataset.split.copy()
            split[(split == Split.TRAIN) & (fold == number)] = Split.GAP
            _, _, model = train_and_read(replace(made, dataset=replace(dataset, split=split)), number, ("last",))
            for wanted, share in ((early & (fold == number), 1.0), (~early, 1 / FOLDS)):
                rows = np.flatnonzero(wanted)
                total[rows] += share * log_odds(score_rows(model, dataset, rows, device=torch.device("cpu")))
        np.save(path, total)
    memory = memory_fields(TableScores(store.start, store.time, np.load(path)))
    return with_fields(made, {name.replace("stage1", "network"): values for name, values in memory})


def gru(stages: Stages) -> Training:
    """A gated recurrent unit in the place of attention."""
    made = base(stages)
    return replace(made, model=replace(made.model, attention="benchmarks.lib.recurrent:RecurrentUnit"))


def histories(stages: Stages) -> Training:
    """Whole histories of 64 rows, each read once for all rows that are drawn from it."""
    made = base(stages)
    return replace(made, model=replace(made.model, form="histories", history_length=64))


def heads(made: Training) -> Training:
    """An ensemble of heads on one trunk."""
    return replace(made, model=replace(made.model, head="benchmarks.lib.shared_ensemble:SharedEnsemble"))


def muon(made: Training) -> Training:
    """Muon for the matrices."""
    return replace(made, optimizer=MuonAndAdamW)


FAMILIES: dict[str, Callable[[Stages], Training]] = {
    "base": base,
    "second_margin": second_margin,
    "no_trees": no_trees,
    "gru": gru,
    "heads": lambda stages: heads(base(stages)),
    "muon": lambda stages: muon(base(stages)),
    "no_trees_heads": lambda stages: heads(no_trees(stages)),
    "no_trees_muon": lambda stages: muon(no_trees(stages)),
    "histories": histories,
    "network_memory": network_memory,
    "pretrained": pretrained,
}
"""Trainings by name. Each is read in all the ways of `READINGS`."""
READ_SEEDS = 2
"""Seeds of which a training is read in several ways: to score all rows again costs a fifth of a training."""
SAMPLED_TREES = ("stage2_shares", "stage2_random", "stage2_hard")
SINGLE = (*SAMPLED_TREES, *RIVALS, *(f"{name}_scores" for name in RIVALS if name != "lightgbm"))
"""What is fitted once."""
READ: dict[str, tuple[str, ...]] = {"base": READINGS, "no_trees": READINGS, "second_margin": ("last", "whole")}
"""How a training is read where that is not its last weights alone."""


def name_of(family: str, reading: str) -> str:
    """Name of a variant in the record."""
    if reading == "last":
        return family
    return reading if family == "base" else f"{family}_{reading}"


def train_family(stages: Stages, family: str, seeds: int, left_out: Collection[str], recorder: Recorder) -> None:
    """Train a family with all seeds that are not recorded yet; read it in the ways that are not left out."""
    wanted: dict[int, tuple[str, ...]] = {}
    for seed in range(seeds):
        readings = READ.get(family, ("last",)) if seed < READ_SEEDS else ("last",)
        readings = tuple(each for each in readings if each not in left_out)
        if any(str(seed) not in recorder.cells.get(name_of(family, each), {}) for each in readings):
            wanted[seed] = readings
    if not wanted:
        return
    training = FAMILIES[family](stages)
    for seed, readings in wanted.items():
        found, seconds, _ = train_and_read(training, seed, readings)
        for reading, logits in found.items():
            variant = name_of(family, reading)
            np.savez(logits_file(stages, variant, seed), REWARD=logits[Split.REWARD], TEST=logits[Split.TEST])
            recorder.save(variant, seed, blended(stages, logits) | {"cpu_seconds": round(seconds, 1)})


def sampled_trees(stages: Stages, name: str) -> dict[str, Any]:
    """Figures of a second stage whose rows are weighted or chosen in another way."""
    dataset, label = stages.dataset, stages.dataset.store.label
    rows = dataset.rows(Split.TRAIN)
    fraud = label[rows] > 0
    weight = np.ones(len(rows))
    if name == "stage2_shares":
        pools = Pools.of(dataset)
        schedule = stages.prepared.schedule
        draws = schedule.epochs * schedule.steps_per_epoch * stages.prepared.config.batch_size
        share = stages.treatment.first_weights(pools.train_counts, pools.reward_counts, epochs=schedule.epochs, batch_budget=draws).share
        weight = (share / class_prior(pools.train_counts))[label[rows]]
    elif name in ("stage2_random", "stage2_hard"):
        score = np.ones(len(rows))
        if name == "stage2_hard":
            chance = 1 / (1 + np.exp(-dataset.store.values[rows, 0].astype(np.float64)))
            score += chance / chance[~fraud].mean()
        # Half of the rows are drawn evenly, the others in proportion to the error of the first stage.
        kept = np.where(fraud, 1.0, np.minimum(1.0, KEPT_NEGATIVES * score / score[~fraud].mean()))
        drawn = generator(0, name).random(len(rows)) < kept
        rows, weight = rows[drawn], 1 / kept[drawn]
    started = time.process_time()
    raw = np.zeros(len(dataset.rows(Split.TEST)))
    stop = None if few_frauds(dataset) else TreeRows(dataset.rows(Split.REWARD), None)
    for member in range(second_members(dataset)):
        seed = integer_seed(0, "second stage", member)
        text = fit_rows(dataset, TreeRows(rows, weight), stop, seed=seed, threads=1, progress=lambda *_: None)
        raw += TreeEnsemble.from_text(text).raw(dataset.store.values[dataset.rows(Split.TEST)])
    return figures(stages.fraud(Split.TEST), raw) | {"cpu_seconds": round(time.process_time() - started, 1), "rows": len(rows)}


def rival(stages: Stages, name: str) -> dict[str, Any] | None:
    """Figures of another learner; None where it is not installed."""
    learner = name.removesuffix("_scores")
    reason = missing_rival(learner)
    if reason is not None:
        print(reason, file=sys.stderr)
        return None
    dataset = stages.dataset if name.endswith("_scores") else stages.dataset.without_score_fields()
    started = time.process_time()
    score = RIVALS[learner](dataset, 0)
    return figures(stages.fraud(Split.TEST), score) | {"cpu_seconds": round(time.process_time() - started, 1)}


def logits_file(stages: Stages, variant: str, seed: int) -> Path:
    """Where the log-odds of a network are kept."""
    folder = stages.folder / "logits"
    folder.mkdir(exist_ok=True)
    return folder / f"{variant}-{seed}.npz"


def ensemble(stages: Stages, variant: str, seeds: int) -> dict[str, Any] | None:
    """Figures of the mean of the logits of several seeds; None where some are not kept."""
    files = [logits_file(stages, variant, seed) for seed in range(seeds)]
    if not all(file.exists() for file in files):
        return None
    each = [np.load(file) for file in files]
    return blended(stages, {split: np.mean([arrays[split.name] for arrays in each], axis=0) for split in SPLITS}) | {"seeds": seeds}


def error(values: list[float]) -> float | None:
    """Standard error of a mean; None for a single value."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def summary(cells: Cells) -> dict[str, Any]:
    """Mean of every variant, and its paired difference to ``base`` over the seeds that both have."""
    found: dict[str, Any] = {}
    for variant, by_seed in cells.items():
        line: dict[str, Any] = {"seeds": len(by_seed)}
        reference = cells.get("no_trees" if variant.startswith("no_trees") else "base", {})
        both = [seed for seed in by_seed if seed in reference]
        for part in ("network", "blend"):
            line[part] = {
                "average_precision": statistics.mean(cell[part]["average_precision"] for cell in by_seed.values()),
                "false_alarms_per_10k": {
                    f"{recall:.2f}": statistics.mean(cell[part]["false_alarms_per_10k"][f"{recall:.2f}"] for cell in by_seed.values())
                    for recall in RECALLS
                },
            }
            if both and by_seed is not reference:
                each = [by_seed[seed][part]["average_precision"] - reference[seed][part]["average_precision"] for seed in both]
                line[part] |= {"difference": statistics.mean(each), "standard_error": error(each)}
        line["weight"] = statistics.mean(cell["weight"] for cell in by_seed.values())
        line["cpu_seconds"] = statistics.mean(cell["cpu_seconds"] for cell in by_seed.values())
        found[variant] = line
    return found


def table(streams: dict[str, Any]) -> Iterator[str]:
    """Lines of a Markdown table of what is recorded, a row per variant and a column per stream.

    A network has its average precision, that of its blend, and the number of seeds; what is fitted once has
    its average precision, false alarms per 10,000 legitimate rows at recall .60, .70 and .80, and CPU
    seconds.
    """
    yield "| variant | " + " | ".join(streams) + " |"
    yield "|---|" + "---|" * len(streams)
    networks = [{name: _network_cell(line) for name, line in stream.get("summary", {}).items()} for stream in streams.values()]
    ensembles = [{name: _network_cell(line) for name, line in stream.get(ENSEMBLE, {}).items()} for stream in streams.values()]
    single = [{name: _single_cell(line) for name, line in stream.get("single", {}).items()} for stream in streams.values()]
    for columns in (networks, ensembles, single):
        for variant in dict.fromkeys(name for column in columns for name in column):
            yield f"| {variant} | " + " | ".join(column.get(variant, "") for column in columns) + " |"


def _network_cell(line: dict[str, Any]) -> str:
    parts = []
    for part in (line["network"], line["blend"]):
        text, spread = f"{part['average_precision']:.4f}", part.get("standard_error")
        text += f" {part['difference']:+.4f}" if "difference" in part else ""
        parts.append(text if spread is None else f"{text} ({spread:.4f})")
    return f"{parts[0]}; {parts[1]}; {line['seeds']}"


def _single_cell(line: dict[str, Any]) -> str:
    alarms = " / ".join(f"{value:.2f}" for value in line["false_alarms_per_10k"].values())
    seconds = f"; {line['cpu_seconds']:.0f} s" if "cpu_seconds" in line else ""
    return f"{line['average_precision']:.4f}; {alarms}{seconds}"


class Recorder:
    """The record of one stream.

    Args:
        name: The stream.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.content: dict[str, Any] = recorded(PATH).get("streams", {}).get(name, {})
        self.cells: Cells = self.content.setdefault("networks", {})
        self.single: dict[str, Any] = self.content.setdefault("single", {})

    def save(self, variant: str, seed: int, found: dict[str, Any]) -> None:
        """Add the figures of one training."""
        self.cells.setdefault(variant, {})[str(seed)] = rounded(found, 6)
        network, blend = (found[part]["average_precision"] for part in ("network", "blend"))
        print(f"{self.name} {variant} {seed}: network {network:.4f} blend {blend:.4f} w {found['weight']}", file=sys.stderr, flush=True)
        self.write()

    def save_single(self, name: str, found: dict[str, Any]) -> None:
        """Add the figures of what is fitted once."""
        self.single[name] = rounded(found, 6)
        print(f"{self.name} {name}: {found['average_precision']:.4f}", file=sys.stderr, flush=True)
        self.write()

    def write(self) -> None:
        """Write all figures; other streams in the file are kept."""
        self.content["summary"] = rounded(summary(self.cells), 6)
        streams = recorded(PATH).get("streams", {}) | {self.name: self.content}
        ordered = {name: streams[name] for name in STREAMS if name in streams}
        write({"streams": ordered}, PATH)


def measure(name: str, variants: list[str], seeds: int, left_out: Collection[str]) -> None:
    """Measure the variants on one stream."""
    recorder = Recorder(name)
    with opened_stages(name) as stages:
        if "stage2" not in recorder.single:
            first = stages.dataset.store.values[stages.dataset.rows(Split.TEST), 0]
            recorder.save_single("stage1", figures(stages.fraud(Split.TEST), first))
            recorder.save_single("stage2", figures(stages.fraud(Split.TEST), stages.second[Split.TEST]))
        for variant in variants:
            if variant in FAMILIES:
                train_family(stages, variant, seeds, left_out, recorder)
            elif variant not in recorder.single:
                found = sampled_trees(stages, variant) if variant in SAMPLED_TREES else rival(stages, variant)
                if found is not None:
                    recorder.save_single(variant, found)
        for family, readings in READ.items():
            count = len(recorder.cells.get(family, {}))
            for reading in readings:
                found = ensemble(stages, name_of(family, reading), count) if count > 1 else None
                if found is not None:
                    recorder.content.setdefault(ENSEMBLE, {})[f"{ENSEMBLE} of {name_of(family, reading)}"] = rounded(found, 6)
        recorder.write()


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--only", choices=STREAMS, help="one stream (default: all)")
    options.add_argument("--variants", default="all", help="names of variants, with commas between them")
    options.add_argument("--seeds", type=int, default=SEEDS, help=f"seeds of each network (default: {SEEDS})")
    options.add_argument("--without", default="", help=f"readings to leave out, of {', '.join(READINGS[1:])}")
    options.add_argument("--table", action="store_true", help="print the table of what is recorded and measure nothing")
    arguments = options.parse_args()
    variants = [*FAMILIES, *SINGLE] if arguments.variants == "all" else arguments.variants.split(",")
    unknown = sorted(set(variants) - {*FAMILIES, *SINGLE})
    if unknown:
        options.error(f"--variants names {unknown[0]}, which is none of {', '.join((*FAMILIES, *SINGLE))}")
    if not arguments.table:
        for name in [arguments.only] if arguments.only else STREAMS:
            reason = missing(name)
            if reason is not None:
                print(reason, file=sys.stderr)
                continue
            measure(name, variants, arguments.seeds, arguments.without.split(","))
    print("\n".join(table(recorded(PATH).get("streams", {}))))


if __name__ == "__main__":
    main()
