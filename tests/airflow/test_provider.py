"""What `airflow` knows of Celeriac, asked of Airflow itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.airflow.installed import beside_the_other, without_the_other

SHORT = "import json; from airflow.configuration import conf; from airflow.providers_manager import ProvidersManager; "
CONFIGURED = SHORT + "ProvidersManager().initialize_providers_configuration(); "


def said(words, environment, *, status=0):
    done = subprocess.run(
        [sys.executable, *words], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == status, done.stderr
    return done.stdout


def executor(name):
    """3.1 asks the configured executor for its commands."""
    return {"AIRFLOW__CORE__EXECUTOR": name}


@pytest.fixture(params=["beside the other", "alone"])
def installed(request, tmp_path):
    """Whether the other provider is there, how Python is to be started, and with what environment."""
    if request.param == "alone":
        return False, ["-S"], without_the_other(tmp_path)
    return True, [], beside_the_other(tmp_path)


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


def test_the_worker_has_the_options_of_the_other_providers(installed):
    _, python, environment = installed
    environment = {**environment, **executor("celeriac.airflow.CeleryExecutor"), "COLUMNS": "200"}
    text = said([*python, "-m", "airflow", "celeriac", "worker", "--help"], environment)
    assert [option for option in OPTIONS if option not in text] == []
    assert "section celery" in text


def test_the_group_celery_is_whose_it_is(installed):
    has_other, python, environment = installed
    other = "airflow.providers.celery.executors.celery_executor.CeleryExecutor"
    environment = {**environment, **executor(other if has_other else "celeriac.airflow.CeleryExecutor")}
    text = said([*python, "-m", "airflow", "celery", "--help"], environment)
    assert ("flower" in text, "drain" in text) == (has_other, not has_other)


def test_airflow_knows_the_options(installed):
    _, python, environment = installed
    environment = {
        **environment,
        "AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__VISIBILITY_TIMEOUT": "300",
        "AIRFLOW__CELERY__RESULT_BACKEND_CMD": "printf redis://told/4",
    }
    names = [("celery", "task_acks_late"), ("celery", "extra_celery_config"), ("celery", "result_backend")]
    names += [("celeriac", "broker_priority"), ("celeriac", "delete_results")]
    asked = f"{CONFIGURED}print(json.dumps([conf.get(*name) for name in {names}]))"
    assert json.loads(said([*python, "-c", asked], environment).splitlines()[-1]) == [
        "True",
        "{}",
        "redis://told/4",
        "False",
        "True",
    ]
    section = (
        "Options(conf).section('celery_broker_transport_options')"  # of variables alone, 3.2 itself makes no section
    )
    asked = f"{CONFIGURED}from celeriac.airflow.config import Options; print({section}['visibility_timeout'])"
    assert said([*python, "-c", asked], environment).splitlines()[-1] == "300"


def test_airflow_lists_the_provider(installed):
    has_other, python, environment = installed
    asked = f"{SHORT}print(json.dumps(sorted(ProvidersManager().providers)))"
    providers = json.loads(said([*python, "-c", asked], environment).splitlines()[-1])
    assert "celeriac" in providers
    assert ("apache-airflow-providers-celery" in providers) == has_other


def test_what_a_provider_is_can_be_told_without_its_executor(tmp_path):
    asked = (
        "import sys; from celeriac.airflow.provider import get_provider_info; get_provider_info();"
        "print([m for m in sys.modules if m.partition('.')[0] in ('airflow', 'celery')])"
    )
    assert said(["-c", asked], {}).strip() == "[]"
