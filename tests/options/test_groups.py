"""The groups of options: their checks, and the commands that are composed of them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from balancer.comparison.config import CompareConfig
from balancer.errors import InputError
from balancer.models import parts
from balancer.names import AUXILIARY_TASKS, PARTS
from balancer.options.data import ROLES, DataOptions, TableOptions
from balancer.options.fit import BUDGETS, Budget, FitOptions, ScheduleOptions, StartOptions, TaskOptions
from balancer.options.flags import Options, from_dict, parameters, parse, to_dict
from balancer.options.model import LONG_HISTORY, ModelOptions, SizeOptions
from balancer.options.policy import POLICIES, PolicyOptions, check_policy
from balancer.options.pretrain import PretrainConfig
from balancer.options.run import RunOptions
from balancer.options.train import TrainConfig
from balancer.sampling.policies import load_policy
from balancer.training.preparation import prepare

COMMANDS: dict[type, tuple[type[Options], ...]] = {
    TrainConfig: (DataOptions, ModelOptions, FitOptions, TaskOptions, StartOptions, PolicyOptions, RunOptions),
    PretrainConfig: (DataOptions, ModelOptions, FitOptions, RunOptions),
    CompareConfig: (TableOptions, SizeOptions, ScheduleOptions, RunOptions),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_made_of_groups(command: type) -> None:
    assert all(issubclass(command, group) for group in COMMANDS[command])
    assert all(each.flag.help for each in parameters(command)), "every flag is documented"
    assert all(each.heading for each in parameters(command)), "every flag is in a group"


@pytest.mark.parametrize(
    ("group", "values", "named"),
    [
        (FitOptions, {"epochs": 0}, "--epochs is 0"),
        (FitOptions, {"learning_rate": 0.0}, "--learning-rate"),
        (FitOptions, {"warmup": 1.5}, "--warmup"),
        (ModelOptions, {"dropout": 1.0}, "--dropout"),
        (ModelOptions, {"global_nodes": -1}, "--global-nodes is -1: give a whole number from 0 up"),
        (ModelOptions, {"form": "histories", "history_length": 1}, "--form histories"),
        (PolicyOptions, {"policy_rollouts": 0}, "--policy-rollouts"),
        (RunOptions, {"seed": -1}, "--seed is -1: give a whole number from 0 to 2147483647"),
        (RunOptions, {"threads": 0}, "--threads"),
        (RunOptions, {"threads": 1_000_000}, "--threads is 1000000: give a whole number from 1 to 1024"),
        (RunOptions, {"resume": True}, "--resume needs --out"),
        (StartOptions, {"train_only": ("head",)}, "--train-only needs --from"),
        (StartOptions, {"from_": Path("x"), "train_only": ()}, "--train-only names no part"),
        (StartOptions, {"adapter_rank": 0}, "--adapter-rank"),
        (TaskOptions, {"tasks": ("next_day",)}, "--tasks: unknown task 'next_day'; did you mean"),
        (TaskOptions, {"task_weights": "heavy"}, "--task-weights is 'heavy'"),
    ],
)
def test_each_group_checks_its_fields(group: type, values: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        group(**values)
    with pytest.raises(InputError, match=named):
        TrainConfig(dataset=Path("x"), **values)


def test_groups_are_used_without_a_dataset() -> None:
    assert FitOptions().schedule() == BUDGETS["quick"]
    assert FitOptions(budget="thorough", epochs=3).schedule() == Budget(3, BUDGETS["thorough"].steps_per_epoch)
    assert TaskOptions(tasks=("next_time",), task_weights="uncertainty").fixed_task_weights() is None
    assert TaskOptions(tasks=("next_time",)).fixed_task_weights() == {"next_time": 0.1}
    assert StartOptions(from_=Path("x"), train_only=("adapter",), adapter_rank=4).new_adapter_rank() == 4
    assert StartOptions(adapter_rank=4).new_adapter_rank() == 0
    assert parts.PARTS == PARTS
    assert all(task.startswith(("next_", "masked_")) for task in AUXILIARY_TASKS)


def test_auto_follows_the_length_of_the_history() -> None:
    short, long = ModelOptions(), ModelOptions(history_length=LONG_HISTORY)
    assert (short.parts(has_entity=True)["attention"], short.parts(has_entity=True)["form"]) == ("dense", "rows")
    assert (long.parts(has_entity=True)["attention"], long.parts(has_entity=True)["form"]) == ("sparse", "histories")
    alone = long.parts(has_entity=False)
    assert (alone["history_length"], alone["attention"], alone["form"]) == (1, "dense", "rows")


def test_roles_are_those_that_were_given() -> None:
    options = TableOptions(dataset=Path("x"), entity="card", numeric=(), gap="2d")
    assert options.role_overrides() == {"entity": "card", "numeric": (), "gap": "2d"}
    assert set(ROLES) <= {each.name for each in fields(TableOptions)}


def test_the_dataset_is_not_required_to_resume() -> None:
    with pytest.raises(InputError, match="--dataset is missing: it is required, unless --resume is given"):
        parse(TrainConfig, "balancer train", [])
    assert parse(TrainConfig, "balancer train", ["--resume", "--out", "run"]) == {"resume": True, "out": Path("run")}


def test_defaults_that_differ_between_commands() -> None:
    train, pretrain = TrainConfig(dataset=Path("x")), PretrainConfig(dataset=Path("x"))
    compare = CompareConfig(dataset=Path("x"))
    assert (train.dropout, pretrain.dropout) == (0.2, 0.1)
    assert (train.d_model, compare.d_model, train.history_length, compare.history_length) == (64, 32, None, 8)  # None: by the learner
    assert (train.epochs, compare.epochs, compare.steps_per_epoch) == (None, 10, 40)


def test_pretraining_is_a_run_with_two_tasks_and_no_flags_of_a_head() -> None:
    run = PretrainConfig(dataset=Path("x"), budget="standard", epochs=3, seed=5).as_train()
    assert (run.epochs, run.steps_per_epoch, run.seed, run.dropout, run.field_dropout) == (3, 300, 5, 0.1, 0.0)
    assert (run.tasks, run.task_weights, run.policy) == (("next_fields", "masked_fields"), "1", "start")
    with pytest.raises(InputError, match="unknown flag --head"):
        parse(PretrainConfig, "balancer pretrain", ["--dataset", "x", "--head", "binary"])


def test_a_saved_configuration_is_read_again() -> None:
    config = TrainConfig(dataset=Path("x"), from_=Path("base"), train_only=("head",), tasks=("next_time",), categorical=("a", "b"))
    assert from_dict(TrainConfig, json.loads(json.dumps(to_dict(config)))) == config
    assert next(iter(to_dict(config))) == "dataset"


@pytest.mark.parametrize("run", ["rows", "histories", "unfinished", "pretrained"])
def test_configurations_of_version_0_1_are_read(run: str) -> None:
    saved = json.loads((Path(__file__).parents[1] / "stored" / "0.1" / run / "run.json").read_text())["config"]
    config = from_dict(TrainConfig, saved)
    assert config.history_length == saved["history"]
    assert config.attention_window == saved["window"]
    assert config.form == {"window": "rows", "sequence": "histories"}.get(saved["form"], saved["form"])


def test_options_load_no_library() -> None:
    code = """
import sys
import balancer.options.pretrain, balancer.options.train
print([name for name in ("numpy", "polars", "torch") if name in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("name", POLICIES)
def test_every_listed_policy_can_be_loaded(name: str) -> None:
    check_policy(name, "--policy")
    load_policy(name, num_classes=2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ruel", "--policy: no policy at 'ruel'; did you mean 'rule'? known: auto"),
        ("", "--policy: no policy at ''"),
        ("constant:share=.5,share=.6", "--policy constant:share=.5,share=.6: the option share is given 2 times; give it once"),
        ("constant:share=root,hardness=1,share=.6", "the option share is given 2 times"),
        ("random:seed=1,seed=1,seed=2", "the option seed is given 3 times"),
    ],
)
def test_an_unknown_policy_and_a_repeated_option_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        check_policy(text, "--policy")
    assert message in str(raised.value)
    config = TrainConfig(dataset=Path("x"), policy=text)
    with pytest.raises(InputError) as raised:
        prepare(config, Console())
    assert message in str(raised.value)


def test_a_policy_with_options_and_a_folder_are_accepted(tmp_path: Path) -> None:
    check_policy("constant:share=.2,hardness=1", "--policy")
    check_policy(str(tmp_path), "--policy")
