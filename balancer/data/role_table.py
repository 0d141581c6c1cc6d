"""The roles of all columns of a table, with the reasons."""

from __future__ import annotations

from dataclasses import dataclass

from balancer.data.column_roles import Choice
from balancer.data.examining import Examined
from balancer.data.spec import Spec
from balancer.tables.profile import ColumnProfile


@dataclass(frozen=True)
class ColumnRole:
    """A column of the table and what it is used for."""

    profile: ColumnProfile
    """What its values are."""
    choice: Choice
    """Its role and the reason."""

    @property
    def name(self) -> str:
        """Name of the column."""
        return self.profile.name


@dataclass(frozen=True, eq=False)
class Roles:
    """Roles of all columns of a table."""

    spec: Spec
    """The roles."""
    columns: tuple[ColumnRole, ...]
    """Every column in the order of the table."""
    notes: tuple[str, ...]
    """What the user should know: columns left out, one line for each reason."""
    doubts: tuple[str, ...]
    """Roles that are not clear, each with the flag that names it; empty unless `inferred` may leave them."""
    table: Examined
    """The table as it was examined."""
    cautions: tuple[str, ...] = ()
    """Warnings: what was changed so that the table can be used."""
