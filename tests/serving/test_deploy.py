"""The files of deploy/: metrics and flags that they name exist, and secrets stay out of command lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from balancer.cli import COMMANDS, service
from balancer.options.flags import parameters
from balancer.serving import metrics
from balancer.serving.config import ServeConfig
from balancer.serving.http.app import create_app
from tests.serving.tools import opened

DEPLOY = Path(__file__).parents[2] / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
DASHBOARD = DEPLOY / "grafana" / "balancer.json"


def samples() -> dict[str, set[str]]:
    """Labels by name of every sample that `/metrics` may have."""
    found = {}
    for each in list(metrics._REGISTRY._collector_to_names):
        labels, name = set(each._labelnames), each._name
        if each._type == "counter":
            found[f"{name}_total"] = labels
        elif each._type == "histogram":
            found |= {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}
        else:
            found[name] = labels
    return found


def check_expression(expression: str) -> set[str]:
    """Check names and labels; return the names."""
    known = samples()
    found = set(re.findall(r"\b(balancer_\w+)", expression))
    assert found <= set(known), found - set(known)
    for name, matchers in re.findall(r"\b(balancer_\w+)\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)\s*[=!]", matchers)) <= known[name]
    labels = {label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")}
    assert labels <= set().union(*(known[name] for name in found))
    return found


def rules() -> list[dict[str, Any]]:
    content = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())
    return [rule for group in content["groups"] for rule in group["rules"]]


def documents() -> Iterator[dict[str, Any]]:
    for file in MANIFESTS:
        yield from yaml.safe_load_all(file.read_text())


def manifest(kind: str) -> dict[str, Any]:
    (found,) = (each for each in documents() if each["kind"] == kind)
    return found


def test_alert_rules_name_metrics_that_exist() -> None:
    for rule in rules():
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert check_expression(rule["expr"]) or "up{" in rule["expr"]
        assert rule["expr"].count("(") == rule["expr"].count(")")
    assert len({rule["alert"] for rule in rules()}) == len(rules())


def test_the_dashboard_shows_what_an_operator_needs() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    shown = set()
    for panel in dashboard["panels"]:
        assert panel["title"] and panel["description"]
        for target in panel["targets"]:
            shown |= check_expression(target["expr"])
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    wanted = {"balancer_requests_total", "balancer_request_seconds_bucket", "balancer_score_bucket", "balancer_alarms_total"}
    wanted |= {"balancer_drift_psi", "balancer_queue_seconds_bucket", "balancer_database_seconds_bucket", "balancer_day_alert_rate"}
    assert wanted <= shown


def check_command(arguments: list[str]) -> None:
    """Check that a command and its flags exist."""
    assert arguments[0] in COMMANDS
    if arguments[0] == "service":
        assert arguments[1] in service.COMMANDS
        return
    assert arguments[0] == "serve"
    flags = {each.shown for each in parameters(ServeConfig)}
    given = [argument.partition("=")[0] for argument in arguments[1:] if argument.startswith("--")]
    assert given and set(given) <= flags
    assert "--database" not in given  # the URL has a password


@pytest.mark.parametrize("file", MANIFESTS, ids=lambda file: file.name)
def test_manifests_have_names_and_kinds(file: Path) -> None:
    for each in yaml.safe_load_all(file.read_text()):
        assert each["apiVersion"] and each["kind"] and each["metadata"]["name"].startswith("balancer")


@pytest.mark.parametrize("kind", ["Deployment", "Job"])
def test_containers_run_without_rights_and_take_the_database_from_a_secret(kind: str) -> None:
    pod = manifest(kind)["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
    (container,) = pod["containers"]
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"] and security["capabilities"] == {"drop": ["ALL"]}
    (variable,) = (each for each in container["env"] if each["name"] == "BALANCER_DATABASE")
    secret = variable["valueFrom"]["secretKeyRef"]
    stored = manifest("Secret")
    assert secret["name"] == stored["metadata"]["name"] and secret["key"] in stored["stringData"]
    check_command(container["args"])
    assert container["resources"]["limits"]["memory"]


def test_parts_of_the_deployment_belong_together(tmp_path: Path) -> None:
    deployment, service_ = manifest("Deployment"), manifest("Service")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for selector in (
        deployment["spec"]["selector"]["matchLabels"],
        service_["spec"]["selector"],
        manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    assert manifest("Job")["spec"]["template"]["metadata"]["labels"] != labels  # the service must not send requests to it
    assert manifest("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert "--no-migrate" in container["args"]
    (port,) = container["ports"]
    assert f"--port={port['containerPort']}" in container["args"]
    url = f"sqlite:///{tmp_path / 'service.db'}"
    opened(url).close()
    app = create_app(ServeConfig(database=url))
    routes = {getattr(route, "path", None) for route in app.routes}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["path"] in routes
        assert container[probe]["httpGet"]["port"] == port["name"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"  # which needs no database
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_compose_keeps_the_password_out_of_the_command_line() -> None:
    content = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    parts = content["services"]["service"]
    check_command(parts["command"])
    assert not any("PASSWORD" in argument for argument in parts["command"])
    assert "PASSWORD" in parts["environment"]["BALANCER_DATABASE"]
