"""Run the worker of the end-to-end part: `python -m bench.worker BROKER BACKEND NAME [QUEUE]`.

It has four threads, for tasks that do nothing.

It claims each task of the queue CLAIMED_QUEUE, under a lease, as `celeriac worker` does.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any
from uuid import uuid4

from celery import Celery
from celery.exceptions import Ignore

from celeriac import Task
from celeriac.backend.claims import claims_for
from celeriac.backend.claims.claim import Granted, Lease, new_holder
from celeriac.broker.app import make_app
from celeriac.broker.task_message import TaskMessage
from celeriac.config.lease import RENEWAL_INTERVAL

QUEUE, CLAIMED_QUEUE = "bench", "bench-claimed"
NO_OP = "bench.no_op"
REPORTING_NO_OP = "bench.reporting_no_op"
TIMEOUT = 60.0  # seconds
REPORT: dict[str, Any] = {"reason": None, "detail": None, "execution": {"host": "here", "exit_code": 0}}
"""What a worker of ours says of a command that ended well, at its shortest."""


def no_op_call(task: Task) -> TaskMessage:
    return TaskMessage(name=REPORTING_NO_OP, args=(), argsrepr="()", options={"queue": task.queue})


def no_op() -> None:
    """The task for plain Celery."""


def reporting_no_op() -> dict[str, Any]:
    """The same task with a result that our executor reads."""
    return REPORT


def register(app: Celery) -> Celery:
    app.task(name=NO_OP)(no_op)
    app.task(name=REPORTING_NO_OP)(reporting_no_op)
    return app


def register_claiming(app: Celery, name: str) -> Celery:
    claims = claims_for(app, timeout=TIMEOUT)
    assert claims is not None
    lease = Lease(
        holder=new_holder(), name=name, host="here", pid=os.getpid(), boot_id="", queues=(CLAIMED_QUEUE,), slots=4
    )

    def keep_alive() -> None:
        while True:
            claims.renew(lease)
            time.sleep(RENEWAL_INTERVAL)

    def claimed_no_op(task: Any) -> dict[str, Any]:
        place = {"pid": os.getpid(), "hostname": task.request.hostname}
        said = claims.claim(
            task.request.id, holder=lease.holder, delivery=uuid4().hex, started_info=place, request=task.request
        )
        if not isinstance(said, Granted):
            raise Ignore
        return REPORT

    threading.Thread(target=keep_alive, daemon=True).start()
    app.task(name=REPORTING_NO_OP, bind=True, track_started=False)(claimed_no_op)  # the claim stores STARTED
    return app


if __name__ == "__main__":
    broker, backend, name, *rest = sys.argv[1:]
    queue = rest[0] if rest else QUEUE
    app = make_app(broker_url=broker, result_backend=backend)
    register_claiming(app, name) if queue == CLAIMED_QUEUE else register(app)
    app.Worker(
        pool="threads", concurrency=4, queues=[queue], hostname=f"{name}@localhost", loglevel="ERROR", quiet=True
    ).start()
