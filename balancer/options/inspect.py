"""The flags of ``balancer inspect``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from balancer.options.data import TABLE_KINDS, TableOptions
from balancer.options.flags import Flag


@dataclass(frozen=True, kw_only=True)
class InspectConfig(TableOptions):
    """Show what balancer train would use each column of a table for, and why.

    Below the columns stand notes, suspected leaks, the classes, the time span, and a spec file to start from.
    """

    HEADING: ClassVar[str] = "Output"

    dataset: Annotated[Path, Flag(f"Table: {TABLE_KINDS}.", metavar="TABLE", positional=True)]
    out: Annotated[Path | None, Flag("File to write the spec to, for balancer train --spec.", metavar="FILE")] = None
    overwrite: Annotated[bool, "Replace an existing file."] = False
    json: Annotated[bool, "Print everything as JSON."] = False
    bad_rows: Literal["error", "drop"] = field(default="drop", init=False)
