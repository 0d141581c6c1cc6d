"""Tables as fraud and imbalance teams have them, each trained with the flags that a user would give.

The tables are those of a script outside the checkout (``../shared/cases/tables.py``): exports of banks,
mobile money, intrusion logs, churn, daily folders, and tables that can't be trained on. Without the script
nothing is measured.

Claim: each ends in a result above chance, or in one sentence that says what to do. The script ends with
status 1 if one ends in a traceback, in more than one line, in a result at chance level without a warning, or
not as expected.

    python -m benchmarks.claims.case_tables             # -> benchmarks/results/case_tables.json
    python -m benchmarks.claims.case_tables --only 03_bank.csv
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from balancer.cli import main as balancer
from benchmarks.lib.commands import parser
from benchmarks.lib.recording import RESULTS, ROOT, record, recorded

SCRIPT = ROOT.parent / "shared" / "cases" / "tables.py"
SHORT = ("--budget", "quick", "--policy", "auto", "--epochs", "6", "--steps-per-epoch", "30", "--d-model", "16", "--layers", "1", "--json")
"""Flags of every training: a short one, of which the result is read as JSON."""
RESULT = RESULTS / "case_tables.json"
ABOVE_CHANCE = 1.5
"""Average precision divided by the positive share from which a result is above chance."""


@dataclass(frozen=True)
class Case:
    """A table and what a user types."""

    table: str
    flags: tuple[str, ...] = ()
    says: str | None = None
    """Part of the message if the table is refused; None: there is a result."""


CASES = (
    Case("01_paysim.csv", ("--time-unit", "h")),
    Case("02_ieee.csv", ("--entity", "card1+addr1")),
    Case("03_bank.csv"),
    Case("03b_bank_utf8.csv"),
    Case("03c_ddmm_bom.csv"),
    Case("03d_latin1.csv"),
    Case("04_chargeback_date.csv", says="--label-date"),
    Case("04_chargeback_date.csv", ("--label-date", "chargeback_date")),
    Case("04b_label40_plus_date.csv"),
    Case("05_intrusion_notime.csv", ("--label", "attack_cat")),
    Case("05b_intrusion_time.csv", ("--label", "attack_cat")),
    Case("05b_intrusion_time.csv", ("--label", "attack_cat", "--label-delay", "7d"), says="--label-delay"),
    Case("05c_churn.csv"),
    Case("06_tz_mixed.csv"),
    Case("06b_tz_z.csv"),
    Case("06c_tz_paris.parquet"),
    Case("07_yn.csv"),
    Case("08_daily"),
    Case("08b_daily_widths"),
    Case("09_plain.csv"),
    Case("09_gz.csv.gz"),
    Case("09b_tab.tsv"),
    Case("09c_csvfolder"),
    Case("10_three.csv", says="is_fraud"),
    Case("10b_three_all_in_train.csv", says="is_fraud"),
    Case("10c_none.csv", says="only the class '0'"),
    Case("11_wide.csv"),
    Case("12_empty.csv", says="empty"),
    Case("12b_zero_bytes.csv", says="empty"),
    Case("13_null_times.csv", says="--bad-rows drop"),
    Case("13_null_times.csv", ("--bad-rows", "drop")),
    Case("14_na_amount.csv", says="--bad-rows drop"),
    Case("14_na_amount.csv", ("--bad-rows", "drop")),
    Case("15_dollar.csv"),
    Case("17_epoch_ms.csv"),
    Case("18_capitals.csv"),
    Case("19_float_label.csv"),
    Case("20_shuffled.csv"),
    Case("21_date_and_time.csv"),
)


def trained(case: Case, table: Path, folder: Path) -> dict[str, Any]:
    """Train on one table, in this process.

    Args:
        case: The table and the flags.
        table: Where it is.
        folder: Where to write the run.

    Returns:
        ``outcome`` (``result``, ``message`` or ``fault``), figures or ``message``, and ``seconds``.
    """
    started, out, err = time.monotonic(), io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = balancer(["train", "--dataset", str(table), "--out", str(folder), *case.flags, *SHORT])
    except Exception:  # noqa: BLE001 - each is a fault of the table
        code = -1
        err.write(traceback.format_exc())
    lines = err.getvalue().splitlines()
    found: dict[str, Any] = {"table": case.table, "flags": " ".join(case.flags), "seconds": round(time.monotonic() - started, 1)}
    if code == 0:
        test = json.loads(out.getvalue())["test"]
        share = test["positives"] / test["rows"]
        found |= {"outcome": "result", "average_precision": round(test["average_precision"], 3), "positive_share": round(share, 3)}
        if test["average_precision"] < ABOVE_CHANCE * share and not any("chance" in line for line in lines):
            found |= {"outcome": "fault", "message": "at chance level, without a warning"}
        elif case.says is not None:
            found |= {"outcome": "fault", "message": f"expected a message with {case.says!r}"}
        return found
    errors = [line for line in lines if line.startswith("error: ")]
    message = errors[0].removeprefix("error: ").replace(str(table), table.name) if errors else err.getvalue()[-300:]
    good = code == 2 and len(errors) == 1 and lines[-1] == errors[0] and not folder.exists()
    if good and (case.says is None or case.says not in message):
        good, message = False, f"not expected: {message}"
    return found | {"outcome": "message" if good else "fault", "message": message}


def shown(row: dict[str, Any]) -> str:
    """A row of the printed table."""
    figures = f"AP {row['average_precision']:.3f}, positive share {row['positive_share']:.3f}" if "average_precision" in row else ""
    return f"{row['table']:<28} {row['seconds']:>5.1f} s  {row['outcome']:<8} {row['flags']:<32} {figures}{row.get('message', '')}"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--only", nargs="+", help="names of tables; the results of others are kept")
    arguments = options.parse_args()
    if not SCRIPT.is_file():
        print(f"not measured: there is no {SCRIPT}")
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["COLUMNS"] = "400"  # so that a message is a line
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, str(SCRIPT), str(folder / "tables")], check=True, capture_output=True)
        untried = {file.name for file in (folder / "tables").iterdir()} - {case.table for case in CASES}
        chosen = [case for case in CASES if arguments.only is None or case.table in arguments.only]
        for number, case in enumerate(chosen):
            rows.append(trained(case, folder / "tables" / case.table, folder / f"run-{number}"))
            print(shown(rows[-1]), flush=True)
    if arguments.only is not None:  # the other rows stay as they were measured
        new = {(row["table"], row["flags"]): row for row in rows}
        old = {(row["table"], row["flags"]): row for row in recorded(RESULT).get("cases", [])}
        places = [(case.table, " ".join(case.flags)) for case in CASES]
        rows = [(old | new)[place] for place in places if place in old | new]
    faults = [row["table"] for row in rows if row["outcome"] == "fault"]
    result = {"cases": rows, "faults": faults, "untried": sorted(untried)}
    record(result, RESULT)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
