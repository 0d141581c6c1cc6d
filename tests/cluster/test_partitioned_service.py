"""Two services that each hold the entities of one hash answer as one service; files of such a deployment."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import httpx
import polars as pl
import pytest
import yaml

from balancer.cli import main
from balancer.options.flags import parameters
from balancer.runs.tables import score_file
from balancer.runs.trained_run import TrainedRun
from balancer.serving.config import ServeConfig
from balancer.serving.models.registry import LoadedModel
from tests.conftest import TINY
from tests.serving.test_server_process import started
from tests.serving.tools import sent

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.mark.slow
def test_scores_of_two_groups_are_those_of_the_table(tiny_table: Path, tmp_path: Path) -> None:
    spec = tmp_path / "spec.toml"
    spec.write_text("context = []\n")  # context fields depend on the rows of other entities
    flags = ["--spec", str(spec), "--policy", "auto", "--learner", "network", "--precision", "full", *TINY]
    assert main(["train", "--dataset", str(tiny_table), "--out", str(tmp_path / "runs" / "run"), *flags]) == 0
    rows = pl.read_parquet(tiny_table).sort("time").tail(1_500)
    busy = rows["card_id"].value_counts(sort=True)["card_id"].head(6)
    rows = rows.filter(pl.col("card_id").is_in(busy.implode())).with_columns(is_fraud=pl.lit(None, pl.Int8))
    rows.write_parquet(tmp_path / "in.parquet")
    out = tmp_path / "out.parquet"
    score_file(TrainedRun.load(tmp_path / "runs" / "run"), tmp_path / "in.parquet", out, past=None, bad_rows="error", streaming=True)
    expected = dict(pl.read_parquet(out).select(pl.col("transaction_id").cast(pl.String), "score").iter_rows())

    model = LoadedModel.load(tmp_path / "runs" / "run", "run")
    groups, scores, entities = [], {}, ({}, {})
    try:
        for group in (0, 1):
            folder = tmp_path / f"group-{group}"
            folder.mkdir()
            groups.append(started(["--models", str(tmp_path / "runs"), "--run", str(tmp_path / "runs" / "run")], folder))
        for row in sent(rows, model):
            group = zlib.crc32(row["card_id"].encode()) % 2
            entities[group][row["card_id"]] = None
            answer = httpx.post(f"{groups[group][1]}/v1/score", json={"transactions": [row]}, timeout=30).raise_for_status().json()
            scores |= {each["id"]: each["score"] for each in answer["decisions"]}
        assert all(entities)  # both groups have some
        assert not set(entities[0]) & set(entities[1])
    finally:
        for process, _, _ in groups:
            process.terminate()
        for process, _, _ in groups:
            process.wait(30)
    assert scores == expected


def test_the_files_of_a_partitioned_deployment_belong_together() -> None:
    services = yaml.safe_load((DEPLOY / "partitioned" / "compose.yaml").read_text())["services"]
    router = (DEPLOY / "partitioned" / "nginx.conf").read_text()
    groups = set(re.findall(r"server (group-\d+):8000;", router))
    assert groups == {name for name in services if name.startswith("group-")}
    assert "hash $http_x_entity consistent;" in router
    assert router.count("{") == router.count("}")
    known = {each.shown for each in parameters(ServeConfig)}
    databases = set()
    for name in groups:
        command = services[name]["command"]
        assert command[0] == "serve"
        assert {argument.partition("=")[0] for argument in command[1:]} <= known
        databases.add(services[name]["environment"]["BALANCER_DATABASE"].rpartition("@")[2])
        assert not any("PASSWORD" in argument for argument in command)
    assert databases == {f"{name}/balancer" for name in services if name.startswith("database-")}


def test_the_manifest_of_a_ray_cluster_names_the_version_that_is_installed() -> None:
    ray = pytest.importorskip("ray")
    claim, cluster = yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text())
    assert cluster["spec"]["rayVersion"] == ray.__version__
    head, workers = cluster["spec"]["headGroupSpec"], cluster["spec"]["workerGroupSpecs"]
    pods = [head, *workers]
    assert {each["template"]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] for each in pods} == {claim["metadata"]["name"]}
    assert all(each["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"] for each in pods)
    assert [each["groupName"] for each in workers] == ["cpu", "gpu"]
