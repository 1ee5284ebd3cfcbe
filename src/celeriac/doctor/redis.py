"""Checks of a Redis or Valkey as broker or result backend."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from celery import Celery

from celeriac.backend.kind import BackendKind, backend_kind
from celeriac.backend.redis_client import make_client
from celeriac.broker.app import app_for
from celeriac.broker.redis_keys import BrokerKeys
from celeriac.broker.session import BrokerSession
from celeriac.cluster.preflight import check_backend, check_broker
from celeriac.config.settings import Connection
from celeriac.doctor.check import Check, Problem, Subject, Unreadable, error, warning
from celeriac.doctor.server import (
    CLOCK,
    CONNECTIONS_CHECK,
    LOGIN_CHECK,
    NEARLY,
    REACHABLE,
    RIGHTS_CHECK,
    WRITABLE,
    ServerFacts,
    attempt,
    owner_of,
    refusal,
)
from celeriac.errors import InvalidConfig
from celeriac.server_errors import is_server_error

T = TypeVar("T")

NO_EVICTION = "noeviction"
START_TIMEOUT = 1.0  # seconds for one request at the start of a worker, which does not wait for it
SCRIPT = "return 1"


@dataclass(slots=True, kw_only=True)
class RedisFacts(ServerFacts):
    """The facts of a Redis."""

    has_messages: bool = False
    """Whether it is the broker."""

    has_claims: bool = False
    """Whether it is the result backend."""

    info: Mapping[str, Any] = field(default_factory=dict)
    """The reply to INFO; empty if this user may not ask for it."""

    save: str | None = None
    """When snapshots are made: "" for never; None if this user may not ask for it."""

    script_error: BaseException | None = None

    IDS: ClassVar[Collection[str]] = (
        *("redis-cluster", "redis-memory", "redis-persistence", "redis-replica", "redis-keys", "redis-scripts"),
        *("connections", "rights"),
    )

    @property
    def snapshot_status(self) -> str | None:
        """How the last snapshot ended; None if no more snapshots are made."""
        return None if self.save == "" else self.info.get("rdb_last_bgsave_status")

    def number(self, name: str) -> int:
        """Return a number of INFO; 0 if it is not there."""
        value = self.info.get(name, 0)
        return value if isinstance(value, int) else 0


# — decisions —


def eviction_problem(facts: RedisFacts) -> Iterator[Problem]:
    """Yield a problem if the server may remove claims or messages. Claims expire some day, and messages do not."""
    policy = str(facts.info.get("maxmemory_policy", NO_EVICTION))
    endangers = facts.has_claims if policy.startswith("volatile-") else policy != NO_EVICTION
    if facts.number("maxmemory") and endangers:
        what = "claims and results" if facts.has_claims else "messages"
        text = f"maxmemory-policy is {policy}: when its memory is full, the server removes {what}"
        yield error(text, f"CONFIG SET maxmemory-policy {NO_EVICTION}, also in the server's configuration")


def memory_problem(facts: RedisFacts) -> Iterator[Problem]:
    yield from facts.problems("redis-memory")
    used, allowed = facts.number("used_memory"), facts.number("maxmemory")
    if facts.error is None and allowed and used >= NEARLY * allowed:
        text = f"{used / 1e6:,.0f} MB of maxmemory, {allowed / 1e6:,.0f} MB, are used"
        yield warning(text, "raise maxmemory, or remove data")


def persistence_problem(facts: RedisFacts) -> Iterator[Problem]:
    yield from facts.problems("redis-persistence")
    has_failed = "err" in (facts.info.get("aof_last_write_status"), facts.snapshot_status)
    if facts.error is None and has_failed:
        yield error("the server could not save its data", "make it able to: see its log, and its disk")
    elif facts.info.get("aof_enabled") == 0 and facts.save == "":
        what = "claims and results" if facts.has_claims else "waiting messages"
        text = f"the server saves nothing: a restart loses {what}"
        yield warning(text, "CONFIG SET appendonly yes, also in the server's configuration")


def replica_problem(facts: RedisFacts) -> Iterator[Problem]:
    if facts.info.get("role") == "slave":
        host, port = facts.info.get("master_host"), facts.info.get("master_port")
        yield error(f"the server is a replica of {host}:{port}", "connect to the primary server")
    else:
        yield from facts.problems("redis-replica")


def cluster_problem(facts: RedisFacts) -> Iterator[Problem]:
    if facts.number("cluster_enabled"):
        yield error("the server is a node of a Redis Cluster", "name a server that is none; Celery cannot use one")
    else:
        yield from facts.problems("redis-cluster")


def scripts_problem(facts: RedisFacts) -> Iterator[Problem]:
    if facts.script_error is not None and owner_of(facts.script_error) == "redis-scripts" and facts.has_claims:
        yield refusal(facts.script_error)
    elif facts.has_claims:
        yield from facts.problems("redis-scripts")


def keys_problem(facts: RedisFacts) -> Iterator[Problem]:
    for problem in facts.problems("redis-keys"):
        remedy = "give this user the right to these keys and channels, or set key_prefix to a prefix that it may use"
        yield error(problem.text, remedy)


# — facts —


def read_redis(
    app: Celery, queues: Collection[str], timeout: float, *, as_broker: bool, as_backend: bool
) -> RedisFacts:
    """Use the server as a run does, and ask it for its state."""
    facts = RedisFacts(has_messages=as_broker, has_claims=as_backend)
    if as_broker:
        facts.error = attempt(lambda: check_broker(app, queues, timeout))
    if as_backend and facts.error is None:
        facts.error = attempt(lambda: check_backend(app, timeout))
    if facts.error is not None and owner_of(facts.error) in ("reachable", "login"):
        return facts
    state_error = attempt(lambda: read_state(app, facts, timeout))
    facts.error = facts.error or state_error
    return facts


def read_state(app: Celery, facts: RedisFacts, timeout: float) -> None:
    if facts.has_claims:
        client = make_client(app.backend, timeout)
        try:
            ask(client, facts)
        finally:
            client.close()
        return
    with (
        BrokerSession(app, timeout=timeout).open() as connection,
        BrokerKeys(connection.default_channel).client() as client,
    ):
        ask(client, facts)


def ask(client: Any, facts: RedisFacts, *, reads_settings: bool = True) -> None:
    facts.info = reply_or(client.info, {})
    if reads_settings:
        facts.save = reply_or(lambda: text_of_setting(client.config_get("save")), None)
    facts.script_error = attempt(lambda: client.eval(SCRIPT, 0))
    facts.clock = reply_or(lambda: clock_difference(client), None)
    if allowed := facts.number("maxclients"):
        facts.connections = facts.number("connected_clients"), allowed


def is_named_user(client: Any) -> bool:
    """Return whether the client logs in as a user of the server's own making. Such a user often has few rights, and the
    server records each request that it denies."""
    return client.connection_pool.connection_kwargs.get("username") not in (None, "default")


def reply_or(request: Callable[[], T], otherwise: T) -> T:
    """Return the reply to a request; `otherwise` if this user may not make it."""
    try:
        return request()
    except Exception as problem:
        if not is_server_error(problem):
            raise
        return otherwise


def text_of_setting(reply: Mapping[Any, Any]) -> str | None:
    value = next(iter(reply.values()), None)
    return value.decode() if isinstance(value, bytes) else value


def clock_difference(client: Any) -> float:
    before = time.time()
    seconds, microseconds = client.time()
    return float(seconds + microseconds / 1e6 - (before + time.time()) / 2)


CHECKS: tuple[Check[Any], ...] = (
    REACHABLE,
    LOGIN_CHECK,
    Check(
        id="redis-cluster",
        sound="it is no Redis Cluster",
        risk="Celery cannot use it.",
        look=cluster_problem,
    ),
    Check(
        id="redis-replica",
        sound="it is no replica",
        risk="Nothing can be written.",
        look=replica_problem,
    ),
    Check(
        id="redis-keys",
        sound="this user may use the keys and channels of key_prefix",
        risk="Tasks cannot be sent, or their results cannot be stored.",
        look=keys_problem,
    ),
    Check(
        id="redis-scripts",
        sound="scripts are allowed",
        risk="Workers cannot claim tasks.",
        look=scripts_problem,
    ),
    RIGHTS_CHECK,
    Check(
        id="redis-memory",
        sound="there is room below maxmemory",
        risk="Tasks wait until there is.",
        look=memory_problem,
        is_cheap=True,
    ),
    Check(
        id="redis-eviction",
        sound="maxmemory-policy removes nothing",
        risk="Claims or messages vanish: a task may run twice, or late.",
        look=eviction_problem,
        is_cheap=True,
    ),
    Check(
        id="redis-persistence",
        sound="it saves its data",
        risk="A restart loses messages, which are sent again, and claims: a task may run twice.",
        look=persistence_problem,
        is_cheap=True,
    ),
    WRITABLE,
    CONNECTIONS_CHECK,
    CLOCK,
)


def redis_subject(
    name: str, app: Celery, queues: Collection[str], timeout: float, *, as_broker: bool, as_backend: bool
) -> Subject[RedisFacts]:
    return Subject(name, lambda: read_redis(app, queues, timeout, as_broker=as_broker, as_backend=as_backend), CHECKS)


def backend_state_subject(connection: Connection) -> Subject[RedisFacts] | None:
    """Return the subject for the state of a Redis that a worker or a service begins to use as its result backend.

    All modules are imported here: a worker may fork while a thread still reads the state.
    """
    try:
        app = app_for(connection)
    except InvalidConfig:  # the start itself says so
        return None
    return app_state_subject(app)


def app_state_subject(app: Celery) -> Subject[RedisFacts] | None:
    """Return the same subject for an app; None if its result backend is no Redis."""
    if backend_kind(app) is not BackendKind.REDIS:
        return None
    client = make_client(app.backend, START_TIMEOUT)

    def read() -> RedisFacts:
        facts = RedisFacts(has_claims=True)
        with closing(client):
            if attempt(lambda: ask(client, facts, reads_settings=not is_named_user(client))) is not None:
                raise Unreadable
        return facts

    return Subject("result backend", read, CHECKS)
