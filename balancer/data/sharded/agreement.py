"""Whether roles that are given, or those of a trained run, agree with those of a store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from balancer.data.schema import Schema
from balancer.data.sharded.files import StoreFiles
from balancer.data.spec import LIST_ROLES, Spec
from balancer.errors import InputError
from balancer.tables.options import PLAIN

_FIELDS = ("entity", "time", "amount", *LIST_ROLES, "label_delay")
"""Keys of a spec that fields depend on."""
_LABELS = ("label", "label_date")
_READING = ("negative", "unlabelled", "time_format", "time_unit", "id")


def check_spec(store: StoreFiles, spec: Spec) -> None:
    """Check that the roles to train with are those of a store; the split may be another.

    Raises:
        InputError: They differ; the message names the flags.
    """
    refuse(store, {key: getattr(spec, key) for key in (*_FIELDS, *_LABELS)})


def check_run(store: StoreFiles, schema: Schema) -> None:
    """Check that a trained run can score the rows of a store.

    Raises:
        InputError: It uses columns in other roles, has other classes, or is of an earlier version.
    """
    if schema.values == PLAIN:
        raise InputError(f"{store.path} can't be scored with a run of an earlier version of balancer: give the table itself")
    spec, own = schema.spec, store.spec
    wanted = {key: getattr(spec, key) for key in _FIELDS}
    for key in _LABELS:
        if getattr(own, key) is not None and getattr(spec, key) is not None:
            wanted[key] = getattr(spec, key)
    refuse(store, wanted, "the run was trained with", "prepare another store with these flags")
    labelled = own.label is not None or own.label_date is not None
    unknown = [name for name in store.schema.classes if name not in schema.classes]
    if labelled and (unknown or store.schema.classes != schema.classes[: len(store.schema.classes)]):
        raise InputError(
            f"{store.path} has the classes {', '.join(store.schema.classes)}, and the run {', '.join(schema.classes)}: "
            "correct --label and --negative of balancer prepare"
        )


def refuse(
    store: StoreFiles,
    given: Mapping[str, Any],
    who: str = "the flags or the spec file give",
    remedy: str = "leave them out, or prepare another store",
) -> None:
    """Refuse roles that differ from those of a store.

    Args:
        store: The store.
        given: Values by key of a spec; other keys are not compared.
        who: Who gives them, for the message.
        remedy: What to do, for the message.

    Raises:
        InputError: A value differs; the message names each flag, both values and the remedy.
    """
    different = []
    for key in (*_FIELDS, *_LABELS, *_READING):
        if key not in given:
            continue
        own, other = getattr(store.spec, key), given[key]
        same = sorted(own) == sorted(other or ()) if key in LIST_ROLES else own == other
        if not same:
            different.append(f"--{key.replace('_', '-')} {_shown(other)} instead of {_shown(own)}")
    if different:
        raise InputError(f"{store.path} was prepared with other roles, {who} {', '.join(different)}: {remedy}")


def _shown(value: Any) -> str:
    return "none" if value is None or value == () else ",".join(value) if isinstance(value, tuple) else str(value)
