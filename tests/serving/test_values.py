"""The service compares values as a table does: the same keys, the same missing numbers, the same bits."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balancer.cli import main
from balancer.data.checked import read_table
from balancer.data.dataset import load_dataset
from balancer.data.schema import Schema
from balancer.errors import InputError
from balancer.inference.decision import decide
from balancer.runs.trained_run import TrainedRun
from balancer.serving.errors import MissingError
from balancer.serving.models.registry import LoadedModel, same_rows
from balancer.serving.scoring.entities import Entities
from balancer.serving.scoring.parsing import parse_transaction
from balancer.serving.scoring.row import Row
from balancer.serving.scoring.scorer import Scorer
from balancer.tables.values import NOBODY, normal_text
from tests.conftest import fewer_trees
from tests.data.test_own_fields import JOINED, joined_table
from tests.serving.tools import LONG_AGO, opened

SCHEMA = load_dataset(joined_table(), JOINED).schema
ROW: dict[str, Any] = {"id": 1, "time": 5e6, "card": 7, "region": 2.0, "amount": 5.0, "distance": 0.5, "kind": "web", "shop": "s1"}
VALUE = (
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=6)
    | st.integers(-99, 99)
    | st.floats(allow_nan=True, allow_infinity=False, width=32)
    | st.booleans()
    | st.none()
    | st.sampled_from(["1.0", " 1", "True", "Caf\u00e9\u00a0Paris", "Cafe\u0301", "\u3000x", "a+b", "\\", "", "  ", "\u200b"])
)


def read(**changes: Any) -> Row:
    return parse_transaction(ROW | changes, SCHEMA, "row", time.time(), LONG_AGO)


def frame(**changes: Any) -> pl.DataFrame:
    return pl.DataFrame({name: pl.Series(name, [value]) for name, value in (ROW | changes).items()})


@given(VALUE, VALUE, VALUE, VALUE)
@settings(max_examples=150)
def test_a_request_has_the_keys_of_a_table(card: Any, region: Any, shop: Any, kind: Any) -> None:
    changes = {"card": card, "region": region, "shop": shop, "kind": kind}
    if all(normal_text(part) is None or str(normal_text(part)).lower() in NOBODY for part in (card, region)):
        with pytest.raises(InputError, match="entity"):
            read_table(frame(**changes), JOINED, schema=SCHEMA, classes=SCHEMA.classes)
        with pytest.raises(InputError, match=r"all missing|word for a missing value"):
            read(**changes)
        return
    table, _ = read_table(frame(**changes), JOINED, schema=SCHEMA, classes=SCHEMA.classes)
    row = read(**changes)
    assert row.entity == table.texts["card+region"][0]
    assert row.texts == {name: table.texts[name][0] for name in ("kind", "shop", "shop+kind")}


@pytest.mark.parametrize("value", [None, math.nan, "", "NA", "nan", "-"])
def test_a_missing_number_is_missing(value: Any) -> None:
    assert math.isnan(read(distance=value).numeric["distance"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"card": None, "region": None}, "columns 'card', 'region' are all missing"),
        ({"card": "", "region": math.nan}, "columns 'card', 'region' are all missing"),
        ({"card": "nan", "region": "None"}, "a word for a missing value"),
        ({"shop": "a\x07"}, "column 'shop' is not a printable text"),
        ({"shop": "a\nb"}, "column 'shop' is not a printable text"),
        ({"shop": "\x1cb"}, "column 'shop' is not a printable text"),
        ({"shop": "\ud800"}, "column 'shop' is not a printable text"),
        ({"shop": ["a"]}, "column 'shop' is list; give a text"),
        ({"id": ""}, "column 'id' is empty"),
    ],
)
def test_bad_keys_name_their_column(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(**changes)
    raw = {name: value for name, value in ROW.items() if name != "region"}
    with pytest.raises(InputError, match="row: column 'region' is missing; give null"):
        parse_transaction(raw, SCHEMA, "row", time.time(), LONG_AGO)


def test_a_run_of_an_earlier_version_keeps_its_keys() -> None:
    old = Schema.from_dict({key: value for key, value in SCHEMA.to_dict().items() if key not in ("values", "missing", "time", "joined")})
    raw = ROW | {"card+region": "7", "shop+kind": 1.0, "kind": "True", "shop": "Caf\u00e9\u00a0Paris"}
    row = parse_transaction(raw, old, "row", time.time(), LONG_AGO)
    assert row.texts == {"kind": "True", "shop": "Caf\u00e9\u00a0Paris", "shop+kind": "1.0"}
    assert "another version" in str(same_rows(SCHEMA, old))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pl.DataFrame]:
    """A run with a joined entity and context, a column named like a derived field, and missing numbers."""
    folder = tmp_path_factory.mktemp("values")
    rng = np.random.default_rng(0)
    table = joined_table().with_columns(pl.Series("hour", rng.normal(size=1000)), pl.Series("code", rng.integers(0, 200, 1000)))
    table.write_parquet(folder / "table.parquet")
    roles = [
        *("--entity", "card+region", "--time", "time", "--label", "fraud", "--amount", "amount", "--id", "id", "--label-delay", "2d"),
        *("--numeric", "distance,hour", "--categorical", "kind,code", "--context", "shop,shop+kind"),
    ]
    short = ["--learner", "hybrid", "--policy", "rule", "--epochs", "1", "--steps-per-epoch", "4", "--history-length", "4"]
    sizes = ["--d-model", "8", "--layers", "1", "--threads", "1"]
    flags = ["train", "--dataset", str(folder / "table.parquet"), "--out", str(folder / "run"), *roles, *short, *sizes]
    with fewer_trees():
        assert main(flags) == 0
    return folder / "run", table


def test_scores_have_the_bits_of_the_table(run: tuple[Path, pl.DataFrame], tmp_path: Path) -> None:
    folder, table = run
    trained, model = TrainedRun.load(folder, precision="auto"), LoadedModel.load(folder, "run")
    schema = trained.schema
    assert schema.missing == ("distance",) and schema.columns == {"column:hour": "hour"}
    assert trained.model.config.missing == ("distance",)
    part = table[700:760].with_columns(pl.when(pl.int_range(60) % 9 == 0).then(None).otherwise(pl.col("hour")).alias("hour"))
    dataset = trained.table(part.drop("fraud"))
    rows = dataset.scored_rows()
    expected, _, _ = decide(trained.streamed_scores(dataset, rows), trained.decision)
    database = opened(f"sqlite:///{tmp_path / 'service.db'}")
    scorer = Scorer(database)
    for number, raw in enumerate(part.drop("fraud").to_dicts()):
        other = raw | {"card": f"{raw['card']}.0 ", "kind": f" {raw['kind']}", "code": float(raw["code"])}
        row = parse_transaction(other if number % 2 else raw, schema, "row", time.time(), LONG_AGO)
        result = scorer.score("t", model, [row])
        np.testing.assert_array_equal(result.values[row.id], dataset.store.values[rows[number]])
        assert result.answers[0]["score"] == expected[number]
    names = Entities(database)
    entity = dataset.entities[dataset.store.entity[rows[0]]]
    assert names.get("t", entity, 5)["entity"] == names.get("t", f" {entity}", 5)["entity"] == entity
    assert names.label("t", schema, {f"{part['id'][0]}.0": "1.0", "nothing": "0"}) == ["nothing"]
    names.delete("t", f"{entity} ")
    with pytest.raises(MissingError):
        names.get("t", entity, 5)
    database.close()


def test_the_table_of_the_run_is_read_as_it_was(run: tuple[Path, pl.DataFrame]) -> None:
    from balancer.runs.run_folder import RunFolder
    from balancer.runs.trained_run import training_table

    folder, _ = run
    dataset = training_table(RunFolder.open(folder))
    assert dataset.schema == TrainedRun.load(folder).schema
    assert np.isnan(dataset.store.values).any()
