"""Infer the roles of columns from their names and values, where no role was given.

What is special: every column has a reason for its role, or for being left out. Where two columns match a role
equally well, neither is chosen and the error names the flag. Columns that are constant within each entity are
left out even if they look useful: a model would memorise accounts with them (which card already had a fraud)
instead of learning behaviour.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from balancer.data.clock_role import clock_columns, time_reason
from balancer.data.column_roles import MAX_CATEGORIES, STATIC, UNNAMED, Choice, feature_role, is_fact, notes, out, was_feature
from balancer.data.delay import fitting_delay
from balancer.data.examining import Examined, examine, varied
from balancer.data.label_role import MAX_CLASSES, no_label, only_candidate
from balancer.data.reading import Source, column_names
from balancer.data.role_names import RANKS, is_id, is_other_date, rank
from balancer.data.role_table import ColumnRole, Roles
from balancer.data.row_times import FOUND_NO_TIME
from balancer.data.separation import separating
from balancer.data.sharded.kept_roles import given_roles, stored_roles
from balancer.data.spec import COLUMN_ROLES, LIST_ROLES, Spec, SplitSpec, nearest
from balancer.errors import InputError
from balancer.names import listed
from balancer.tables.joined import JOINED, parts
from balancer.tables.kinds import is_store
from balancer.tables.options import ReadOptions
from balancer.tables.profile import ColumnProfile
from balancer.tables.source import names_its_table

__all__ = ["MAX_CATEGORIES", "ColumnRole", "Roles", "Spec", "SplitSpec", "inferred", "resolve_spec"]

_ENOUGH_ROWS = 20
"""Rows from which a column whose values are all different is taken for ids."""


@names_its_table
def resolve_spec(
    source: Source, *, spec_file: str | Path | None = None, overrides: Mapping[str, Any] | None = None, need_label: bool = True
) -> Spec:
    """Resolve the roles of the columns of a table.

    Flags take precedence over the spec file. The remaining roles are inferred from names and values where
    they are unambiguous.

    Args:
        source: The table.
        spec_file: TOML file with the keys of `Spec`.
        overrides: The same keys, from flags. None means "not given", `"none"` means "no column has this
            role". `train`, `validation`, `test` and `gap` may be given here instead of in `split`.
        need_label: Whether a label column is required.

    Raises:
        InputError: If a key is unknown, a column is missing, a role is ambiguous, or no column is a feature;
            the message names the flag.
    """
    if is_store(source):
        return stored_roles(source, given_roles(spec_file, overrides), need_label=need_label).spec
    given = _given(source, spec_file, overrides)
    if all(role in given for role in (*COLUMN_ROLES, *LIST_ROLES) if role != "label_date"):
        spec = _finished(given, need_label, column_names(source, ReadOptions.from_dict(given["read"])))
    else:
        spec = _Inference(examine(source, ReadOptions.from_dict(given["read"])), given).spec(need_label)
    return spec if "label_delay" in given else fitting_delay(source, spec)[0]


@names_its_table
def inferred(
    source: Source,
    *,
    spec_file: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    need_label: bool = True,
    doubtful: bool = False,
    earlier: bool = False,
) -> Roles:
    """Resolve the roles as `resolve_spec` does, with the reason for the role of each column.

    Args:
        source: As for `resolve_spec`.
        spec_file: As for `resolve_spec`.
        overrides: As for `resolve_spec`.
        need_label: As for `resolve_spec`.
        doubtful: Whether a role that is not clear is left without a column and reported in `Roles.doubts`
            instead of raising.
        earlier: Whether to infer features as versions did that used no column of integers, and no text with
            more than `MAX_CATEGORIES` values.

    Raises:
        InputError: As `resolve_spec`.
    """
    if is_store(source):
        return stored_roles(source, given_roles(spec_file, overrides), need_label=need_label and not doubtful)
    given = _given(source, spec_file, overrides)
    inference = _Inference(examine(source, ReadOptions.from_dict(given["read"])), given, doubtful=doubtful)
    spec = inference.spec(need_label, earlier=earlier)
    choices = inference.choices(spec)
    delay = None
    if "label_delay" not in given:
        spec, delay = fitting_delay(source, spec)
    left_out = notes(choices.items(), spec.entity)
    columns = tuple(ColumnRole(profile, choices[name]) for name, profile in inference.profiles.items())
    return Roles(spec, columns, (*inference.said, *left_out), tuple(inference.doubts), inference.table, (delay,) if delay else ())


def _given(source: Source, spec_file: str | Path | None, overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    """The keys of a spec that the file and the flags give, for the columns of a table."""
    given = given_roles(spec_file, overrides)
    names = column_names(source, ReadOptions.from_dict(given["read"]))
    for role in (*COLUMN_ROLES, *LIST_ROLES):
        columns = given.get(role) or ()
        for column in (columns,) if isinstance(columns, str) else columns:
            for part in parts(column, names):
                if part not in names:
                    flag = "--" + role.replace("_", "-")
                    raise InputError(f"the table has no column {part!r} for the role {role} ({flag}): {nearest(part, names)}")
    return given


def _finished(given: dict[str, Any], need_label: bool, names: Collection[str]) -> Spec:
    if need_label and not given.get("label") and not given.get("label_date"):
        raise no_label(list(names))
    _check_features(given, names)
    return Spec.from_dict(given)


def _check_features(given: Mapping[str, Any], names: Collection[str]) -> None:
    if not any(given.get(role) for role in ("amount", "entity", *LIST_ROLES)):
        raise InputError(f"no column can be a feature: name columns with --numeric or --categorical; columns: {listed(names)}")


class _Inference:
    """Fills the roles that are not given.

    Args:
        table: The table.
        given: Keys of a spec; roles are added.
        doubtful: Whether what is not clear is kept in `doubts` instead of raising.
    """

    def __init__(self, table: Examined, given: dict[str, Any], *, doubtful: bool = False) -> None:
        self.table, self.given = table, given
        self.profiles = table.profiles
        self._asked = frozenset(given)
        self.by_its_name: set[str] = set()
        """Columns whose role was found, not given."""
        self.said: list[str] = []
        """Notes about roles that no column has."""
        self.doubts: list[str] = []
        """What is not clear."""
        self._doubtful = doubtful
        self._chosen: dict[str, Choice] = {}

    def spec(self, need_label: bool, *, earlier: bool = False) -> Spec:
        """Fill every role; with `earlier`, features as versions did that used no column of integers.

        Raises:
            InputError: A role is not clear, or there is no feature.
        """
        given, names = self.given, self.profiles
        with self._kept():
            self._find_time()
        given.setdefault("time", None)
        for role in ("label", "entity", "amount", "id"):
            if role not in given:
                given[role] = None
                with self._kept():
                    given[role] = self._by_name(role)
                if given[role] is not None:
                    self.by_its_name.add(given[role])
        self._find_unique()
        with self._kept():
            self._check_time()
        if need_label and not given["label"] and not given.get("label_date") and not self._unclear("label"):
            with self._kept():
                raise no_label(self._free(), self.profiles)
        self._find_features(earlier=earlier)
        with self._kept():
            _check_features(given, names)
        return Spec.from_dict(given)

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Keep an error as a doubt, if doubts are allowed."""
        try:
            yield
        except InputError as error:
            if not self._doubtful:
                raise
            self.doubts.append(str(error))

    def _unclear(self, role: str) -> bool:
        """Whether several columns may have the role."""
        return any(doubt.startswith(f"several columns may be the {role} ") for doubt in self.doubts)

    def _free(self) -> list[str]:
        held = [self.given.get(role) for role in COLUMN_ROLES]
        named = [name for name in held if name] + [name for role in LIST_ROLES for name in self.given.get(role, ())]
        taken = {part for name in named for part in parts(name, self.profiles)}
        return [name for name in self.profiles if name not in taken]

    def _best(self, role: str, names: list[str]) -> list[str]:
        """The columns of the highest rank that any of `names` has."""
        ranks = {name: place for name in names if (place := rank(role, name)) is not None}
        return [name for name, place in ranks.items() if place == min(ranks.values())]

    # The time ----------------------------------------------------------------------------------------------

    def _find_time(self) -> None:
        """Find the column of the time, or a date and a time of day that are joined."""
        if "time" in self.given:
            return
        found = self._time()
        self.given["time"] = found
        if found is not None:
            self.by_its_name.update(parts(found, self.profiles))

    def _time(self) -> str | None:
        free = [name for name in self._free() if not is_other_date(name)]
        kinds = {name: self.profiles[name] for name in free}
        dates = [name for name in free if kinds[name].kind == "date"]
        moments = [name for name in dates if kinds[name].clock]
        last = len(RANKS["time"]) - 1  # the patterns of this rank fit a travel time or the date of a birth too
        if moments:
            return self._single(moments, self._best("time", [name for name in moments if rank("time", name) != last]))
        clocks = [name for name in free if kinds[name].kind == "time"]
        days = self._best("time", dates) or dates
        if len(days) == 1:
            clocks = clocks or clock_columns(self.table.sample, free)
        if len(days) == 1 and len(clocks) == 1:
            return f"{days[0]}{JOINED}{clocks[0]}"
        numbers = [name for name in free if kinds[name].numeric and rank("time", name) not in (None, last)]
        if numbers := self._best("time", numbers):
            return self._single(numbers, numbers)
        if dates:
            return self._single(dates, days)
        # Text that is no time in a column named "time": its check names the row and what can be read.
        named = [name for name in free if rank("time", name) == 0 and kinds[name].kind not in ("time", "boolean")]
        return named[0] if len(named) == 1 else None

    def _single(self, candidates: list[str], best: list[str]) -> str:
        for found in (candidates, best):
            if len(found) == 1:
                return found[0]
        raise InputError(f"several columns may be the time ({listed(best or candidates)}): name it with --time")

    def _check_time(self) -> None:
        """Note that there is no time; with an entity, whose rows form a history, that is an error.

        Raises:
            InputError: There is an entity.
        """
        if self.given["time"] is not None or "time" in self._asked or self.doubts:
            return
        if self.given.get("entity"):
            raise InputError(
                "no time column was recognised: name it with --time, or give --time none where the rows of each "
                f"{self.given['entity']} are in order; columns: {listed(self.profiles)}"
            )
        self.said.append(FOUND_NO_TIME)

    # Roles by name -----------------------------------------------------------------------------------------

    def _by_name(self, role: str) -> str | None:
        """Find the column of a role by its name, or None.

        Raises:
            InputError: If two columns fit equally well.
        """
        if role == "label" and self.given.get("label_date"):
            return None
        able = [name for name in self._free() if self._can_be(role, self.profiles[name], rank(role, name))]
        found = self._best(role, able)
        if role == "label" and len(found) > 1:
            found = [name for name in found if 2 <= self.profiles[name].distinct <= MAX_CLASSES] or found
        if len(found) > 1 and role in ("amount", "id") and (rank(role, found[0]) or 0) > 0:
            return None
        if len(found) > 1:
            none = "" if role == "label" else f" (or give --{role} none)"
            raise InputError(f"several columns may be the {role} ({listed(found)}): name it with --{role}{none}")
        if role == "label" and not found:
            return only_candidate(self._free(), self.profiles)
        return found[0] if found else None

    def _can_be(self, role: str, column: ColumnProfile, place: int | None) -> bool:
        if place is None:
            return False
        unique = column.unique and column.rows >= _ENOUGH_ROWS
        if role == "label":
            return place == 0 or (2 <= column.distinct <= MAX_CLASSES and column.kind != "date")
        if role == "entity":
            few = column.distinct <= 4 and column.repeats >= 1000
            able = column.kind in ("integer", "text", "number") and (column.whole or not column.numeric)
            return able and not unique and not few
        if role == "amount":
            return column.numeric or (place == 0 and column.kind in ("text", "constant", "empty"))
        return (unique or column.rows < _ENOUGH_ROWS) and column.kind != "date" and (column.whole or not column.numeric)

    def _find_unique(self) -> None:
        """Take a customer that is different in every row as the id of the row, where there is no other id."""
        if self.given["id"] is not None or "id" in self._asked:
            return
        found = [
            name
            for name in self._free()
            if self.profiles[name].unique and self.profiles[name].rows >= _ENOUGH_ROWS and not self.profiles[name].missing
            if rank("entity", name) == 0 and is_id(name) and self.profiles[name].kind in ("integer", "text")
        ]
        if len(found) == 1:
            self.given["id"] = found[0]
            self.by_its_name.add(found[0])

    # Features ----------------------------------------------------------------------------------------------

    def _find_features(self, *, earlier: bool) -> None:
        """Fill the lists that are not given."""
        given = self.given
        free, timed = self._free(), given["time"] is not None
        second = separating(self.table, given, [name for name in free if is_fact(self.profiles[name])])
        self._chosen = {name: feature_role(self.profiles[name], context=timed, separates=name in second) for name in free}
        wanted = {name: each.role for name, each in self._chosen.items() if each.role and each.role not in given}
        if earlier:
            wanted = {name: each for name, each in wanted.items() if each == "context" or was_feature(self.profiles[name])}
        static = self._static([name for name, role in wanted.items() if role != "context"])
        for name in static:
            self._chosen[name] = out(STATIC, f"the same in all rows of one {given['entity']}")
        for role in LIST_ROLES:
            if role not in given:
                given[role] = tuple(name for name, each in wanted.items() if each == role and name not in static)

    def _static(self, names: list[str]) -> set[str]:
        """Columns that never vary within an entity, where entities have several rows."""
        entity = self.given.get("entity")
        if not entity or not names:
            return set()
        columns = parts(entity, self.profiles)
        if len(columns) == 1 and self.profiles[columns[0]].repeats < 1.5:
            return set()
        return set(names) - varied(self.table, columns, names)

    def choices(self, spec: Spec) -> dict[str, Choice]:
        """The role of each column, and the reason."""
        found = dict(self._chosen)
        for name in found:
            role = found[name].role
            if role and name not in getattr(spec, role):
                found[name] = out(UNNAMED, f"not among the columns given as {role}")
        for role in (*reversed(LIST_ROLES), *reversed(COLUMN_ROLES)):
            held = getattr(spec, role)
            for column in (held,) if isinstance(held, str) else held or ():
                for part in parts(column, self.profiles):
                    if part in self.by_its_name:
                        found[part] = Choice(role, self._why(role, part, column))
                    elif part not in found or found[part].role != role:
                        found[part] = Choice(role, "given" if part == column else f"given, part of {column}")
        return found

    def _why(self, role: str, name: str, column: str) -> str:
        held = self.profiles[name]
        if role == "time":
            return time_reason(held, column)
        if role == "entity":
            return f"by its name, {held.repeats:.1f} rows each"
        return "by its name, all different" if role == "id" else "by its name"
