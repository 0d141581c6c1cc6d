"""Names of version 0.1 still work, and warn with the present name."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import balancer
from balancer.deprecation import MODULES, NAMES, UNSET, renamed_argument


def resolved(name: str) -> object:
    """The object with a dotted name."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize(("old", "new"), sorted(NAMES.items()))
def test_an_old_name_is_the_new_object_and_warns(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"{old} is deprecated .*: use {new}$"):
        found = resolved(old)
    assert found is resolved(new)


@pytest.mark.parametrize(("old", "new"), sorted(MODULES.items()))
def test_an_old_module_has_the_contents_of_the_new_one_and_warns(old: str, new: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"the module {old} is deprecated .*: use {new}$"):
        module = importlib.import_module(old)
    replacement = importlib.import_module(new)
    public = [name for name in vars(replacement) if not name.startswith("_")]
    assert public
    assert all(getattr(module, name) is getattr(replacement, name) for name in public)
    with pytest.raises(AttributeError):
        _ = module.no_such_name


def test_the_warning_names_the_line_of_the_user() -> None:
    code = "from balancer import RowSampler\nimport balancer.serving.client\nfrom balancer.sampling import EmbeddedSampler\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shown = done.stderr.splitlines()
    for line in (1, 2, 3):
        assert any(text.startswith(f"<string>:{line}: DeprecationWarning") for text in shown), done.stderr


def test_a_misspelt_name_is_an_attribute_error() -> None:
    for module in ("balancer", "balancer.sampling", "balancer.sampling.core"):
        with pytest.raises(AttributeError, match="no attribute 'AdaptivSampler'"):
            resolved(f"{module}.AdaptivSampler")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("balancer.serving.no_such_module")


def test_public_names_need_no_warning() -> None:
    for name in balancer.__all__:
        assert getattr(balancer, name) is not None
        assert f"balancer.{name}" not in NAMES
    assert set(balancer.__all__) <= set(dir(balancer))


def test_a_renamed_argument() -> None:
    def train(epochs: int = 8, stages: int | str = UNSET) -> int:
        return int(renamed_argument(train, "stages", "epochs", epochs, stages))

    assert train() == 8
    assert train(epochs=5) == 5
    with pytest.warns(DeprecationWarning, match="the argument stages is deprecated .*: use epochs"):
        assert train(stages=3) == 3
    with pytest.raises(TypeError, match="train got epochs and its old name stages: give epochs only"):
        train(epochs=5, stages=3)


def test_estimators_refuse_an_old_and_a_new_name_together() -> None:
    from sklearn.linear_model import LogisticRegression

    from balancer.integrations.classifier import AdaptiveClassifier
    from balancer.integrations.resampler import AdaptiveResampler

    x, y = [[0.0], [1.0]] * 20, [0, 1] * 20
    with pytest.raises(TypeError, match="AdaptiveClassifier got epochs and its old name stages: give epochs only"):
        AdaptiveClassifier(LogisticRegression(), epochs=3, stages=4).fit(x, y)
    with pytest.raises(TypeError, match="AdaptiveResampler got num_samples and its old name n_samples: give num_samples only"):
        AdaptiveResampler(num_samples=30, n_samples=40).fit_resample(x, y)


def test_an_old_and_a_new_name_together_are_refused() -> None:
    from balancer.models import ModelConfig
    from balancer.options.flags import parse
    from balancer.options.train import TrainConfig

    fields = {"numeric_fields": ("a",), "categorical_fields": (), "cardinalities": (), "edges": ([0, 1],)}
    with pytest.raises(TypeError, match="give history_length only"):
        ModelConfig(**fields, history_length=8, history=9)  # type: ignore[call-arg]
    for flags in (["--history", "8", "--history-length", "9"], ["--history-length", "9", "--history", "8"]):
        with (
            pytest.raises(balancer.InputError, match="give --history-length only"),
            pytest.warns(DeprecationWarning, match="--history is now"),
        ):
            parse(TrainConfig, "balancer train", ["--dataset", "t.csv", *flags])


def test_old_attributes_arguments_and_methods() -> None:
    import torch

    from balancer.models import ModelConfig
    from balancer.models.attention import SparseAttention, WindowAttention
    from balancer.models.quantization import uniform_plan
    from balancer.sampling import RowSampler

    config = ModelConfig(("a",), (), (), ([0, 1],), history_length=8, attention_window=4)
    with pytest.warns(DeprecationWarning, match="ModelConfig.history is deprecated .*: use history_length") as caught:
        assert config.history == 8  # type: ignore[attr-defined]
    assert caught[0].filename == __file__
    with pytest.warns(DeprecationWarning, match="use attention_window"):
        assert config.window == 4  # type: ignore[attr-defined]
    for attention in (SparseAttention, WindowAttention):
        with pytest.warns(DeprecationWarning, match=f"history of {attention.__name__}"):
            assert attention(16, 2, 4, history=12).core.history_length == 12  # type: ignore[call-arg]
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    with pytest.warns(DeprecationWarning, match="use keep_as"):
        old = uniform_plan(model, keep=("0",), kept="fp32")  # type: ignore[call-arg]
    assert old == uniform_plan(model, keep=("0",), keep_as="fp32")
    sampler = RowSampler(torch.tensor([0, 0, 1]).numpy(), 2)
    with pytest.warns(DeprecationWarning, match="use state_dict"):
        state = sampler.state()
    with pytest.warns(DeprecationWarning, match="use load_state_dict"):
        sampler.load_state(state)


def test_a_renamed_module_can_be_imported_with_a_star() -> None:
    code = "from balancer.serving.client import *; print(RemoteSampler.__name__)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "RemoteSampler\n"


def test_earlier_rows_are_accepted_under_their_old_name() -> None:
    import polars as pl

    from balancer.data.dataset import load_dataset
    from balancer.data.spec import Spec

    table = pl.DataFrame({"time": range(100), "label": [0, 1] * 50, "x": range(100)})
    spec = Spec(entity=None, time="time", label="label", numeric=("x",), label_delay=0.0)
    schema = load_dataset(table, spec).schema
    new = load_dataset(table[50:], schema.spec, schema=schema, past=table[:50])
    with pytest.warns(DeprecationWarning, match="the argument history of load_dataset .*: use past") as caught:
        old = load_dataset(table[50:], schema.spec, schema=schema, history=table[:50])  # type: ignore[call-arg]
    assert caught[0].filename == __file__
    assert old.fingerprint == new.fingerprint


def test_a_model_configuration_accepts_the_names_of_version_0_1() -> None:
    from balancer.models import ModelConfig

    fields = {"numeric_fields": ("a",), "categorical_fields": (), "cardinalities": (), "edges": ([0, 1],)}
    new = ModelConfig(**fields, history_length=8, attention_window=4, form="histories")
    with pytest.warns(DeprecationWarning, match="of ModelConfig is deprecated") as caught:
        old = ModelConfig(**fields, history=8, window=4, form="sequence")  # type: ignore[call-arg]
    assert old == new
    assert {warning.filename for warning in caught} == {__file__}
    shown = sorted(str(warning.message).partition(": use ")[2] for warning in caught)
    assert shown == ["attention_window", "form='histories'", "history_length"]
