"""Which database the service uses: by a flag, a file, or the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from balancer.errors import InputError, MissingFileError
from balancer.options.flags import Flag, Options

DATABASE_VARIABLE = "BALANCER_DATABASE"
"""Environment variable with the URL of the database; other users of the machine can't read it."""
DEFAULT_DATABASE = "sqlite:///balancer-service.db"


@dataclass(frozen=True, kw_only=True)
class DatabaseOptions(Options):
    """The database of the service; a password belongs into a file or into BALANCER_DATABASE.

    Other users of the machine can read the flags of a process.
    """

    HEADING: ClassVar[str] = "Database"

    database: Annotated[
        str | None,
        Flag(
            "Database of the service: sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME.",
            metavar="URL",
            default=f"{DATABASE_VARIABLE} of the environment, else {DEFAULT_DATABASE}",
        ),
    ] = None
    database_file: Annotated[Path | None, Flag("File with the URL of the database, such as a mounted secret.", metavar="FILE")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.database is not None and self.database_file is not None:
            raise InputError("give --database or --database-file, not both")

    @property
    def database_url(self) -> str:
        """The URL: that of the flag, of the file, of the environment, or the default.

        Raises:
            InputError: The file can't be read or is not one line of text.
        """
        if self.database is not None:
            return self.database
        if self.database_file is None:
            return os.environ.get(DATABASE_VARIABLE) or DEFAULT_DATABASE
        if not self.database_file.is_file():
            raise MissingFileError(f"--database-file {self.database_file} does not exist: check the path")
        try:
            lines = self.database_file.read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--database-file {self.database_file} can't be read; it must be a text file with the URL") from error
        if len(lines) != 1:
            raise InputError(f"--database-file {self.database_file} has {len(lines)} words; write the URL of the database and nothing else")
        return lines[0]
