"""A plain Celery worker that takes Airflow's workloads: `python celery_worker.py BROKER BACKEND FOLDER`.

What a workload does is said by its name: `fail…` raises, `slow…` runs until the file FOLDER/go is there, the rest ends
at once. Each writes its name and its Celery id to FOLDER/begun as it begins.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from celery import Celery

LONGEST = 60.0  # seconds


def name_of(workload: Any) -> Any:
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
        name = name_of(json.loads(workload))
        line = f"{name} {self.request.id}\n".encode()
        file = os.open(folder / "begun", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, line)
        os.close(file)
        if name.startswith("fail"):
            raise RuntimeError(f"{name} was to fail")
        end = time.monotonic() + LONGEST
        while name.startswith("slow") and not (folder / "go").exists() and time.monotonic() < end:
            time.sleep(0.02)

    app.Worker(pool="prefork", concurrency=2, queues=["default", "gpu"], loglevel="ERROR", quiet=True).start()
