"""Find task ids in Redis, where Kombu's transport keeps messages.

A queue is one list for each priority. A delivered message stays in the hash `unacked` until the worker has acknowledged
it; with late acknowledgement, until its command has ended.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from celeriac.broker.redis_keys import BrokerKeys

BATCH_SIZE = 1_000  # messages read at once
ID = re.compile(rb'"correlation_id\\*": ?\\*"([^"\\]+)')
"""Every message of Celery has its task's id in this property. Its body is in base64, which cannot match. The pattern
begins with plain text: that is searched for ten times as fast as one that begins with an optional character."""


class RedisQueues:
    """Reads whole queues."""

    lists_ids = True

    def find(self, channel: Any, ids_of_queue: Mapping[str, Collection[str]], *, with_delivered: bool) -> Iterator[str]:
        keys = BrokerKeys(channel)
        with keys.client() as client:
            for queue in ids_of_queue:
                for name in keys.waiting(queue):
                    yield from find_ids(read_list(client, name))
            if with_delivered:
                yield from find_ids(message for _, message in client.hscan_iter(keys.delivered, count=BATCH_SIZE))


def read_list(client: Any, name: str) -> Iterator[bytes]:
    """Yield the messages of a list, from the end where new messages are added. So a message that is added meanwhile
    shows another message twice, and a message that is taken meanwhile hides none."""
    for start in range(0, client.llen(name), BATCH_SIZE):
        yield from client.lrange(name, start, start + BATCH_SIZE - 1)


def find_ids(messages: Iterable[bytes]) -> Iterator[str]:
    """Yield the task ids in messages."""
    for message in messages:
        yield from (task_id.decode(errors="replace") for task_id in ID.findall(message))
