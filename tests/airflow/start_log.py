"""A file with one line for each start of a task or callback in a run. All of Airflow's parts append to it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any


def try_name(context: Any) -> str:
    ti = context["ti"]
    return f"{ti.task_id}[{ti.map_index}].{ti.try_number}" if ti.map_index >= 0 else f"{ti.task_id}.{ti.try_number}"


def record(run: str, name: str) -> None:
    file = os.open(os.environ["CELERIAC_TEST_START_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{run} {name} {time.time():.3f} {os.getpid()} {os.getppid()}\n".encode())
    os.close(file)


def release_file(run: str) -> Path:
    """Return the file whose existence lets the tasks of the DAG `held` end."""
    return Path(os.environ["CELERIAC_TEST_START_LOG"]).with_name(f"{run}.released")


def is_recorded(run: str, name: str) -> bool:
    return f"{run} {name} " in Path(os.environ["CELERIAC_TEST_START_LOG"]).read_text()


def deadline_missed(context: Any) -> None:
    """Run on a worker, as a workload of its own."""
    record(context["dag_run"]["dag_run_id"], "deadline_missed")
