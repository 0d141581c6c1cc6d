"""Damaged tables: each is read, or refused in one sentence that names the file, the column or the flag.

Well-formed small tables of eight kinds of files are damaged in their cells, columns, labels, times or bytes.
Each goes the way of ``balancer train`` up to the store: roles, suspected leaks, store. Every 100th also goes
through the command line: ``train``, ``inspect``, and ``score`` with a trained run.

Claim: each ends in a data set without a warning of a library and without infinite values, or in an
InputError: one sentence without words of a library. Nothing half written is left. The script ends with status
1 otherwise.

    python -m benchmarks.claims.fuzz_tables             # -> benchmarks/results/fuzz_tables.json
    python -m benchmarks.claims.fuzz_tables --first 4711 --tables 1
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from balancer.cli import main as balancer
from balancer.data.dataset import load_dataset
from balancer.data.leaks import leak_notes, suspected_leaks
from balancer.data.roles import inferred
from balancer.errors import InputError
from benchmarks.lib.commands import parser
from benchmarks.lib.damage import damaged
from benchmarks.lib.recording import RESULTS, record

SEED = 20
EVERY = 100
"""Tables between two that also go through the command line."""
LONGEST = 600
"""Characters of a message, without the path of the table."""
LIBRARY_WORDS = re.compile(
    r"polars|traceback|computeerror|schemaerror|invalidoperation|panicked|rust|infer_schema|ignore_errors|try_parse|dtype|"
    r"lazyframe|pyarrow|numpy|nonetype|typeerror|valueerror|keyerror|str\.|pl\.|\bi64\b|\bf64\b|<class",
    re.IGNORECASE,
)
TINY = ("--epochs", "1", "--steps-per-epoch", "2", "--learner", "network", "--policy", "auto", "--d-model", "16", "--layers", "1")


def fault_of(message: str, path: Path) -> str | None:
    """What is wrong with the message of an InputError, or None."""
    if "\n" in message.strip():
        return "more than one line"
    shown = message.replace(str(path), "TABLE")
    if len(shown) > LONGEST:
        return f"{len(shown)} characters"
    found = LIBRARY_WORDS.search(re.sub(r"'[^']*'|\"[^\"]*\"", "", shown))  # values of the table are quoted
    if found:
        return f"a word of a library: {found[0]!r}"
    if not re.search(r"TABLE|column|--[a-z]|\[split\]|file", shown):
        return "names neither the file nor a column nor a flag"
    return None


def outcome(path: Path) -> tuple[str, str]:
    """Read a table as ``balancer train`` does: ``read``, ``refused`` or ``fault``, and the message."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            roles = inferred(path)
            leak_notes(suspected_leaks(roles))
            dataset = load_dataset(path, roles.spec, left_out=roles.notes)
        except InputError as error:
            fault = fault_of(str(error), path)
            result = ("refused", str(error)) if fault is None else ("fault", f"{fault}: {error}")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            last = traceback.extract_tb(error.__traceback__)[-1]
            own = [frame for frame in traceback.extract_tb(error.__traceback__) if "balancer" in frame.filename]
            place = own[-1] if own else last
            text = str(error).splitlines()[0] if str(error) else ""
            result = ("fault", f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno}: {text[:200]}")
        else:
            infinite = np.isinf(dataset.store.values).any(axis=0)
            names = np.array([*dataset.schema.numeric_fields, *dataset.schema.categorical_fields])
            result = ("fault", f"infinite values in {names[infinite].tolist()}") if infinite.any() else ("read", "")
    if caught and result[0] != "fault":
        return "fault", f"warning: {caught[0].category.__name__} in {Path(caught[0].filename).name}: {str(caught[0].message)[:200]}"
    return result


