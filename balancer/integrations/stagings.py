"""Which ways of training a classifier supports; :mod:`balancer.integrations.staged` describes them."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import has_fit_parameter

Staging = Literal["boosting", "partial_fit", "warm_start", "sample_weight", "resample"]
INCREMENTAL = ("boosting", "partial_fit", "warm_start")
"""Ways in which all epochs contribute to the final model."""
_EARLY_STOPPING = ("early_stopping_round", "early_stopping_rounds", "early_stopping", "n_iter_no_change")
"""Names of the parameter of LightGBM (the first is the main one) and XGBoost."""
_LOGISTIC = {
    "lightgbm": (None, "binary", "multiclass", "softmax"),
    "xgboost": (None, "binary:logistic", "multi:softprob", "multi:softmax"),
}
"""Objectives whose raw scores are logits of classes."""


def choose_staging(estimator: Any) -> Staging:
    """Choose how to train an estimator; see :mod:`balancer.integrations.staged`."""
    if boosting_keyword(estimator):
        return "boosting"
    params = estimator.get_params(deep=False)
    # Both need the whole table at once: scikit-learn raises an error for them in partial_fit, and warns of
    # the first with warm_start.
    whole_table = isinstance(params.get("class_weight"), str) or params.get("early_stopping") is True
    if hasattr(estimator, "partial_fit") and not whole_table:
        return "partial_fit"
    if "warm_start" in params and isinstance(params.get("n_estimators"), int) and not whole_table:
        return "warm_start"
    last = estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator
    slow = isinstance(last, HistGradientBoostingClassifier)
    return "sample_weight" if weight_keyword(estimator) is not None and not slow else "resample"


def weight_keyword(estimator: Any) -> str | None:
    """Argument of ``fit`` for the weights of rows, of a pipeline that of its last step; None without."""
    if isinstance(estimator, Pipeline):
        name, last = estimator.steps[-1]
        inner = weight_keyword(last)
        return None if inner is None else f"{name}__{inner}"
    return "sample_weight" if has_fit_parameter(estimator, "sample_weight") else None


def takes_offset(estimator: Any) -> bool:
    """Whether the raw scores of boosted trees are logits of classes, which can start from given ones."""
    params, keyword = estimator.get_params(deep=False), {"lightgbm": "init_score", "xgboost": "base_margin"}
    name = library(estimator)
    if params.get("linear_tree") or params.get("booster") == "gblinear" or params.get("objective") not in _LOGISTIC[name]:
        return False
    return bool(has_fit_parameter(estimator, keyword[name]))


def early_stopping(estimator: Any) -> tuple[dict[str, Any], int]:
    """Parameters of boosted trees that stop them early, and the number of rounds; 0 for none."""
    given = {name: value for name, value in estimator.get_params(deep=False).items() if name in _EARLY_STOPPING and value}
    rounds = [int(value) for value in given.values() if isinstance(value, (int, np.integer)) and not isinstance(value, bool)]
    return given, max(rounds, default=0)


def boosting_keyword(estimator: Any) -> str | None:
    """Argument of ``fit`` that takes the present trees; None if the library can't continue from them."""
    keyword = {"lightgbm": "init_model", "xgboost": "xgb_model"}.get(library(estimator))
    if keyword is None or not has_fit_parameter(estimator, keyword) or "RF" in type(estimator).__name__:
        return None
    params = estimator.get_params(deep=False)
    # With dart, later trees rescale earlier ones; the trees of a forest are no sequence.
    return None if {params.get("boosting_type"), params.get("booster")} & {"dart", "rf"} else keyword


def library(estimator: Any) -> str:
    """Name of the package that defines an estimator, or the last step of a pipeline."""
    last = estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator
    return type(last).__module__.split(".")[0]


def supports(estimator: Any, staging: str) -> bool:
    """Whether ``estimator`` can be trained in the way ``staging``."""
    if staging == "warm_start":
        params = estimator.get_params(deep=False)
        return "warm_start" in params and isinstance(params.get("n_estimators"), int)
    supported = {
        "boosting": boosting_keyword(estimator) is not None,
        "partial_fit": hasattr(estimator, "partial_fit"),
        "sample_weight": weight_keyword(estimator) is not None,
        "resample": True,
    }
    return supported[staging]
