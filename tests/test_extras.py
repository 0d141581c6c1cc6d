"""Each extra works when it is installed alone: it installs what its commands and classes import."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.conftest import TINY
from tests.isolation import EXTRAS, ROOT, installed, plain, ranges, run_with_only

COMMAND = "from balancer.cli import main\nassert main(sys.argv[1:]) == 0\n"


def alone(extra: str | None, code: str, *arguments: str | Path, cwd: Path = ROOT) -> str:
    """The standard output of code that must succeed where only the core or one extra is installed."""
    done = run_with_only(ranges(*([] if extra is None else [extra])), code, *map(str, arguments), cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_range_for_one_library() -> None:
    found = defaultdict(set)
    for extra in EXTRAS:
        for requirement in ranges(extra):
            found[plain(requirement.name)].add(str(requirement.specifier))
    assert {name: each for name, each in found.items() if len(each) > 1} == {}


def test_the_core_is_numpy_and_safetensors() -> None:
    assert installed(ranges()) == {"numpy", "safetensors"}


@pytest.mark.parametrize("extra", ["serve", "postgresql"])
def test_the_service_installs_nothing_that_trains(extra: str) -> None:
    assert not installed(ranges(extra)) & {"gymnasium", "stable-baselines3", "lightgbm", "scikit-learn", "scipy", "tensorboard"}


def test_numpy_sampler_in_the_core() -> None:
    alone(
        None,
        """
import numpy as np
from balancer import SamplerCore
labels = np.arange(1000) % 20 == 0
sampler = SamplerCore(labels, epochs=2, num_samples=50)
sampler.draw()
sampler.update(labels, np.where(labels, 0.6, 0.4))
assert sampler.policy_name == "auto"
""",
    )


@pytest.mark.slow
def test_train(tiny_table: Path, tmp_path: Path) -> None:
    alone("train", COMMAND, "train", "--dataset", tiny_table, "--out", tmp_path / "run", *TINY)
    alone("train", COMMAND, "quantize", tmp_path / "run", "--max-drop", "0.5")


@pytest.mark.slow
def test_report(tiny_run: Path, tmp_path: Path) -> None:
    alone("report", COMMAND, "report", tiny_run, "--pdf", tmp_path / "report.pdf")


@pytest.mark.slow
def test_export(tiny_run: Path, tmp_path: Path) -> None:
    alone("export", COMMAND, "export", tiny_run, "--out", tmp_path / "model.onnx")


@pytest.mark.slow
def test_compare(tiny_table: Path, tmp_path: Path) -> None:
    flags = ["--folds", "1", "--seeds", "1", "--epochs", "1", "--steps-per-epoch", "2", "--search-trials", "2", "--out", tmp_path / "c"]
    policies = ["--treatments", "none,smote,tpe,lightgbm", "--chart", tmp_path / "chart.svg"]
    alone("compare", COMMAND, "compare", "--dataset", tiny_table, *policies, *flags)


SERVE = """
import warnings
from pathlib import Path
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of Starlette's test client
    from fastapi.testclient import TestClient
from balancer.serving.config import ServeConfig
from balancer.serving.http.app import create_app
from balancer.serving.storage.database import Database
import balancer.serving.http.server
Database(f"sqlite:///{sys.argv[2]}").upgrade()
app = create_app(ServeConfig(run=Path(sys.argv[1]), database=f"sqlite:///{sys.argv[2]}"))
row = {"transaction_id": "a", "card_id": "c", "time": "2026-01-05T10:00:00", "amount": 20.0, "merchant_id": "m",
       "merchant_category": "grocery", "channel": "chip", "region": "r", "distance_km": 2.5}
with TestClient(app, base_url="http://127.0.0.1:8000") as client:
    answer = client.post("/v1/score", json={"transactions": [row]})
    assert answer.status_code == 200, answer.text
    session = {"classes": {"no": 90, "yes": 10}, "epochs": 2, "num_samples": 20}
    answer = client.post("/v1/sessions", json=session)
    assert answer.status_code == 201, answer.text
assert not {"gymnasium", "stable_baselines3", "sklearn", "balancer.training"} & set(sys.modules)
"""


@pytest.mark.slow
def test_serve_scores_with_a_trained_run(tiny_run: Path, tiny_table: Path, tmp_path: Path) -> None:
    alone("serve", SERVE, tiny_run, tmp_path / "a.db")
    alone("serve", COMMAND, "keys", "create", "--tenant", "t", "--scopes", "score", "--database", f"sqlite:///{tmp_path / 'a.db'}")
    alone("serve", COMMAND, "score", tiny_run, "--input", tiny_table, "--output", tmp_path / "scores.csv")
    alone("serve", COMMAND, "evaluate", tiny_run, "--dataset", tiny_table)


def test_postgresql_is_serve_and_a_driver() -> None:
    assert installed(ranges("postgresql")) - installed(ranges("serve")) == {"psycopg", "psycopg-binary"}


CODE = {
    "app": """
import balancer.app.browsing, balancer.app.charts, balancer.app.jobs, balancer.app.loading
from balancer.app.views import compare, model, runs, threshold, train, transactions, weights
""",
    "imblearn": """
from balancer import AdaptiveResampler
import numpy as np
x = np.random.default_rng(0).normal(size=(400, 2))
AdaptiveResampler(policy="constant", random_state=0).fit_resample(x, (x[:, 0] > 1.5).astype(int))
""",
    "sklearn": """
from balancer import AdaptiveClassifier
import numpy as np
from sklearn.linear_model import LogisticRegression
x = np.random.default_rng(0).normal(size=(400, 2))
AdaptiveClassifier(LogisticRegression(), policy="constant", random_state=0).fit(x, (x[:, 0] > 1.2).astype(int)).predict(x)
""",
    "lightning": "from balancer.integrations.lightning import AdaptiveCallback",
    "transformers": "from balancer.integrations.hugging_face import AdaptiveTrainer",
    "keras": "from balancer.integrations.keras import AdaptiveCallback, AdaptiveSequence",
    "text": """
from balancer.models import Classifier, ModelConfig, train_tokenizer
tokenizer = train_tokenizer(["a b c", "a b d"], size=300)
Classifier(ModelConfig((), ("token",), (300,), (), history_length=4, d_model=16, embedding="token"))
""",
    "cuda": "import triton\nfrom balancer.models.attention import SparseAttention\nSparseAttention(16, 2)",
    "oidc": "from balancer.serving.http.oidc import TokenVerifier",
    "quantize": "import bitsandbytes\nimport balancer.deployment.quantize",
    "telemetry": "from balancer.serving.http.telemetry import Telemetry\nTelemetry().close()",
}


@pytest.mark.slow
@pytest.mark.parametrize("extra", sorted(CODE))
def test_imports_and_first_use(extra: str) -> None:
    alone(extra, CODE[extra])


def test_every_extra_is_tried_or_needs_what_is_not_installed_for_development() -> None:
    source = Path(__file__).read_text()
    tried = set(CODE) | set(re.findall(r'alone\("(\w+)"', source)) | {"postgresql"}
    assert set(EXTRAS) - tried == {"cluster", "docs", "executorch", "examples", "bench", "dev"}
