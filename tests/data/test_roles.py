"""Roles inferred from names and dtypes; an ambiguous role names the flag."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from balancer.data.roles import resolve_spec
from balancer.data.spec import DAY
from balancer.errors import InputError

TABLE = pl.DataFrame(
    {
        "transaction_id": [1, 2, 3, 4],
        "when": [datetime(2024, 1, day) for day in (1, 2, 3, 4)],
        "card_id": ["x", "x", "y", "y"],
        "amount": [1.0, 2.0, 3.0, 4.0],
        "distance": [0.5, 0.7, 0.1, 0.2],
        "home_lat": [50.0, 50.0, 51.0, 51.0],
        "channel": ["web", "pos", "web", "pos"],
        "segment": ["a", "a", "b", "b"],
        "abroad": [True, False, True, False],
        "merchant_id": [1, 2, 1, 2],
        "fraud_kind": ["none", "none", "theft", "none"],
        "is_fraud": [0, 0, 1, 0],
    }
)


def test_inference_leaves_out_static_columns_and_second_labels() -> None:
    spec = resolve_spec(TABLE)
    assert (spec.time, spec.entity, spec.label, spec.amount, spec.id) == ("when", "card_id", "is_fraud", "amount", "transaction_id")
    assert spec.numeric == ("distance",)
    assert spec.categorical == ("channel", "abroad")
    assert spec.context == ("merchant_id",)


def test_flags_over_file_over_inference(tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_text('entity = "segment"\namount = "distance"\nlabel_delay = "3d"\ncontext = []\n[split]\ngap = "1d"')
    spec = resolve_spec(
        TABLE, spec_file=path, overrides={"entity": "card_id", "id": "none", "label": None, "gap": "2h", "numeric": "home_lat"}
    )
    assert (spec.entity, spec.amount, spec.id, spec.label) == ("card_id", "distance", None, "is_fraud")
    assert (spec.context, spec.numeric) == ((), ("home_lat",))
    assert (spec.label_delay, spec.split.gap) == (3 * DAY, 7200.0)


def test_unknown_role_and_misnamed_column() -> None:
    with pytest.raises(InputError, match="unknown role 'amout': did you mean 'amount'"):
        resolve_spec(TABLE, overrides={"amout": "amount"})
    with pytest.raises(InputError, match=r"no column 'card_ld' for the role entity \(--entity\): did you mean 'card_id'"):
        resolve_spec(TABLE, overrides={"entity": "card_ld"})
    with pytest.raises(InputError, match=r"no column 'chanel' for the role categorical"):
        resolve_spec(TABLE, overrides={"categorical": ["chanel"]})


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"customer_id": "card_id"}, "--entity"),
        ({"amt": "amount"}, "--amount"),
        ({"posted": "when"}, "--time"),
        ({"label": "is_fraud"}, "--label"),
        ({"tx_id": "transaction_id"}, "--id"),
    ],
)
def test_an_ambiguous_role_names_the_flag(change: dict[str, str], flag: str) -> None:
    twice = TABLE.with_columns(pl.col(old).alias(new) for new, old in change.items())
    with pytest.raises(InputError, match=f"several columns may be .* with {flag}"):
        resolve_spec(twice)


def test_missing_columns() -> None:
    with pytest.raises(InputError, match="no label column was recognised: name it with --label"):
        resolve_spec(TABLE.drop("is_fraud"))
    assert resolve_spec(TABLE.drop("is_fraud"), need_label=False).label is None
    with pytest.raises(InputError, match="no time column was recognised: name it with --time"):
        resolve_spec(TABLE.drop("when"))
    assert resolve_spec(TABLE.drop("card_id")).entity is None


def test_csv_dtypes_are_guessed(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    TABLE.write_csv(path)
    assert resolve_spec(path) == resolve_spec(TABLE)
