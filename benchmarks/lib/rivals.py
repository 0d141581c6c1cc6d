"""Other learners on the rows of a detector: XGBoost, CatBoost, TabM, and LightGBM as the report has it.

Each reads one row at a time. All stop by the average precision of the reward half of validation, with
settings that a user would take for such tables. Trees are fitted on all training rows. TabM gets as many
draws as the network of a detector with the standard budget, half of them frauds.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score
from torch import Tensor

from balancer.data.dataset import Dataset
from balancer.data.split import Split
from balancer.evaluation.baselines import fit_lightgbm
from balancer.sampling.seeding import generator, integer_seed

ROUNDS = 1000
"""Most trees of XGBoost and CatBoost."""
PATIENCE = 50
"""Trees without an improvement before they stop."""
TABM_STEPS = 1600
TABM_BATCH = 256
TABM_EVERY = 200
"""Steps between two looks at the reward rows."""
TABM_REWARD = 20_000
"""Legitimate reward rows that are looked at."""
Floats = NDArray[np.floating]


def missing_rival(name: str) -> str | None:
    """Why a rival can't be fitted here; None if it can."""
    if find_spec(name) is not None:
        return None
    return f"{name} is not installed: it belongs to the extra bench"


def lightgbm(dataset: Dataset, seed: int) -> Floats:
    """Fraud probabilities of the test rows by the baseline of the report."""
    return fit_lightgbm(dataset, seed=integer_seed(seed, "lightgbm"), threads=1).test_score


def xgboost(dataset: Dataset, seed: int) -> Floats:
    """Fraud probabilities of the test rows by XGBoost's histogram trees."""
    import xgboost as xgb

    kinds = ["q"] * dataset.store.num_numeric + ["c"] * (dataset.store.values.shape[1] - dataset.store.num_numeric)
    (train, label), (reward, wanted) = _rows(dataset, Split.TRAIN), _rows(dataset, Split.REWARD)
    data = xgb.QuantileDMatrix(train, label, feature_types=kinds, max_bin=512, nthread=1, enable_categorical=True)
    stop = xgb.QuantileDMatrix(reward, wanted, ref=data, feature_types=kinds, max_bin=512, nthread=1, enable_categorical=True)
    parameters = {
        "objective": "binary:logistic",
        "eval_metric": "aucpr",
        "tree_method": "hist",
        "max_bin": 512,
        "learning_rate": 0.06,
        "max_depth": 8,
        "min_child_weight": 5,
        "subsample": 0.8,
        "colsample_bytree": 0.5,
        "reg_lambda": 5.0,
        "nthread": 1,
        "seed": integer_seed(seed, "xgboost"),
    }
    booster = xgb.train(parameters, data, ROUNDS, evals=[(stop, "reward")], early_stopping_rounds=PATIENCE, verbose_eval=False)
    test = xgb.DMatrix(_rows(dataset, Split.TEST)[0], feature_types=kinds, nthread=1, enable_categorical=True)
    return np.asarray(booster.predict(test, iteration_range=(0, booster.best_iteration + 1)))


def catboost(dataset: Dataset, seed: int) -> Floats:
    """Fraud probabilities of the test rows by CatBoost; categories are its own target statistics."""
    from catboost import CatBoostClassifier, Pool

    numeric = dataset.store.num_numeric
    categories = list(range(numeric, dataset.store.values.shape[1]))

    def pool(split: Split) -> Pool:
        values, label = _rows(dataset, split)
        columns = {
            number: values[:, number].astype(np.int32) if number in categories else values[:, number] for number in range(values.shape[1])
        }
        import pandas as pd

        return Pool(pd.DataFrame(columns), label.astype(np.int32), cat_features=categories)

    model = CatBoostClassifier(
        iterations=ROUNDS,
        learning_rate=0.1,
        depth=6,
        eval_metric="PRAUC:hints=skip_train~true",
        od_type="Iter",
        od_wait=PATIENCE,
        thread_count=1,
        random_seed=integer_seed(seed, "catboost"),
        allow_writing_files=False,
        verbose=False,
    )
    model.fit(pool(Split.TRAIN), eval_set=pool(Split.REWARD))
    return np.asarray(model.predict_proba(pool(Split.TEST))[:, 1])


