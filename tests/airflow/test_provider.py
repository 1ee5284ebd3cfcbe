"""Airflow's view of Celeriac: its commands, its options and its provider info."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from airflow.providers.celery.get_provider_info import get_provider_info

from celeriac.airflow.option_table import CELERY_OPTIONS
from celeriac.airflow.provider import section
from tests.airflow.installed import with_upstream, without_upstream

IMPORTS = (
    "import json; from airflow.configuration import conf; from airflow.providers_manager import ProvidersManager; "
)
CONFIGURED = IMPORTS + "ProvidersManager().initialize_providers_configuration(); "


def run_python(arguments, environment, *, status=0):
    done = subprocess.run(
        [sys.executable, *arguments], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == status, done.stderr
    return done.stdout


def executor(name):
    """Return the variable for the executor: Airflow 3.1 takes the commands of the configured one."""
    return {"AIRFLOW__CORE__EXECUTOR": name}


@pytest.fixture(params=["with upstream", "alone"])
def installed(request, tmp_path):
    """Return whether upstream's provider is installed, the options of Python, and the environment."""
    if request.param == "alone":
        return False, ["-S"], without_upstream(tmp_path)
    return True, [], with_upstream(tmp_path)


BOTH = pytest.mark.parametrize(
    "installed", ["with upstream", pytest.param("alone", marks=pytest.mark.one_version)], indirect=True
)
"""With upstream's provider and without it: what does not depend on the version of Airflow."""

OPTIONS = [
    "--autoscale",
    "--celery-hostname",
    "--concurrency",
    "--daemon",
    "--log-file",
    "--pid",
    "--queues",
    "--skip-serve-logs",
    "--stderr",
    "--stdout",
    "--team",
    "--umask",
    "--verbose",
    "--without-gossip",
    "--without-mingle",
]


COMMANDS = [
    "worker",
    "flower",
    "stop",
    "list-workers",
    "shutdown-worker",
    "shutdown-all-workers",
    "add-queue",
    "remove-queue",
    "remove-all-queues",
]


@BOTH
def test_worker_command_has_the_options_of_upstream(installed):
    _, python, environment = installed
    environment = {**environment, **executor("celeriac.airflow.CeleryExecutor"), "COLUMNS": "200"}
    text = run_python([*python, "-m", "airflow", "celeriac", "worker", "--help"], environment)
    assert [option for option in OPTIONS if option not in text] == []
    assert "section celery" in text


def test_group_celery_is_upstreams_if_that_is_installed(installed):
    has_upstream, python, environment = installed
    upstream = "airflow.providers.celery.executors.celery_executor.CeleryExecutor"
    environment = {**environment, **executor(upstream if has_upstream else "celeriac.airflow.CeleryExecutor")}
    text = run_python([*python, "-m", "airflow", "celery", "--help"], environment)
    assert [command for command in COMMANDS if command not in text] == []
    assert ("drain" in text) == (not has_upstream)


@BOTH
def test_airflow_knows_the_options(installed):
    _, python, environment = installed
    environment = {
        **environment,
        "AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT": "300",
        "AIRFLOW__CELERY__RESULT_BACKEND_CMD": "printf redis://command/4",
    }
    names = [("celery", "task_acks_late"), ("celery", "extra_celery_config"), ("celery", "result_backend")]
    names += [("celeriac", "broker_priority"), ("celeriac", "delete_results")]
    program = f"{CONFIGURED}print(json.dumps([conf.get(*name) for name in {names}]))"
    assert json.loads(run_python([*python, "-c", program], environment).splitlines()[-1]) == [
        "True",
        "{}",
        "redis://command/4",
        "auto",
        "True",
    ]
    # Airflow 3.2 itself ignores a section that only variables set.
    section = "Options(conf).section('celery_broker_transport_options')"
    program = f"{CONFIGURED}from celeriac.airflow.options import Options; print({section}['visibility_timeout'])"
    assert run_python([*python, "-c", program], environment).splitlines()[-1] == "300"


def test_airflow_lists_the_provider(installed):
    has_upstream, python, environment = installed
    program = f"{IMPORTS}print(json.dumps(sorted(ProvidersManager().providers)))"
    providers = json.loads(run_python([*python, "-c", program], environment).splitlines()[-1])
    assert "celeriac" in providers
    assert ("apache-airflow-providers-celery" in providers) == has_upstream


def test_provider_info_imports_neither_airflow_nor_celery(tmp_path):
    program = (
        "import sys; from celeriac.airflow.provider import get_provider_info; get_provider_info();"
        "print([m for m in sys.modules if m.partition('.')[0] in ('airflow', 'celery')])"
    )
    assert run_python(["-c", program], {}).strip() == "[]"


@pytest.mark.one_version
def test_every_option_of_upstream_is_declared_and_compared_in_the_docs():
    text = (Path(__file__).parents[2] / "docs/airflow.md").read_text().partition("## Options of [celery]\n")[2]
    rows = [line.split(" | ")[0] for line in text.partition("\n## ")[0].splitlines() if line.startswith("|")]
    compared = {name for row in rows for name in re.findall("`([a-z_]+)`", row)}
    upstream = get_provider_info()["config"]["celery"]["options"]
    assert len(upstream) >= 30
    assert set(upstream) - compared == set()
    defaults = {key: option["default"] for key, option in upstream.items()}
    ours = {key: option["default"] for key, option in section("", CELERY_OPTIONS)["options"].items()}
    assert set(defaults) - set(ours) == set()
    different = {key for key, default in defaults.items() if str(default).lower() != str(ours[key]).lower()}
    assert different == {"celery_config_options"}  # it names a dict of upstream's
