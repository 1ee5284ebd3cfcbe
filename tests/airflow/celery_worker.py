"""A plain Celery worker that takes Airflow's workloads: `python celery_worker.py BROKER BACKEND FOLDER`.

The name of a workload decides what it does: `fail…` raises, `slow…` runs until the file FOLDER/go exists, any other
ends at once. Each appends its name and its Celery id to FOLDER/started when it starts.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from celery import Celery

MAX_WAIT = 60.0  # seconds


def workload_name(workload: Any) -> Any:
    if "ti" in workload:
        return workload["ti"]["task_id"]
    return workload["callback"]["data"]["path"] if "callback" in workload else workload["connection_id"]


if __name__ == "__main__":
    broker, backend, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    app = Celery("plain", broker=broker, backend=backend)
    app.conf.update(task_acks_late=True, task_track_started=True, worker_prefetch_multiplier=1, accept_content=["json"])
    app.conf.update(task_default_queue="default", task_default_exchange="default")

    @app.task(name="execute_workload", bind=True)
    def execute_workload(self, workload: str) -> None:
        name = workload_name(json.loads(workload))
        line = f"{name} {self.request.id}\n".encode()
        file = os.open(folder / "started", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, line)
        os.close(file)
        if name.startswith("fail"):
            raise RuntimeError(f"{name} fails, as its name asks")
        deadline = time.monotonic() + MAX_WAIT
        while name.startswith("slow") and not (folder / "go").exists() and time.monotonic() < deadline:
            time.sleep(0.02)

    app.Worker(pool="prefork", concurrency=2, queues=["default", "gpu"], loglevel="ERROR", quiet=True).start()
