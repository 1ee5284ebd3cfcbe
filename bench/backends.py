"""Store many results as workers do: each version of Celery stores one result of each kind, and the rest are copies.

party stores "template-STARTED" ─► fill: a copy for each task in flight
party stores "template-SUCCESS" ─► change: copies for some of them, and the notices of the change
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import psycopg
from redis import Redis

from celeriac.broker.app import make_app
from celeriac.worker.database_results import share_connections

TEMPLATES = {state: f"template-{state}" for state in ("STARTED", "SUCCESS")}
BATCH_SIZE = 10_000
PREFIX = "celery-task-meta-"


class Backend(Protocol):
    name: str
    url: str
    broker: str

    def clear(self) -> None: ...
    def learn(self, store: Callable[..., Any]) -> None:
        """Have a party store one result of each kind: `store(task_id=…, state=…)`."""
        ...

    def fill(self, ids: Sequence[str]) -> None:
        """Store STARTED for all of them."""
        ...

    def change(self, ids: Sequence[str]) -> None:
        """Store SUCCESS for these, and send the task events of a worker."""
        ...

    def commit(self, task_id: str) -> None:
        """Store SUCCESS for one task by one request, without task events."""
        ...


class OnRedis:
    name = "Redis"

    def __init__(self, url: str) -> None:
        self.url = self.broker = url
        self._client = Redis.from_url(url)
        self._values: dict[str, bytes] = {}

    def clear(self) -> None:
        self._client.flushall()

    def learn(self, store: Callable[..., Any]) -> None:
        for state, template in TEMPLATES.items():
            store(task_id=template, state=state)
            self._values[state] = self._client.get(PREFIX + template)
            self._client.delete(PREFIX + template)

    def fill(self, ids: Sequence[str]) -> None:
        for first in range(0, len(ids), BATCH_SIZE):
            chunk = ids[first : first + BATCH_SIZE]
            self._client.mset({PREFIX + task_id: self._value("STARTED", task_id) for task_id in chunk})

    def change(self, ids: Sequence[str]) -> None:
        with self._client.pipeline() as pipeline:
            for task_id in ids:
                value = self._value("SUCCESS", task_id)
                pipeline.set(PREFIX + task_id, value).publish(PREFIX + task_id, value)
            pipeline.execute()

    def commit(self, task_id: str) -> None:
        self.change([task_id])

    def _value(self, state: str, task_id: str) -> bytes:
        return self._values[state].replace(TEMPLATES[state].encode(), task_id.encode())


class OnPostgres:
    """A database. Our executor creates its trigger there; task events at the broker name the changes, too, as with
    workers that send them."""

    name = "PostgreSQL"

    def __init__(self, url: str, dsn: str, broker: str) -> None:
        self.url, self.broker = url, broker
        self._connection = psycopg.connect(dsn, autocommit=True)
        self._app = make_app(broker_url=broker, result_backend=url)
        self._events = self._app.events.Dispatcher(self._app.connection_for_write(), hostname="worker@here")

    def clear(self) -> None:
        self._connection.execute("DROP TABLE IF EXISTS celery_taskmeta, celery_tasksetmeta")

    def learn(self, store: Callable[..., Any]) -> None:
        for state, template in TEMPLATES.items():
            store(task_id=template, state=state)

    def fill(self, ids: Sequence[str]) -> None:
        columns = "status, result, date_done, traceback"
        self._connection.execute(
            f"INSERT INTO celery_taskmeta (id, task_id, {columns})"
            f" SELECT nextval('task_id_sequence'), new_id, {columns}"
            " FROM celery_taskmeta, unnest(%s::text[]) new_id WHERE task_id = %s",
            (list(ids), TEMPLATES["STARTED"]),
        )
        self._connection.execute("ANALYZE celery_taskmeta")

    def change(self, ids: Sequence[str]) -> None:
        self._store(ids)
        for task_id in ids:
            self._events.send("task-succeeded", uuid=task_id, result="", runtime=0.0)

    def commit(self, task_id: str) -> None:
        self._store([task_id])

    def _store(self, ids: Sequence[str]) -> None:
        self._connection.execute(
            "UPDATE celery_taskmeta SET (status, result) ="
            " (SELECT status, result FROM celery_taskmeta WHERE task_id = %s) WHERE task_id = ANY(%s)",
            (TEMPLATES["SUCCESS"], list(ids)),
        )


def worker_store(backend: Backend, value: object) -> Callable[[str], None]:
    """Return a function that stores the end of one task as a worker of ours does, without task events."""
    app = make_app(broker_url=backend.broker, result_backend=backend.url)
    if isinstance(backend, OnPostgres):
        share_connections(app)

    def store(task_id: str) -> None:
        app.backend.store_result(task_id, value, "SUCCESS")

    return store
