"""`balancer inspect`: a table that fits the terminal, JSON, and a spec file that gives the same roles."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from balancer.cli import main
from balancer.data.roles import resolve_spec


@pytest.fixture
def awkward(tmp_path: Path) -> Path:
    """A bank export: Latin-1, semicolons, decimal commas, day first, a leak, and columns to leave out."""
    rng = np.random.default_rng(0)
    rows = 900
    fraud = rng.random(rows) < 0.1
    frame = pl.DataFrame(
        {
            "Numéro_carte": 4970000000000000 + rng.integers(0, 60, rows),
            "Date_opération": [f"{1 + row % 28:02}/0{1 + row % 3}/2024 10:{row % 60:02}" for row in range(rows)],
            "Montant": [f"{value:.2f}".replace(".", ",") for value in rng.exponential(30, rows)],
            "Catégorie": rng.choice(["Café", "Hôtel [B]", "Épicerie"], rows),
            "statut_apres": np.where(fraud, "bloquée", "active"),
            "vide": [""] * rows,
            **{f"constante_{number}": ["x"] * rows for number in range(9)},
            "Fraude": np.where(fraud, "OUI", "NON"),
        }
    )
    path = tmp_path / "export.csv"
    path.write_bytes(frame.write_csv(separator=";").encode("latin-1"))
    return path


def test_the_table_fits_80_columns(awkward: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["inspect", str(awkward)]) == 0
    text = capsys.readouterr().out
    shown, _, spec = text.partition("# Roles of the columns")
    # A path has no space to break a line at.
    assert all(len(line) <= 80 for line in shown.splitlines() if str(awkward.parent) not in line)
    one_line = " ".join(shown.split())
    for part in (
        "900 rows, 16 columns",
        "Fraude label by its name 2 NON, OUI",
        "Catégorie categorical text, few values 3",
        "encoding latin-1, separator ';' and a decimal comma",
        "left out, empty, or the same in every row: vide, constante_0, constante_1, constante_2, constante_3 and 5 more",
        "suspected leak, alone separates the classes: statut_apres (AUC 1.000)",
        "classes: NON 8",
        "time: 2024-01-01 10:00:00 to 2024-03-",
        "(%d/%m/%Y %H:%M)",
    ):
        assert part in one_line, part
    assert 'time = "Date_opération"' in spec


def test_the_spec_that_is_written_gives_the_same_roles(awkward: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "spec.toml"
    assert main(["inspect", str(awkward), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert f"balancer train --dataset {awkward} --spec {out}" in printed.err.replace("\n", "")
    assert "# Roles of the columns" not in printed.out
    assert resolve_spec(awkward, spec_file=out) == resolve_spec(awkward)
    assert main(["inspect", str(awkward), "--out", str(out)]) == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert main(["inspect", str(awkward), "--out", str(out), "--overwrite", "--spec", str(out), "--label-delay", "3d"]) == 0
    assert 'label_delay = "3d"' in out.read_text()
    before = awkward.read_bytes()
    assert main(["inspect", str(awkward), "--out", str(awkward), "--overwrite"]) == 2
    assert awkward.read_bytes() == before


def test_json(awkward: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(awkward), "--json", "--categorical", "Catégorie"]) == 0
    found = json.loads(capsys.readouterr().out)
    columns = {each["name"]: each for each in found["columns"]}
    assert (found["rows"], found["sampled_rows"], found["doubts"]) == (900, 900, [])
    assert columns["Catégorie"]["reason"] == "given" and columns["statut_apres"]["role"] is None
    empty = columns["vide"]
    assert [empty[key] for key in ("role", "reason", "kind", "distinct", "missing", "first", "low")] == [
        None,
        "empty",
        "empty",
        0,
        1.0,
        [],
        None,
    ]
    assert sum(found["classes"].values()) == 900
    assert found["spec"]["label"] == "Fraude"
    assert found["time"]["format"] == "%d/%m/%Y %H:%M"


def test_what_is_not_clear_is_shown_and_not_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "table.csv"
    rows = range(200)
    pl.DataFrame(
        {
            "a": [f"2024-01-{1 + row % 28:02}" for row in rows],
            "b": ["2024-02-01", "2024-02-02"] * 100,
            "x": [row * 37 % 101 for row in rows],
        }
    ).write_csv(path)
    assert main(["inspect", str(path)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "to decide: several columns may be the time (a, b): name it with --time" in text
    assert "to decide: no label column was recognised" in text
    assert main(["inspect", str(path), "--time", "a", "--label", "b", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["doubts"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.csv"], "missing.csv does not exist"),
        (["{table}", "--time", "when"], "no column 'when' for the role time (--time)"),
        (["{table}", "--out", "nowhere/spec.toml"], "the folder nowhere does not exist"),
        (["{table}", "--bad-rows", "drop"], "unknown flag --bad-rows"),
        ([], "TABLE is missing"),
    ],
)
def test_errors_are_one_line(arguments: list[str], message: str, tiny_table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", *(word.replace("{table}", str(tiny_table)) for word in arguments)]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and printed.out == ""


def test_torch_is_not_imported(tiny_table: Path) -> None:
    code = f"import sys; from balancer.cli import main; main(['inspect', {str(tiny_table)!r}]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_the_roles_of_the_simulated_table(tiny_table: Path) -> None:
    spec = resolve_spec(tiny_table)
    assert (spec.entity, spec.time, spec.label, spec.amount, spec.id) == ("card_id", "time", "is_fraud", "amount", "transaction_id")
    assert (spec.numeric, spec.context) == (("distance_km",), ("merchant_id",))
    assert spec.categorical == ("merchant_category", "channel", "region")


def test_values_are_shown_readably_and_many_columns_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = range(300)
    frame = pl.DataFrame(
        {
            "time": [f"2024-{1 + row // 28:02}-{1 + row % 28:02} 10:00:00" for row in rows],
            "amount": [f"{row % 37}.5" for row in rows],
            "text": [("a\u202fb", "c\nd", "e\tf")[row % 3] for row in rows],
            "kind": [("none", *(f"k{number}" for number in range(14)))[row % 15] for row in rows],
            **{f"z{number}": [0] * 300 for number in range(40)},
        }
    ).rename({"kind": "attack_type"})
    path = tmp_path / "table.csv"
    frame.write_csv(path)
    assert main(["inspect", str(path), "--negative", "none"]) == 0
    text = capsys.readouterr().out
    assert "a b, c\\nd, e" in text
    assert "�" not in text and "z0 and 39 more" in text and "z1 " not in text
    assert all(line == line.rstrip() for line in text.splitlines())
    assert "and 5 more" in " ".join(text.split()).partition("classes: ")[2]
    again = [main(["inspect", str(path)]) for _ in range(2)]
    first, second = capsys.readouterr().out.split(f"{path}: ")[1:]
    assert again == [0, 0] and first == second
    assert "to correct: column 'attack_type' has the classes ['k0', 'k1', 'k10'," in " ".join(first.split())
