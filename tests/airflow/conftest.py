"""Environment variables that give Airflow a folder of its own. They are set before Airflow is imported."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.airflow.statsd_server import StatsDServer

pytest.register_assert_rewrite("tests.airflow.deployment")  # its assertions show what differs

HOME = Path(tempfile.mkdtemp(prefix="celeriac-airflow-"))
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
os.environ.update(
    {
        "AIRFLOW_HOME": str(HOME),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{HOME}/airflow.db",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor:celeriac.airflow.CeleryExecutor",
        "AIRFLOW__CELERY__OPERATION_TIMEOUT": "1.0",
        "AIRFLOW__API_AUTH__JWT_SECRET": "a-secret-of-the-tests-that-is-long-enough-for-all-signatures-of-any-length",
        "AIRFLOW__CORE__FERNET_KEY": "",
    }
)


@pytest.fixture(scope="session")
def database() -> None:
    """Airflow's tables, in SQLite."""
    subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], check=True, capture_output=True)


@pytest.fixture
def statsd() -> Iterator[StatsDServer]:
    with closing(StatsDServer()) as server:
        yield server
