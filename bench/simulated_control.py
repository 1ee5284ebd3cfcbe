"""Answer Celery's remote control for many simulated workers: each broadcast gets one reply from each of them."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from celery import Celery

POLL = 1.0  # seconds for which one look at the connection waits


class Named(Protocol):
    name: str
    slots: int


def answer_control(app: Celery, queue: str, workers: Callable[[], Sequence[Named]]) -> None:
    """Answer for these workers, for ever. The sizes of the replies are those of Celery's own worker."""
    began = time.time()
    answering: list[Named] = []

    def stats(_: Any) -> dict[str, Any]:
        worker = answering[0]
        return {
            "total": {"celeriac.execute_command": 1000},
            "pid": os.getpid(),
            "clock": "1000",
            "uptime": round(time.time() - began),
            "pool": {"max-concurrency": worker.slots, "threads": worker.slots, "implementation": "threads"},
            "broker": app.connection_for_read().info(),
            "prefetch_count": worker.slots,
            "rusage": usage(),
        }

    def active_queues(_: Any) -> list[Any]:
        return [app.amqp.queues[queue].as_dict(recurse=True)]

    handlers = {"stats": stats, "active_queues": active_queues, "query_task": lambda _, **__: {}}
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        node = app.control.mailbox(connection).Node("celery@all-simulated", channel=channel, handlers=handlers)

        def on_message(body: Any, message: Any) -> None:
            for worker in workers() if body.get("method") in handlers else ():
                answering[:] = [worker]
                node.hostname = worker.name
                node.handle_message(body, message)

        with node.Consumer(callbacks=[on_message], accept=["json"]):
            while True:
                try:
                    connection.drain_events(timeout=POLL)
                except TimeoutError:
                    continue


def usage() -> dict[str, Any]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {name.removeprefix("ru_"): getattr(used, name) for name in dir(used) if name.startswith("ru_")}
