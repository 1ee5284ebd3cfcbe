"""The names of all keys on Redis and Valkey, built here alone, each with the prefix of the settings.

    PREFIX ─┬─ of the broker: Kombu's lists, hash of delivered messages and channels   BrokerKeys
            └─ of the backend: results, claims and leases; Celery adds "_" to it        BackendKeys

Kombu's client adds the prefix to the commands that Kombu sends, and to no others: to LLEN, not to LRANGE. So our own
commands need a client that adds nothing, and the whole name of a key.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celeriac.broker.celery_internals import redis_list_of

RESULT_PREFIX = "celery-task-meta-"


PRIORITIES = 10
SEPARATOR = "\x06\x16"  # Kombu's, between the name of a queue and a priority


def plain_lists(queue: str) -> list[str]:
    """Return the lists of a queue under this package's settings for Kombu, one for each priority, without a channel."""
    return [queue, *(f"{queue}{SEPARATOR}{priority}" for priority in range(1, PRIORITIES))]


def plain_queue_of(key: bytes) -> str:
    """Return the queue of one of the `plain_lists`."""
    return text_of(key).split(SEPARATOR)[0]


def text_of(key: bytes | str) -> str:
    return key.decode() if isinstance(key, bytes) else key


class BrokerKeys:
    """The whole names of the keys where a channel of Kombu keeps messages."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._prefix: str = channel.global_keyprefix or ""

    def waiting(self, queue: str) -> Iterator[str]:
        """Yield the lists of a queue, one for each priority."""
        for priority in self._channel.priority_steps:
            yield self._prefix + redis_list_of(self._channel, queue, priority)

    @property
    def any_list(self) -> str:
        """The pattern of the names of all lists, for SCAN."""
        return glob_escaped(self._prefix) + "*"

    def queue_of(self, key: bytes | str) -> str:
        """Return the queue of a list."""
        name: str = text_of(key).removeprefix(self._prefix).split(self._channel.sep)[0]
        return name

    @property
    def delivered(self) -> str:
        """The hash of the messages that a worker has received and not acknowledged."""
        return f"{self._prefix}{self._channel.unacked_key}"

    def bindings(self, exchange: str) -> str:
        """The set of the queues that are bound to an exchange."""
        return f"{self._prefix}{self._channel.keyprefix_queue % exchange}"

    @contextmanager
    def client(self) -> Iterator[Any]:
        """Lend a client of the channel that takes whole names: it adds no prefix to any command."""
        with self._channel.conn_or_acquire() as client:  # a new one, so that no other caller has this
            client.global_keyprefix = ""
            yield client


def number_of_mailboxes(app: Any, connection: Any) -> int | None:
    """Return how many workers listen to remote control. A killed one counts, too: it has not removed its mailbox.

    Return None if the broker does not tell: Redis alone does.
    """
    if connection.transport.driver_type != "redis":
        return None
    keys = BrokerKeys(connection.default_channel)
    with keys.client() as client:
        number: int = client.scard(keys.bindings(app.control.mailbox.exchange.name))
    return number


def glob_escaped(text: str) -> str:
    """Return the pattern of Redis that matches this text alone."""
    return "".join(f"\\{character}" if character in "*?[]\\" else character for character in text)


class BackendKeys:
    """The whole names of the keys of a result backend. A subscription to results follows the keys' own names."""

    def __init__(self, backend: Any = None) -> None:
        """Without Celery's `backend`, the names are those of one without a prefix."""
        self.results = RESULT_PREFIX if backend is None else text_of(backend.task_keyprefix)
        """The beginning of the names of all results."""

        self._prefix = self.results.removesuffix(RESULT_PREFIX)

    def result(self, task_id: str) -> str:
        return f"{self.results}{task_id}"

    def claim(self, task_id: str) -> str:
        return self._named(f"claim-{task_id}")

    def output(self, task_id: str) -> str:
        return self._named(f"output-{task_id}")

    def output_state(self, task_id: str) -> str:
        return self._named(f"output-state-{task_id}")

    def lease(self, holder: str) -> str:
        return self._named(f"lease-{holder}")

    def limit(self, name: str) -> str:
        """The places of a limit."""
        return self._named(f"limit-{name}")

    @property
    def leases(self) -> str:
        """The set of the holders that have a lease."""
        return self._named("leases")

    @property
    def token(self) -> str:
        """The counter of claims."""
        return self._named("token")

    @property
    def writable(self) -> str:
        """The key that is written to find out whether the server accepts writes."""
        return self._named("writable")

    @property
    def refused(self) -> str:
        """The list of refused messages."""
        return self._named("refused")

    def _named(self, name: str) -> str:
        return f"{self._prefix}celeriac-{name}"
