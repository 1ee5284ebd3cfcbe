"""Ask the workers of a broker, and wait for those that must reply.

    all workers ─► the replies within a second ─► those with a lease that have not replied: asked again, 5 s
    one worker  ─► its reply, as soon as it comes

How many workers of Airflow's own there are is not known, so a question to all takes the second in full. A worker with a
lease is known, and may be busy: it gets more time.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from celery import Celery

from celeriac.cluster.status import leases_of
from celeriac.cluster.worker_questions import ask_workers
from celeriac.cluster.worker_registry import REPLY_TIMEOUT

LEASED_TIMEOUT = 5.0  # seconds for a worker with a lease to reply


@dataclass(frozen=True, slots=True)
class Replies:
    """The replies of workers to one question."""

    by_worker: Mapping[str, Any]
    silent: Sequence[str] = ()
    """The workers that must reply, and have not, sorted by name."""


def ask_all(app: Celery, connection: Any, command: str, expected: Collection[str]) -> Replies:
    """Ask all workers, and once more those of the `expected` ones that have not replied within a second."""
    first = ask(app, connection, command, None, REPLY_TIMEOUT)
    late = sorted(set(expected) - first.keys())
    return Replies(first) if not late else merged(first, ask_named(app, connection, command, late))


def ask_named(app: Celery, connection: Any, command: str, names: Collection[str]) -> Replies:
    """Ask these workers. Return as soon as all of them have replied."""
    if not names:
        return Replies({})
    found = ask(app, connection, command, names, LEASED_TIMEOUT)
    return Replies(found, sorted(set(names) - found.keys()))


def ask(
    app: Celery,
    connection: Any,
    command: str,
    names: Collection[str] | None,
    timeout: float,
    arguments: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the replies by worker. End when all of `names` have replied, or none has for `timeout` seconds."""
    found: dict[str, Any] = {}
    ask_workers(app, connection, command, found.update, timeout=timeout, names=names, arguments=arguments)
    return {str(name): reply for name, reply in found.items()}


def merged(first: Mapping[str, Any], second: Replies) -> Replies:
    return Replies({**first, **second.by_worker}, second.silent)


def live_workers(app: Celery, timeout: float) -> list[str]:
    """Return the workers with a lease that has not expired, sorted; none if the leases cannot be read.

    `timeout`, in seconds, bounds one operation.
    """
    return [worker.name for worker in leases_of(app, timeout).workers if not worker.is_suspected]


def report_silent(names: Collection[str], effect: str) -> None:
    """Name the silent workers, one line each, on standard error."""
    for name in names:
        line = f"airflow celeriac: worker {name} has not replied within {LEASED_TIMEOUT:.0f} s; {effect}"
        print(line, file=sys.stderr)  # noqa: T201
