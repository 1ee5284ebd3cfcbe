"""The values for Airflow's official Helm chart, in `deploy/helm` and `docs/helm.md`, against facts about the chart.

`make test-helm CHART=…` renders a real chart, and compares the facts with its schema. It needs the chart, so it is not
in the default suite.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator, Mapping
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from celeriac.airflow.option_table import DEFAULTS

ROOT = Path(__file__).parents[2]
VALUES = ROOT / "deploy/helm/values.yaml"
DOCS = ROOT / "docs/helm.md"

# Chart 1.22.0 of 2026-06-01, read on 2026-11-29.
TYPES: dict[str, tuple[str, ...]] = {
    "config.*.*": ("boolean", "integer", "number", "string"),
    "data.brokerUrlSecretName": ("string", "null"),
    "data.resultBackendSecretName": ("string", "null"),
    "env[].name": ("string",),
    "env[].value": ("string",),
    "executor": ("string",),
    "extraSecrets.*.stringData": ("string",),
    "images.airflow.repository": ("string", "null"),
    "images.airflow.tag": ("string", "null"),
    "pgbouncer.enabled": ("boolean",),
    "pgbouncer.maxClientConn": ("integer",),
    "pgbouncer.metadataPoolSize": ("integer",),
    "redis.enabled": ("boolean",),
    "scheduler.env[].name": ("string",),
    "scheduler.env[].valueFrom.secretKeyRef": ("object",),
    "workers.celery.args": ("array", "null"),
    "workers.celery.enableDefault": ("boolean",),
    "workers.celery.env[].name": ("string",),
    "workers.celery.env[].valueFrom.secretKeyRef": ("object",),
    "workers.celery.keda.advanced.horizontalPodAutoscalerConfig.behavior": ("object",),
    "workers.celery.keda.cooldownPeriod": ("integer", "null"),
    "workers.celery.keda.enabled": ("boolean", "null"),
    "workers.celery.keda.maxReplicaCount": ("integer", "null"),
    "workers.celery.keda.minReplicaCount": ("integer", "null"),
    "workers.celery.livenessProbe.command": ("array", "null"),
    "workers.celery.livenessProbe.failureThreshold": ("integer", "null"),
    "workers.celery.livenessProbe.initialDelaySeconds": ("integer", "null"),
    "workers.celery.livenessProbe.periodSeconds": ("integer", "null"),
    "workers.celery.livenessProbe.timeoutSeconds": ("integer", "null"),
    "workers.celery.sets": ("array",),
    "workers.celery.terminationGracePeriodSeconds": ("integer", "null"),
}
"""JSON types by path in the chart's values. `*` is any key, `[]` any item."""

EXECUTOR = r"(([a-zA-Z_][a-zA-Z0-9_]*.)*[A-Z][a-zA-Z0-9]+Executor)"
"""What the chart accepts as one executor. Several are separated by commas."""

LABEL = r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?"
"""What Kubernetes accepts as the value of a label."""

CLEANUP = 60 + 20
"""Seconds that a worker may need after `worker_grace`: [core] killed_task_cleanup_time, and its last results."""