def command(arguments: list[str], path: Path, written: Path) -> str | None:
    """Run a command in this process; what is wrong with how it ends, or None."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = balancer(arguments)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if code == 0:
        return None if written.exists() else "nothing was written"
    errors = [line for line in err.getvalue().splitlines() if not line.startswith(("warning: ", "note: "))]
    if code != 2 or len(errors) != 1 or not errors[0].startswith("error: "):
        return f"exit code {code}: {err.getvalue()[:300]}"
    if written.exists():
        return f"refused ({errors[0][:200]}), but {written.name} was written"
    return fault_of(errors[0].removeprefix("error: "), path)


@contextlib.contextmanager
def watched_folder() -> Iterator[Path]:
    """A folder for temporary files that is examined and removed at the end."""
    before, folder = tempfile.tempdir, Path(tempfile.mkdtemp(prefix="fuzz-"))
    tempfile.tempdir = str(folder / "temporary")
    Path(tempfile.tempdir).mkdir()
    try:
        yield folder
    finally:
        tempfile.tempdir = before
        shutil.rmtree(folder, ignore_errors=True)


def trained(folder: Path) -> Path:
    """A small run on a table with the columns of the damaged ones."""
    from benchmarks.lib.damage import table

    path, run = folder / "training.parquet", folder / "run"
    table(np.random.default_rng(0)).write_parquet(path)
    with contextlib.redirect_stdout(io.StringIO()):
        assert balancer(["train", "--dataset", str(path), "--out", str(run), *TINY]) == 0
    return run


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--tables", type=int, default=10_000, help="number of tables")
    options.add_argument("--first", type=int, default=0, help="number of the first table")
    options.add_argument("--every", type=int, default=EVERY, help="every which table also goes through the command line; 0: none")
    arguments = options.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    started, counts, kinds, faults = time.monotonic(), Counter[str](), Counter[str](), []
    messages: dict[str, str] = {}
    commands = 0
    with watched_folder() as folder:
        run = trained(folder) if arguments.every else None
        for number in range(arguments.first, arguments.first + arguments.tables):
            place = folder / f"{number}"
            place.mkdir()
            path, done = damaged(SEED, number, place)
            files = sorted(file for file in place.rglob("*"))
            result, text = outcome(path)
            found = [text] if result == "fault" else []
            if run is not None and (number - arguments.first) % arguments.every == 0:
                commands += 3
                target = {"train": place / "new-run", "score": place / "scored.csv", "inspect": place / "spec.toml"}
                for name, each in {
                    "train": ["train", "--dataset", str(path), "--out", str(target["train"]), *TINY],
                    "score": ["score", str(run), "--input", str(path), "--output", str(target["score"])],
                    "inspect": ["inspect", str(path), "--out", str(target["inspect"])],
                }.items():
                    wrong = command(each, path, target[name])
                    found += [f"{name}: {wrong}"] if wrong else []
                    written = target[name]
                    shutil.rmtree(written) if written.is_dir() else written.unlink(missing_ok=True)
            left = [file.name for file in sorted(place.rglob("*")) if file not in files]
            found += [f"left behind: {left}"] if left else []
            counts["fault" if found else result] += 1
            kinds[f"{done[0]}: {result}"] += 1
            if result == "refused":
                messages.setdefault(re.sub(r"\d+", "0", re.sub(r"'[^']*'", "X", text.replace(str(path), "TABLE"))), text)
            for fault in found:
                shown = f"table {number} ({', '.join(done)}): {fault}"
                faults.append(shown)
                print(shown, file=sys.stderr, flush=True)
            shutil.rmtree(place)
        left = os.listdir(folder / "temporary")
    result_of_all: dict[str, Any] = {
        "tables": arguments.tables,
        "first": arguments.first,
        "seed": SEED,
        "commands": commands,
        "outcomes": dict(counts),
        "by_kind": dict(sorted(kinds.items())),
        "different_messages": len(messages),
        "temporary_files_left": len(left),
        "faults": faults[:50],
        "seconds": round(time.monotonic() - started, 1),
    }
    whole = arguments.first == 0 and arguments.tables >= 10_000
    record(result_of_all, RESULTS / "fuzz_tables.json" if whole else Path(tempfile.gettempdir()) / "fuzz_tables.json")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
