"""The worker of the end-to-end part, four threads of no-op tasks: `python -m bench.worker BROKER BACKEND NAME`."""

from __future__ import annotations

import sys
from typing import Any

from celery import Celery

from celeriac import Task
from celeriac.app import make_app
from celeriac.publisher.call import Call

QUEUE = "bench"
NO_OP = "bench.no_op"
REPORTING_NO_OP = "bench.reporting_no_op"
REPORT: dict[str, Any] = {"reason": None, "detail": None, "execution": {"host": "here", "exit_code": 0}}
"""What a worker of ours says of a command that ended well, at its shortest."""


def no_op_call(_: Task) -> Call:
    return Call(name=REPORTING_NO_OP, args=(), argsrepr="()", options={"queue": QUEUE})


def no_op() -> None:
    """For plain Celery."""


def reporting_no_op() -> dict[str, Any]:
    """The same, said in the words that our executor reads."""
    return REPORT


def register(app: Celery) -> Celery:
    app.task(name=NO_OP)(no_op)
    app.task(name=REPORTING_NO_OP)(reporting_no_op)
    return app


if __name__ == "__main__":
    broker, backend, name = sys.argv[1:]
    app = register(make_app(broker_url=broker, result_backend=backend))
    app.Worker(
        pool="threads", concurrency=4, queues=[QUEUE], hostname=f"{name}@localhost", loglevel="ERROR", quiet=True
    ).start()
