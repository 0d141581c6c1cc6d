"""Find the column of the label where none was named, or name the candidates in the error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from balancer.data.role_names import is_alarm, is_second_label, rank
from balancer.errors import InputError
from balancer.names import listed
from balancer.tables.profile import ColumnProfile

MAX_CLASSES = 50
_RARELY = 0.5
"""Share of the rows without a value from which dates may be those of reports."""
_NAMED = 3


def only_candidate(names: Sequence[str], profiles: Mapping[str, ColumnProfile]) -> str | None:
    """The one column of yes and no that by its name can be the label, or None.

    Args:
        names: Columns without a role.
        profiles: Profiles of the columns.
    """
    found = [name for name in names if is_second_label(name) and not is_alarm(name) and _is_yes_or_no(profiles[name])]
    return found[0] if len(found) == 1 else None


def _is_yes_or_no(column: ColumnProfile) -> bool:
    return column.kind == "boolean" or (column.distinct == 2 and column.whole and column.low == 0 and column.high == 1)


def _has_classes(column: ColumnProfile, most: int) -> bool:
    distinct = column.distinct + (column.distinct == 1 and column.missing > 0)
    return 2 <= distinct <= most and column.kind not in ("date", "time", "other") and (column.whole or not column.numeric)


def no_label(names: Sequence[str], profiles: Mapping[str, ColumnProfile] | None = None) -> InputError:
    """The error that no column was recognised as the label; it names what may be the label.

    Args:
        names: The columns.
        profiles: Profiles of the columns, if they are known.
    """
    labels: list[str] = []
    if profiles is None:
        dates = [name for name in names if is_second_label(name) and rank("time", name) is not None]
    else:
        labels = [name for name in names if is_second_label(name) and _has_classes(profiles[name], MAX_CLASSES)]
        last = profiles[names[-1]] if names else None
        if last is not None and last.name not in labels and last.distinct == 2 and _has_classes(last, 2):
            labels.append(last.name)
        dates = [name for name in names if profiles[name].kind == "date" and (is_second_label(name) or profiles[name].missing > _RARELY)]
    may_be = f" ({listed(labels[:_NAMED])}?)" if labels else ""
    also = f", or the date on which a fraud was reported with --label-date ({listed(dates[:_NAMED])}?)" if dates else ""
    return InputError(f"no label column was recognised: name it with --label{may_be}{also}; columns: {listed(names)}")