def tabm(dataset: Dataset, seed: int) -> Floats:
    """Fraud probabilities of the test rows by TabM with piecewise linear embeddings, from its best look."""
    from rtdl_num_embeddings import PiecewiseLinearEmbeddings, compute_bins
    from tabm import TabM

    torch.manual_seed(integer_seed(seed, "tabm"))
    rng, numeric = generator(seed, "tabm"), dataset.store.num_numeric
    values, label = _rows(dataset, Split.TRAIN)
    known = np.nan_to_num(values[:, :numeric])
    some = rng.choice(len(values), min(len(values), 50_000), replace=False)
    centre, spread = known[some].mean(axis=0), known[some].std(axis=0) + 1e-6
    varied = known[some].max(axis=0) > known[some].min(axis=0)
    frauds, others = np.flatnonzero(label > 0), np.flatnonzero(label == 0)
    prior = len(frauds) / len(label)
    sizes = [int(size) for size in dataset.schema.cardinalities]

    def inputs(rows: Floats) -> tuple[Tensor, Tensor]:
        numbers = (np.nan_to_num(rows[:, :numeric])[:, varied] - centre[varied]) / spread[varied]
        return torch.from_numpy(numbers.astype(np.float32)), torch.from_numpy(rows[:, numeric:].astype(np.int64))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a field with two values has one bin
        bins = compute_bins(inputs(values[some])[0], n_bins=48)
    embeddings = PiecewiseLinearEmbeddings(bins, d_embedding=8, activation=False, version="B")
    model = TabM.make(
        n_num_features=int(varied.sum()), cat_cardinalities=sizes, d_out=1, num_embeddings=embeddings, k=16, n_blocks=2, d_block=256
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=3e-4)

    def scored(rows: Floats) -> Floats:
        model.eval()
        pieces = []
        with torch.no_grad():
            for first in range(0, len(rows), 4096):
                pieces.append(model(*inputs(rows[first : first + 4096]))[..., 0].sigmoid().mean(1).numpy())
        return np.concatenate(pieces)

    reward, wanted = _rows(dataset, Split.REWARD)
    looked = np.flatnonzero(wanted == 0)
    looked = np.concatenate([np.flatnonzero(wanted > 0), rng.choice(looked, min(len(looked), TABM_REWARD), replace=False)])
    best, kept = -1.0, {name: tensor.clone() for name, tensor in model.state_dict().items()}
    # With the logit of the drawn shares added in training, the scores are those of the natural stream.
    shift = -float(np.log(prior / (1 - prior)))
    for step in range(TABM_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * 0.5 * (1 + np.cos(np.pi * step / TABM_STEPS))
        model.train()
        rows = np.concatenate([rng.choice(frauds, TABM_BATCH // 2), rng.choice(others, TABM_BATCH // 2)])
        logits = model(*inputs(values[rows]))[..., 0] + shift
        target = torch.from_numpy(label[rows])[:, None].expand_as(logits)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if (step + 1) % TABM_EVERY == 0:
            found = float(average_precision_score(wanted[looked], scored(reward[looked])))
            if found > best:
                best, kept = found, {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(kept)
    return scored(_rows(dataset, Split.TEST)[0])


RIVALS: dict[str, Callable[[Dataset, int], Floats]] = {"lightgbm": lightgbm, "xgboost": xgboost, "catboost": catboost, "tabm": tabm}


def _rows(dataset: Dataset, split: Split) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rows = dataset.rows(split)
    return dataset.store.values[rows], (dataset.store.label[rows] > 0).astype(np.float32)
