"""What differs between a table that was scored and the rows that a run was trained on."""

from __future__ import annotations

from typing import Any

import polars as pl

from balancer.data.features import GROWING
from balancer.data.schema import Schema
from balancer.errors import InputError
from balancer.evaluation.alert_rate import DAY, AlertRate, alert_rate
from balancer.evaluation.drift import CODES, SCORE, FieldDrift, Reference, table_drift
from balancer.files import read_json
from balancer.runs.results import REFERENCE_FILE
from balancer.runs.scored_rows import ScoredRows
from balancer.runs.trained_run import TrainedRun

CLOCK = {"hour": 2 * DAY, "hour_sin": 2 * DAY, "hour_cos": 2 * DAY, "weekday": 14 * DAY}
"""Fields of the clock, and the span of a table in seconds below which they always differ: one day lacks six
days of the week."""


def changes(run: TrainedRun, scored: ScoredRows) -> dict[str, Any]:
    """Compare scored rows with the training and the test rows of the run.

    Args:
        run: The run.
        scored: The rows.

    Returns:
        A JSON-serializable dict: ``drift`` with ``fields`` (PSI by field), ``notable`` (those that changed,
        columns of the table first), ``growing`` (fields of the length of the history that grew) and
        ``unseen`` (values that training did not have, by column, most rows first: ``rows``, ``share`` of all
        rows, and ``examples``, the most frequent ones); ``alert_rate``; ``notes`` and ``warnings`` for the
        user. ``drift`` and ``alert_rate`` are None where the run has nothing to compare with.
    """
    notes: list[str] = []
    warnings: list[str] = []
    rate = _alert_rate(run, scored)
    unusual = None if rate is None else rate.warning()
    if unusual is not None:
        warnings.append(unusual)
    reference = _reference(run)
    drift: dict[str, Any] | None = None
    if reference is None:
        notes.append(f"the run has no {REFERENCE_FILE} that fits its fields, so changes of the fields are not measured: train it again")
    else:
        drift = _drift(reference, run.schema, scored) | {"unseen": _unseen(scored)}
    return {"drift": drift, "alert_rate": None if rate is None else rate.to_dict(), "notes": notes, "warnings": warnings}


def _unseen(scored: ScoredRows) -> dict[str, dict[str, Any]]:
    each = sorted(scored.unseen.items(), key=lambda each: -each[1].rows)
    return {name: {"rows": found.rows, "share": found.rows / scored.rows, "examples": found.examples()} for name, found in each}


def _drift(reference: Reference, schema: Schema, scored: ScoredRows) -> dict[str, Any]:
    span = scored.span[1] - scored.span[0]
    found = table_drift(reference, scored.values, scored.score)
    notable = [each for each in found if each.notable and span >= CLOCK.get(each.name, 0.0)]
    grown = [each.name for each in notable if _has_grown(each)]
    notable = [each for each in notable if each.name not in grown]
    categorical, past = schema.categorical_fields, schema.past_fields
    return {
        "fields": {each.name: each.index for each in found},
        "notable": [
            {
                "field": each.name,
                "psi": each.index,
                "median": None if each.median is None or each.name in categorical else list(each.median),
                "missing": list(each.missing),
            }
            | _codes(each, schema)
            # A changed column of the table changes fields of the past too, so it comes first.
            for each in sorted(notable, key=lambda each: (each.name in past or each.name == SCORE, -each.index))
        ],
        "growing": grown,
    }


def _has_grown(each: FieldDrift) -> bool:
    """Whether a field of the length of the history has grown, as it does in every later table."""
    return each.name in GROWING and each.median is not None and each.median[1] > each.median[0]


def _codes(each: FieldDrift, schema: Schema) -> dict[str, Any]:
    """The value of a categorical field whose share changed most, with both shares."""
    if each.name not in schema.categorical_fields or each.most is None:
        return {}
    code, before, now = each.most
    words = schema.vocabularies[each.name]
    # Code 0 is missing; the last bin holds all rarer values.
    value = "rare values" if code > CODES or code > len(words) else words[code - 1] if code else "missing or new values"
    return {"value": value, "shares": [before, now]}


def _reference(run: TrainedRun) -> Reference | None:
    """The distribution of the training rows, if the run has it for its fields."""
    file = run.folder.path / REFERENCE_FILE
    if not file.is_file():
        return None
    reference = Reference.from_dict(read_json(file, what="it holds the distribution of the training rows"))
    names = (*run.schema.numeric_fields, *run.schema.categorical_fields, SCORE)
    return reference if reference.names == names else None


def _alert_rate(run: TrainedRun, scored: ScoredRows) -> AlertRate | None:
    """Compare with the test rows at the threshold in use, which may be another than that of training."""
    try:
        test = pl.read_parquet(run.folder.path / "predictions.parquet", columns=["time", "score"], glob=False)
        moments = test["time"].dt.epoch("us").to_numpy() / 1e6
        alarm = test["score"].to_numpy() >= run.decision.threshold
    except (pl.exceptions.PolarsError, OSError, InputError):  # an earlier version, or a run without these files
        return None
    return alert_rate(scored.alarms, scored.rows, len(scored.days), alarm, moments)
