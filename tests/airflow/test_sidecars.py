"""Check the process beside a worker, and the modules that a worker imports before it forks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from celeriac.airflow import sidecars

DAGS = Path(__file__).parent / "dags"
PARSE = f"""
import sys
from celeriac.airflow.worker_preparation import preload_modules
preload_modules(serves_logs=False)
before = set(sys.modules)
import airflow.sdk.execution_time.supervisor, airflow.sdk.execution_time.task_runner
from airflow.dag_processing.bundles.local import LocalDagBundle
from airflow.dag_processing.dagbag import BundleDagBag
from airflow.executors.base_executor import BaseExecutor
bag = BundleDagBag(dag_folder={str(DAGS / "plain.py")!r}, safe_mode=False, load_op_links=False, bundle_name="dags",
                   bundle_path={str(DAGS)!r})
assert bag.dags, bag.import_errors
print("imported", *(name for name in set(sys.modules) - before if name.startswith("airflow.")))
"""
SMALL = {"airflow.version", "airflow.sdk.definitions.asset.metadata"}


@pytest.mark.one_version
def test_a_task_imports_nothing_large_again():
    done = subprocess.run([sys.executable, "-c", PARSE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("imported")]
    assert set(line.split()[1:]) <= SMALL


@pytest.mark.parametrize("serves_logs", [True, False])
def test_stale_bundles_are_removed_also_if_the_log_server_fails(monkeypatch, serves_logs):
    intervals: list[float] = []

    def fail() -> None:
        raise OSError("the port is taken")

    monkeypatch.setattr(sidecars, "serve_logs", fail)
    monkeypatch.setattr(sidecars, "remove_stale_bundles", intervals.append)
    sidecars.work(serves_logs, 5.0)
    assert intervals == [5.0]
