"""Tables of the service: its latency, its throughput, and what its benchmark claims."""

from __future__ import annotations

from benchmarks.lib.service_claims import DATABASES, claims
from benchmarks.report.tables import load, table


def service() -> str:
    """The parts that were recorded: milliseconds by history, transactions a second, and the claims."""
    found = load("service")["results"]
    tables = []
    if "databases" in found.get("latency", {}):
        rows = []
        for name, database in found["latency"]["databases"].items():
            disk = database["disk"]
            for length, times in database["by_history"].items():
                beside = f"{disk['ms_p50']:.2f} / {disk['ms_p99']:.2f}"
                shown = [f"{times[key]:.2f}" for key in ("ms_p50", "ms_p99", "less_disk_ms_p99")]
                rows.append([DATABASES[name], f"{int(length):,}", *shown, beside])
        head = [
            "database",
            "earlier transactions of the card",
            "ms, median",
            "ms, 99 %",
            "less the disk's 99 %",
            "the disk alone, median / 99 %",
        ]
        tables.append(table(head, rows))
    if "cells" in found.get("throughput", {}):
        rows = []
        for cell in found["throughput"]["cells"]:
            used = cell["cpu_seconds_per_1000"]
            cpu = " / ".join(f"{used[name]:.2f}" if name in used else "-" for name in ("service", "database", "client"))
            where = [DATABASES[cell["database"]], cell["workers"], cell["clients"], cell["rows"], f"{cell['transactions_per_second']:,.0f}"]
            rows.append(
                [*where, f"{cell['ms_p99']:.0f}", cpu, f"{cell['rows_of_a_batch']:.0f}", f"{cell['wal_bytes_a_transaction'] / 1e3:.1f}"]
            )
        head = ["database", "workers", "clients", "transactions in a request", "transactions a second", "ms of a request, 99 %"]
        head += ["CPU s of 1,000: service / database / client", "committed together", "kB of log a transaction"]
        tables.append(table(head, rows))
    rows = [[claim["claim"], claim["wanted"], claim["found"], "yes" if claim["holds"] else "**no**"] for claim in claims(found)]
    return "\n\n".join([*tables, table(["claim", "wanted", "measured", "holds"], rows)])
