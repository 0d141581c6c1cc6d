"""Check paths before a command imports torch and reads a table.

A mistyped path ends a command at once this way. The commands check the same again where they do the work, so
that a caller of their functions gets the same errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balancer.data.spec import read_spec_file
from balancer.errors import InputError, MissingFileError
from balancer.files import check_new_file, check_writable_folder
from balancer.tables.kinds import known_kind

if TYPE_CHECKING:
    from balancer.options.data import TableOptions

_SMALL = 20_000_000
"""Bytes of a file that is read in a moment."""
SCORES = (".parquet", ".csv")
"""Endings of files that tables are written to."""


def check_table(path: Path | None) -> None:
    """Check that a table exists and that its name is that of a table; None is allowed.

    Raises:
        InputError: There is no such file or folder, or the file is of an unknown kind.
    """
    if path is None:
        return
    if not path.exists():
        raise MissingFileError(f"{path} does not exist: check the path of the table")
    if path.is_file():
        known_kind(path)


def check_written_table(target: Path, flag: str, *, overwrite: bool, inputs: Mapping[str, Path | None] | None = None) -> None:
    """Check a file to which a table is written; see :func:`balancer.files.check_new_file`.

    Raises:
        InputError: Its name has another ending, it exists, it is an input, or it can't be written.
    """
    if target.suffix.lower() not in SCORES:
        raise InputError(f"{flag} {target}: give a file name that ends in {' or '.join(SCORES)}")
    check_new_file(target, flag, overwrite=overwrite, inputs=inputs)


def check_run(path: Path, *, dataset: Path | None = None, needs_table: bool = False) -> None:
    """Check that a run is complete, and where it is needed that its table is there.

    Args:
        path: The folder.
        dataset: Where the table of the run is now, if that was given.
        needs_table: Whether the command reads the table that the run was trained on.

    Raises:
        InputError: The run can't be used, or its table is missing.
    """
    from balancer.runs.run_folder import RunFolder

    folder = RunFolder.open_complete(path)
    if needs_table:
        folder.find_table(dataset)


def check_training(config: TableOptions, given: Mapping[str, Any]) -> None:
    """Check the paths of a command that trains: table, spec file, run folder, run to start from, policy.

    Args:
        config: The flags.
        given: Values that were typed, by field name.

    Raises:
        InputError: A path can't be used, or there is no such policy.
    """
    from balancer.runs.run_folder import RunFolder

    resume, out = given.get("resume"), given.get("out")
    if not resume:
        check_table(config.dataset)
        held = read_spec_file(config.spec) if config.spec is not None else {}
        if out is not None:
            RunFolder.refuse_existing(out)
            check_writable_folder(out, "--out")
        if config.dataset is not None and (config.label_delay is not None or config.gap is not None or "label_delay" in held):
            _check_gap(config, config.dataset)
    start, policy = given.get("from_"), given.get("policy")
    if start is not None:
        run = RunFolder.open(start)
        if not run.complete and not run.pretrained:
            raise InputError(f"--from {start} is not finished: continue it first with --resume --out {start}")
    if policy is not None:
        check_policy_name(policy, "--policy")


def _check_gap(config: TableOptions, dataset: Path) -> None:
    """Check that the gap that was given fits a small table: it is the first thing that is often changed.

    Raises:
        InputError: It does not, or the table can't be used.
    """
    if not dataset.is_file() or dataset.stat().st_size > _SMALL:
        return
    from balancer.data.delay import check_gap
    from balancer.data.roles import resolve_spec

    check_gap(dataset, resolve_spec(dataset, spec_file=config.spec, overrides=config.role_overrides(), need_label=False))


def check_policy_name(text: str, flag: str) -> None:
    """Check that a policy can be loaded.

    Raises:
        InputError: There is no policy of that name, an option can't be used, or a file is damaged.
    """
    from balancer.options.policy import check_policy

    check_policy(text, flag)
    from balancer.sampling.policies import load_policy

    load_policy(text, num_classes=2)
