"""What Redis has, in the places where Kombu's transport keeps messages.

A queue is a list for each level of urgency. A message that was delivered stays in the hash `unacked` until the worker
has acknowledged it; with late acknowledgement, until its command has ended.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

PIECE = 1_000  # messages read at once
ID = re.compile(rb'\\*"correlation_id\\*": ?\\*"([^"\\]+)')
"""Every message of Celery's carries its task's id there; its body is in base64, where nothing looks like this."""


class RedisQueues:
    knows_which = True

    def may_hold(self, channel: Any, queues: Mapping[str, Collection[str]], *, delivered: bool) -> Iterator[str]:
        with channel.conn_or_acquire() as client:
            for queue in queues:
                for step in channel.priority_steps:
                    yield from ids_in(in_list(client, channel._q_for_pri(queue, step)))
            if delivered:
                yield from ids_in(message for _, message in client.hscan_iter(channel.unacked_key, count=PIECE))


def in_list(client: Any, name: str) -> Iterator[bytes]:
    """From the end where messages are put in: what comes meanwhile shows some twice, what goes hides none."""
    for n in range(0, client.llen(name), PIECE):
        yield from client.lrange(name, n, n + PIECE - 1)


def ids_in(messages: Any) -> Iterator[str]:
    for message in messages:
        yield from (found.decode() for found in ID.findall(message))
