"""One task that writes its process id to a file, may use memory, and waits until another file exists.

A third file is the sign that it was told to clean up.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG

MAX_WAIT = 60.0  # seconds


def wait() -> None:
    folder = Path(os.environ["CELERIAC_TEST_WAIT"])
    (folder / "pid.part").write_text(str(os.getpid()))
    (folder / "pid.part").rename(folder / "pid")
    deadline, used = time.monotonic() + MAX_WAIT, bytearray()
    while not (folder / "go").exists() and time.monotonic() < deadline:
        if (folder / "memory").exists():
            used += b"x" * 2**23
        time.sleep(0.02)


class WaitingOperator(PythonOperator):
    def on_kill(self) -> None:
        (Path(os.environ["CELERIAC_TEST_WAIT"]) / "on_kill").touch()


if "CELERIAC_TEST_WAIT" in os.environ:
    with DAG("waits", schedule=None):
        WaitingOperator(task_id="wait", python_callable=wait)
