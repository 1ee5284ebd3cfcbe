"""The brokers of an app: one, or a list of which one is used at a time. All connections of the app share the choice.

    redis://a;redis://b    servers that share no messages: everyone uses the first that answers, and returns to it
    amqp://a;amqp://b      nodes of one cluster: a process stays with the node that answered last
    sentinel://a;…         one broker: Kombu asks any of these servers for its address

If everyone returns to the first server of a list, an executor and a worker cannot stay on different servers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from random import shuffle
from typing import Any
from weakref import WeakKeyDictionary

from celery import Celery

from celeriac.config.masking import masked
from celeriac.config.settings import REDIS_SCHEMES, scheme_of, split_brokers
from celeriac.log_lines import logger_for
from celeriac.server_errors import is_server_error
from celeriac.surviving_loop import SurvivingLoop

logger = logger_for(__name__)

RETURN_INTERVAL = 5.0  # seconds between two tries to return to an earlier broker of the list


class BrokerList:
    """The URLs of the brokers, and which of them is used. Safe in any thread."""

    def __init__(self, urls: Sequence[str], *, prefers_first: bool = False) -> None:
        """With `prefers_first`, an earlier broker is better than a later one that works."""
        self.urls, self._prefers_first = tuple(urls), prefers_first
        self._lock = threading.Lock()
        self._current = 0

    @property
    def current(self) -> str:
        """The broker that is used."""
        return self.urls[self._current]

    @property
    def has_several(self) -> bool:
        return len(self.urls) > 1

    def in_order(self) -> list[str]:
        """Return all brokers in the order in which they should be tried: first the one that is used."""
        current = self.current
        return [current, *(url for url in self.urls if url != current)]

    def better(self) -> list[str]:
        """Return the brokers that should be used instead of the current one, if they answer."""
        return list(self.urls[: self._current]) if self._prefers_first else []

    def use(self, url: str) -> None:
        """Use a broker from now on, because it has answered."""
        with self._lock:
            previous, self._current = self.current, self.urls.index(url)
        if previous != url:
            logger.warning("%s is used from now on instead of %s", masked(url), masked(previous))

    def __str__(self) -> str:
        """Return the URLs without passwords."""
        return " or ".join(masked(url) for url in self.urls)


lock = threading.Lock()
lists: WeakKeyDictionary[Celery, dict[str, BrokerList]] = WeakKeyDictionary()


def broker_list_of(app: Celery, *, for_read: bool = False) -> BrokerList:
    """Return the brokers of an app. All callers get the same list."""
    configured = (app.conf.broker_read_url if for_read else app.conf.broker_write_url) or app.conf.broker_url
    brokers = ";".join(configured) if isinstance(configured, list | tuple) else str(configured or "amqp://")
    with lock:
        lists_of_app = lists.setdefault(app, {})
        if brokers not in lists_of_app:
            urls = list(split_brokers(brokers))
            if app.conf.broker_failover_strategy == "shuffle":
                shuffle(urls)
            lists_of_app[brokers] = BrokerList(urls, prefers_first=scheme_of(brokers) in REDIS_SCHEMES)
        return lists_of_app[brokers]


def connect(app: Celery, url: str, *, timeout: float, for_read: bool = False, **options: Any) -> Any:
    """Return an open connection to one broker. Raise an error of its client."""
    new_connection = app.connection_for_read if for_read else app.connection_for_write
    has_several = broker_list_of(app, for_read=for_read).has_several
    connection = new_connection(url if has_several else None, connect_timeout=timeout, **options)
    try:
        connection.ensure_connection(max_retries=0, timeout=timeout)
    except BaseException:
        connection.collect()
        raise
    return connection


def connect_to_any(app: Celery, *, timeout: float, for_read: bool = False, **options: Any) -> tuple[Any, str]:
    """Try the brokers in order. Return an open connection to the first that answers, and its URL.

    Raise the error of the first one if none answers. `timeout`, in seconds, bounds the attempt at one broker.
    """
    brokers = broker_list_of(app, for_read=for_read)
    failure: Exception | None = None
    for url in brokers.in_order():
        try:
            connection = connect(app, url, timeout=timeout, for_read=for_read, **options)
        except Exception as error:
            if not (brokers.has_several and is_server_error(error)):
                raise
            failure = failure or error
        else:
            brokers.use(url)
            return connection, url
    assert failure is not None  # noqa: S101 - a list has at least one broker
    raise failure


class RecordedCycle:
    """Kombu's iterator over the URLs of a connection. It keeps the URL that Kombu took last."""

    def __init__(self, urls: Iterator[str]) -> None:
        self._urls = urls
        self.last = ""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.last = next(self._urls)
        return self.last


def begin_with_current(connection: Any, brokers: BrokerList) -> RecordedCycle:
    """Make a Kombu connection that is not open try the brokers in order. Return the cycle of their URLs."""
    connection.alt = brokers.in_order()
    cycle = connection.cycle = RecordedCycle(connection.failover_strategies["round-robin"](connection.alt))
    connection.switch(next(cycle))
    return cycle


class ReturnToFirst:
    """A thread that returns to an earlier broker of the list once that broker answers again."""

    def __init__(self, app: Celery, *, timeout: float, interval: float = RETURN_INTERVAL) -> None:
        """`timeout`, in seconds, bounds one attempt. The thread starts only for brokers that share no messages."""
        self._app, self._timeout, self._interval = app, timeout, interval
        self._brokers = broker_list_of(app)
        self._closed = threading.Event()
        self._thread = SurvivingLoop("celeriac-first-broker", self._run_round, wait=self._closed.wait)
        if self._brokers.has_several and scheme_of(self._brokers.current) in REDIS_SCHEMES:
            self._thread.start()

    def close(self) -> None:
        """End the thread. Do not wait for an attempt under way."""
        self._closed.set()

    def _run_round(self) -> bool:
        if self._closed.wait(self._interval):
            return False
        for url in self._brokers.better():
            try:
                connect(self._app, url, timeout=self._timeout).collect()
            except Exception as error:
                if not is_server_error(error):
                    raise
                logger.debug("%s does not answer yet: %s", masked(url), error)
            else:
                self._brokers.use(url)
                break
        return True
