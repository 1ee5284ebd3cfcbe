"""An ordinary Celery worker for the tests: `python celery_worker.py BROKER BACKEND`."""

from __future__ import annotations

import sys

from celeriac.broker.app import make_app
from celeriac.worker.execute_command import register_task
from celeriac.worker.output import OutputPolicy
from celeriac.worker.runner import Runner

if __name__ == "__main__":
    broker, backend = sys.argv[1:]
    app = make_app(
        broker_url=broker,
        result_backend=backend,
        worker_send_task_events=True,
        result_backend_always_retry=True,  # keep results while the backend is unavailable
        result_backend_max_sleep_between_retries_ms=500,
    )
    runner = Runner()
    register_task(app, runner, OutputPolicy())
    app.Worker(pool="threads", concurrency=4, queues=["default"], loglevel="ERROR", quiet=True).start()
    runner.close()