NAMES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the values file, and each example of the page."""
    yield VALUES.name, yaml.safe_load(VALUES.read_text())
    examples = re.findall(r"^```yaml\n(.*?)^```$", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    for number, example in enumerate(examples):
        yield f"example {number}", yaml.safe_load(example)


DOCUMENTS = dict(documents())


def fact_for(path: str) -> tuple[str, ...] | None:
    for known, types in TYPES.items():
        if re.fullmatch(re.escape(known).replace(r"\*", r"[^.]+"), path):
            return types
    return None


def check_types(value: Any, path: str = "") -> None:
    """Check that the chart has all values, with their types."""
    if (types := fact_for(path)) is not None:
        assert NAMES[type(value)] in types, path
    elif isinstance(value, Mapping) and value:
        for key, inner in value.items():
            check_types(inner, f"{path}.{key}".removeprefix("."))
    elif isinstance(value, list) and value:
        for inner in value:
            check_types(inner, f"{path}[]")
    else:
        pytest.fail(f"no fact about {path}")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_chart_has_each_value(name):
    assert DOCUMENTS[name]
    check_types(DOCUMENTS[name])


def test_the_executor_suits_the_chart():
    executor = DOCUMENTS[VALUES.name]["executor"]
    assert re.fullmatch(EXECUTOR, executor)
    assert re.fullmatch(LABEL, executor), "charts before 1.22 make a label of it without a change"
    assert "CeleryExecutor" in executor, "the chart has workers and a broker only then"
    assert not re.search("Local|Kubernetes", executor), "the chart would have parts of other executors"
    assert find_spec(executor.rpartition(".")[0])


def test_each_option_exists():
    configured = {
        (section, option) for section, options in DOCUMENTS[VALUES.name]["config"].items() for option in options
    }
    assert ("celeriac", "worker_grace") in configured
    assert configured <= DEFAULTS.keys()
    assert float(DEFAULTS["core", "killed_task_cleanup_time"] or 0) == CLEANUP - 20


def graces() -> Iterator[tuple[int, int]]:
    """Yield each termination grace period with the `worker_grace` of its workers."""
    values = DOCUMENTS[VALUES.name]
    yield values["workers"]["celery"]["terminationGracePeriodSeconds"], values["config"]["celeriac"]["worker_grace"]
    for document in DOCUMENTS.values():
        for workers in document.get("workers", {}).get("celery", {}).get("sets", ()):
            if "terminationGracePeriodSeconds" in workers:
                variables = {variable["name"]: variable["value"] for variable in workers["env"]}
                yield workers["terminationGracePeriodSeconds"], int(variables["AIRFLOW__CELERIAC__WORKER_GRACE"])


def test_workers_end_their_tasks_before_kubernetes_kills_them():
    found = list(graces())
    assert len(found) > 1, "no set of workers has a grace of its own"
    assert all(period >= grace + CLEANUP for period, grace in found), found


# — the chart itself —


@pytest.fixture(scope="module")
def chart(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("chart")
    with tarfile.open(os.environ["CELERIAC_HELM_CHART"]) as archive:
        archive.extractall(folder, filter="data")
    return folder / "airflow"


def render(chart: Path, *values: Path, **settings: str) -> list[dict[str, Any]]:
    options = [option for path in values for option in ("-f", str(path))]
    options += [
        option for name, value in settings.items() for option in ("--set", f"{name.replace('__', '.')}={value}")
    ]
    command = [os.environ.get("HELM", "helm"), "template", "airflow", str(chart), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def component_of(found: Mapping[str, Any]) -> str | None:
    component: str | None = found["metadata"]["labels"].get("component")
    return component


def container(objects: list[dict[str, Any]], component: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the pod of a component, and its first container."""
    [pod] = [
        found["spec"]["template"]
        for found in objects
        if found["kind"] in ("Deployment", "StatefulSet") and component_of(found) == component
    ]
    return pod, pod["spec"]["containers"][0]


@pytest.mark.helm
def test_helm_renders_the_values(chart):
    values = DOCUMENTS[VALUES.name]
    objects = render(chart, VALUES)
    [label] = [
        found["metadata"]["labels"]["executor"]
        for found in objects
        if component_of(found) == "scheduler" and found["kind"] == "Deployment"
    ]
    assert label == values["executor"]
    pod, worker = container(objects, "worker")
    assert pod["spec"]["terminationGracePeriodSeconds"] == 600
    assert worker["image"] == "REGISTRY/airflow-celeriac:TAG"
    assert worker["args"] == ["bash", "-c", 'exec airflow celeriac worker --queues "default"']
    probe = dict(values["workers"]["celery"]["livenessProbe"])
    assert worker["livenessProbe"] == {"exec": {"command": probe.pop("command")}, **probe}
    assert {"name": "DUMB_INIT_SETSID", "value": "0"} in worker["env"]
    [config] = [found for found in objects if found["metadata"]["name"] == "airflow-config"]
    options = ConfigParser(interpolation=None)
    options.read_string(config["data"]["airflow.cfg"])
    assert options["celeriac"]["worker_grace"] == "500"
    assert options["core"]["executor"] == values["executor"]


@pytest.mark.helm
def test_keda_scales_the_workers(chart):
    objects = render(chart, VALUES, workers__celery__keda__enabled="true", pgbouncer__enabled="true")
    [scaled] = [found for found in objects if found["kind"] == "ScaledObject"]
    assert scaled["spec"]["scaleTargetRef"]["name"] == "airflow-worker"
    [trigger] = scaled["spec"]["triggers"]
    assert trigger["type"] == "postgresql"
    assert "COUNT(*)::decimal / 16)" in trigger["metadata"]["query"]


@pytest.mark.helm
@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name != VALUES.name])
def test_helm_renders_each_example(chart, name, tmp_path):
    example = tmp_path / "values.yaml"
    example.write_text(json.dumps(DOCUMENTS[name]))
    objects = render(chart, VALUES, example)
    if "extraSecrets" in DOCUMENTS[name]:
        with_key = {
            component_of(found)
            for found in objects
            if found["kind"] in ("Deployment", "StatefulSet")
            for part in found["spec"]["template"]["spec"]["containers"]
            if "AIRFLOW__CELERIAC__SIGNING_KEY" in {variable["name"] for variable in part.get("env", ())}
        }
        assert with_key == {"scheduler", "worker"}


@pytest.mark.helm
def test_the_facts_are_those_of_the_chart(chart):
    schema = json.loads((chart / "values.schema.json").read_text())
    assert schema["properties"]["executor"]["pattern"] == f"^{EXECUTOR}(,{EXECUTOR})*$"
    for path, types in TYPES.items():
        node = schema
        for key in path.replace("[]", ".[]").split("."):
            if key == "[]":
                node = node["items"]
            elif key in node.get("properties", {}):
                node = node["properties"][key]
            else:
                assert key == "*", path
                node = node["additionalProperties"]
        assert node.get("type", "object") in (list(types), *types), path
