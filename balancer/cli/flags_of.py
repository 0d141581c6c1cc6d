"""The dataclass of every command's flags: what shell completion and the pages of the reference are made from.

A name is the command as it is typed after ``balancer``. The dataclasses are imported when they are asked for,
so this module costs nothing at the start.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

CONFIGS = {
    "inspect": "balancer.options.inspect:InspectConfig",
    "prepare": "balancer.options.prepare:PrepareConfig",
    "train": "balancer.options.train:TrainConfig",
    "pretrain": "balancer.options.pretrain:PretrainConfig",
    "score": "balancer.cli.score:ScoreConfig",
    "evaluate": "balancer.cli.evaluate:EvaluateConfig",
    "report": "balancer.cli.report:ReportConfig",
    "quantize": "balancer.cli.quantize:QuantizeConfig",
    "export": "balancer.cli.export:ExportConfig",
    "compare": "balancer.comparison.config:CompareConfig",
    "app": "balancer.cli.app:AppConfig",
    "serve": "balancer.serving.config:ServeConfig",
    "service migrate": "balancer.cli.service:MigrateConfig",
    "service purge": "balancer.cli.service:PurgeConfig",
    "service backup": "balancer.cli.service:BackupConfig",
    "service restore": "balancer.cli.service:RestoreConfig",
    "service import": "balancer.cli.service:ImportConfig",
    "service export": "balancer.cli.service:ExportConfig",
    "service monitor": "balancer.cli.service:MonitorConfig",
    "keys create": "balancer.cli.keys:CreateConfig",
    "keys list": "balancer.cli.keys:ListConfig",
    "keys revoke": "balancer.cli.keys:RevokeConfig",
    "policy train": "balancer.cli.policy:PolicyTrainConfig",
    "policy evaluate": "balancer.cli.policy:PolicyEvaluateConfig",
    "doctor": "balancer.cli.doctor:DoctorConfig",
    "simulate": "balancer.cli.simulate:SimulateConfig",
    "completion": "balancer.cli.completion:CompletionConfig",
}


def config_of(command: str) -> type:
    """The dataclass of the flags of a command."""
    module, _, name = CONFIGS[command].partition(":")
    found = getattr(import_module(module), name)
    assert isinstance(found, type)
    return found


def whole_parser() -> argparse.ArgumentParser:
    """One parser with every command, for shell completion; commands themselves are parsed one by one."""
    from balancer.cli import COMMANDS, SUMMARY

    parser = argparse.ArgumentParser("balancer", description=SUMMARY)
    commands = parser.add_subparsers()
    groups: dict[str, argparse._SubParsersAction[argparse.ArgumentParser]] = {}
    for command in CONFIGS:
        first, _, second = command.partition(" ")
        own = _completed(config_of(command), f"balancer {command}")
        if not second:
            commands.add_parser(first, parents=[own], add_help=False, help=COMMANDS[first])
            continue
        if first not in groups:
            groups[first] = commands.add_parser(first, help=COMMANDS[first]).add_subparsers()
        groups[first].add_parser(second, parents=[own], add_help=False, help=own.description.split("\n\n")[0] if own.description else "")
    return parser


def _completed(config: type, program: str) -> argparse.ArgumentParser:
    """The parser of a command whose flags say what may follow them: a file, or one of some values."""
    import shtab

    from balancer.options.flags import command_parser, parameters

    parser, known = command_parser(config, program), {each.name: each for each in parameters(config)}
    for action in parser._actions:
        if action.dest in known and known[action.dest].choices:
            action.choices = known[action.dest].choices
        elif action.dest in known and known[action.dest].kind is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return parser
