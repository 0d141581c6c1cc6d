"""Numbers of a text file on their way into a data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from balancer.data.checked import read_table
from balancer.data.spec import Spec
from balancer.errors import InputError
from balancer.tables.options import ReadOptions

HEAD = "card;time;amount;x;fraud\n"


def read(path: Path, body: str, **options: str) -> dict[str, list[float]]:
    path.write_text(HEAD + body)
    spec = Spec(entity="card", time="time", label="fraud", amount="amount", numeric=("x",), read=ReadOptions(**options))  # type: ignore[arg-type]
    table, _ = read_table(path, spec)
    assert table.amount is not None
    return {"amount": table.amount.tolist(), "x": table.numeric["x"].tolist()}


def test_the_marks_of_the_file_decide_where_a_column_does_not(tmp_path: Path) -> None:
    found = read(tmp_path / "t.csv", "a;2024-01-01;1,234;1,5;0\nb;2024-01-02;5,678;NA;1\n")
    assert found["amount"] == [1.234, 5.678]
    assert found["x"][0] == 1.5
    assert np.isnan(found["x"][1])


def test_numbers_that_can_be_read_in_two_ways_are_refused(tmp_path: Path) -> None:
    body = "\na;2024-01-01;7;1;0\nb;2024-01-02;5,678;2;1\n"
    with pytest.raises(
        InputError, match=r"t\.csv: column 'amount': row 2 \(line 4\) \('5,678'\) can be .* give --thousands , or --decimal ,"
    ):
        read(tmp_path / "t.csv", body)
    assert read(tmp_path / "t.csv", body, thousands=",")["amount"] == [7, 5678]
    assert read(tmp_path / "t.csv", body, decimal=",")["amount"] == [7, 5.678]


def test_amounts_in_several_currencies_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'amount' holds amounts in several currencies \(\$, €\)"):
        read(tmp_path / "t.csv", "a;2024-01-01;$7;1;0\nb;2024-01-02;5 €;2;1\n")


def test_a_bad_cell_names_file_row_and_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"t\.csv: column 'x': row 2 \(line 5\) is text, not a number \('abc'\)"):
        read(tmp_path / "t.csv", "# a comment\na;2024-01-01;7;1;0\n\nb;2024-01-02;5;abc;1\n")
