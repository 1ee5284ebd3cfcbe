"""Ask workers by Celery's remote control, and hand over their replies as they come.

    question ─► worker A ─► reply
                worker B ─► reply to an earlier question ─► ignored, and not counted
                         └► reply

Celery ends a question to named workers after as many messages as there are names. A worker that was too slow for the
question before may still reply to that one: its late reply would be counted instead of the one that is due.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from celery import Celery

OnReply = Callable[[Mapping[str, Any]], object]


class _AllReplied(Exception):
    """End a question: each of the named workers has replied."""


def ask_workers(
    app: Celery,
    connection: Any,
    command: str,
    on_reply: OnReply,
    *,
    timeout: float,
    names: Iterable[str] | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> None:
    """Ask the workers of these names, or all. Call `on_reply` with each reply.

    Return when each of `names` has replied, or when nothing has arrived for `timeout` seconds. A question to all
    always takes the timeout: how many workers there are is not known.
    """
    destination = None if names is None else sorted(set(names))
    missing = set(destination or ())

    def take(reply: Any) -> None:
        if isinstance(reply, Mapping):
            on_reply(reply)
            missing.difference_update(reply)
        if destination is not None and not missing:
            raise _AllReplied

    with contextlib.suppress(_AllReplied):
        app.control.broadcast(
            command,
            arguments=dict(arguments or {}),
            destination=destination,
            connection=connection,
            reply=True,
            timeout=timeout,
            callback=take,
            limit=0,  # no limit of messages; None would mean the number of names
        )
