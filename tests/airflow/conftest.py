"""Environment variables that give Airflow a folder of its own. They are set before Airflow is imported."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import version
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


ONE_VERSION = "3.3."
"""The Airflow that the tests with the marker `one_version` run on: the newest one that is released."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what need not run on this version of Airflow."""
    if version("apache-airflow-core").startswith(ONE_VERSION):
        return
    left_out = [item for item in items if item.get_closest_marker("one_version")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Airflow's tables, in SQLite. They are made once; the other workers of xdist copy them."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all workers of this run
    made, mine = folder / "airflow.db", HOME / "airflow.db"
    with (folder / "airflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if made.exists():
            copy_tables(made, mine)
            return
        subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], check=True, capture_output=True)
        copy_tables(mine, folder / "copy.db")
        (folder / "copy.db").rename(made)


def copy_tables(source: Path, target: Path) -> None:
    """Copy a database as SQLite does: an earlier test may have left a connection to the target."""
    with closing(sqlite3.connect(source)) as reader, closing(sqlite3.connect(target)) as writer:
        reader.backup(writer)


@pytest.fixture
def statsd() -> Iterator[StatsDServer]:
    with closing(StatsDServer()) as server:
        yield server
