"""A spec as the text of a spec file, from which `balancer train --spec` reads the same spec."""

from __future__ import annotations

import json
from typing import Any

from balancer.data.spec import COLUMN_ROLES, DAY, LIST_ROLES, Spec

_HEAD = "# Roles of the columns of a table, for `balancer train --spec`.\n# A column without a role is left out."


def spec_text(spec: Spec, head: str = _HEAD) -> str:
    """Write a spec as TOML.

    Every role is written, so that nothing is inferred when the file is read.

    Args:
        spec: The spec.
        head: Comment at the beginning, each line with `#`.
    """
    values = spec.to_dict()
    split, read = values.pop("split"), values.pop("read", {})
    lines = [head]
    for key in ("entity", "time", "time_format", "time_unit", "label", "label_date", "negative", "unlabelled", "amount", "id"):
        value = values.get(key)
        if value is not None or (key in COLUMN_ROLES and key != "label_date"):
            lines.append(f"{key} = {_toml('none' if value is None else value)}")
    for key in LIST_ROLES:
        lines += _list(key, values[key])
    delay = duration(values["label_delay"])
    lines.append(f"label_delay = {_toml(delay if delay[-1] in 'dh' else values['label_delay'])}")
    lines += ["", "[split]", *(f"{key} = {_toml(value)}" for key, value in split.items() if value is not None)]
    if read:
        lines += ["", "[read]", *(f"{key} = {_toml(value)}" for key, value in read.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    # A basic string of TOML has the escapes of JSON, and DEL as well.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _list(key: str, names: list[str]) -> list[str]:
    short = f"{key} = {_toml(list(names))}"
    if len(short) <= 100:
        return [short]
    return [f"{key} = [", *(f"    {_toml(name)}," for name in names), "]"]


def duration(seconds: float) -> str:
    """A duration as flags and spec files have it: days or hours where it is whole, else seconds.

    >>> duration(604_800.0), duration(7_200.0), duration(90.0)
    ('7d', '2h', '90')
    """
    for unit, size in (("d", DAY), ("h", 3600.0)):
        if seconds and seconds % size == 0:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:g}"
