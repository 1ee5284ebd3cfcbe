"""Servers that answer and refuse: each refusal, from each moment on, for each pair of broker and result backend.

    refusal   what a server replies: OOM, READONLY, … 25006, 53100, … an alarm, 403, …
    moment    the first request that is refused: a claim, a renewal, the storing of a result, …
    pair      broker and result backend: Redis for both; RabbitMQ and PostgreSQL; Redis with a ledger in PostgreSQL; …

Two workers run commands, and a run has more for them. A server refuses for a while. Then each command has run once,
from its beginning to its end; no task was lost; all slots are free; every process ends with status 0; and no log has a
traceback. A refusal that only a person can lift ends a worker and a run that start meanwhile: with status 2 and one
line.

The servers are real and refuse by themselves, except where `answering` says that a proxy gives the reply: those
refusals need a cluster, a full disk, or a fault of the server. Cells that do not exist:

    OOM, READONLY, NOREPLICAS, MISCONF, 25006, 53100   refuse writes: neither the reading of results nor the search
    53300, 320, 506                                    refuse or end connections: the same from each moment on
    404, 405, 406                                      concern a queue, not results and claims
    alarms                                             block the connections that publish, and no others
    OOM for renewing alone                             a server refuses all writes, or none
    53100, 42501                                       concern tables, which do not exist at the start
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path

import pytest
from amqp import Connection
from amqp.exceptions import PreconditionFailed, ResourceLocked

from tests.support.cli_runner import Celeriac, until, without_password_warning
from tests.support.long import LONG
from tests.support.refusal_site import MEET, RECORD, SLOTS, RefusalSite
from tests.support.refusing_proxy import EVERYTHING, AmqpError, RedisError, Refusal, SqlError
from tests.support.servers import PgBouncer, PostgresServer, RabbitServer, RedisServer, Server

pytestmark = [pytest.mark.celery, pytest.mark.fault, pytest.mark.usefixtures("collect_cut_sockets")]

HOLD = 12.0 if LONG else 8.0
"""Seconds of a refusal. After 6 s without heartbeats supervisors end commands, after 10 s a worker is declared dead."""

SHORT_HOLD = 4.0
"""Seconds of a refusal from a moment on that depends on no time limit."""

LONG_MOMENTS = ("running", "renewing", "idle")

RUNNING = {f"long-{n}": "late" for n in range(SLOTS // 2)} | {f"short-{n}": "early" for n in range(SLOTS // 2)}
"""The tasks that run when the refusal begins, each with its gate: half of them end during the refusal."""

TASKS = RUNNING | {f"waiting-{n}": "early" for n in range(3 * SLOTS)}
"""All tasks. Some of those that wait are published only after the first ends."""

Begin = Callable[[RefusalSite], AbstractContextManager[object]]


# — Redis for both —

CONNECTING = rb"AUTH|HELLO|CLIENT|SELECT|INFO|P?SUBSCRIBE|P?UNSUBSCRIBE|PUBLISH|MULTI|EXEC|DISCARD|SCRIPT"
WITH_KEYS = rb"^(?!PING|" + CONNECTING + rb")"
WHILE_LOADING = rb"^(?!" + CONNECTING + rb")"

REDIS_MOMENTS = {
    "claiming": rb"^EVALSHA \S+ 4 celeriac-claim-",
    "renewing": rb'^EVALSHA \S+ \d+ celeriac-lease-\S+ celeriac-leases .*"holder"',
    "storing": rb"^SET(EX)? celery-task-meta-.*SUCCESS",
    "acknowledging": rb"^HDEL unacked ",
    "publishing": rb"^LPUSH default",
    "searching": rb"^(LLEN default|HSCAN unacked)",
    "reading": rb"^MGET .*celery-task-meta-",
}
WRITING = ("claiming", "renewing", "storing", "acknowledging", "publishing")
ALONE = ("claiming", "storing", "acknowledging", "publishing")
ALWAYS = ("start", "idle", "running")


def on_redis(begin: Callable[[RedisServer], AbstractContextManager[object]]) -> Begin:
    def begin_on(site: RefusalSite) -> AbstractContextManager[object]:
        assert isinstance(site.broker, RedisServer)
        return begin(site.broker)

    return begin_on


def without_rights(site: RefusalSite) -> AbstractContextManager[object]:
    assert isinstance(site.broker, RedisServer)
    return site.broker.without_rights(site.broker_url)


def answering_broker(request: bytes, refusal: Refusal) -> Begin:
    return lambda site: site.answering(site.broker, request, refusal)


def answering_backend(request: bytes, refusal: Refusal) -> Begin:
    return lambda site: site.answering(site.backend, request, refusal)


def answering_ledger(request: bytes, refusal: Refusal) -> Begin:
    return lambda site: site.answering(site.postgres, request, refusal)


OOM = RedisError("OOM command not allowed when used memory > 'maxmemory'.")

REDIS: dict[str, tuple[Begin, tuple[str, ...]]] = {
    "OOM": (on_redis(RedisServer.full), (*ALWAYS, *WRITING)),
    "READONLY": (on_redis(RedisServer.read_only), (*ALWAYS, *WRITING)),
    "NOREPLICAS": (on_redis(RedisServer.no_replicas), (*ALWAYS, *WRITING)),
    "MISCONF": (on_redis(RedisServer.misconf), (*ALWAYS, *WRITING)),
    "MASTERDOWN": (on_redis(RedisServer.master_down), (*ALWAYS, *REDIS_MOMENTS)),
    "BUSY": (on_redis(RedisServer.busy), (*ALWAYS, *REDIS_MOMENTS)),
    "LOADING": (
        answering_broker(WHILE_LOADING, RedisError("LOADING Redis is loading the dataset in memory")),
        (*ALWAYS, *REDIS_MOMENTS),
    ),
    "restart with LOADING": (on_redis(RedisServer.loading), ("running",)),
    "CLUSTERDOWN": (
        answering_broker(WITH_KEYS, RedisError("CLUSTERDOWN The cluster is down")),
        (*ALWAYS, *REDIS_MOMENTS),
    ),
    "MOVED": (answering_broker(WITH_KEYS, RedisError("MOVED 3999 127.0.0.1:1")), (*ALWAYS, *REDIS_MOMENTS)),
    "NOPERM": (without_rights, (*ALWAYS, *REDIS_MOMENTS)),
    "NOAUTH": (on_redis(RedisServer.password_changed), (*ALWAYS, *REDIS_MOMENTS)),
    **{f"OOM for {moment} alone": (answering_broker(REDIS_MOMENTS[moment], OOM), (moment,)) for moment in ALONE},
}


# — RabbitMQ and PostgreSQL —

POSTGRES_MOMENTS = {
    "claiming": rb"^INSERT INTO celeriac_claim",
    "renewing": rb"^UPDATE celeriac_lease SET",
    "storing": rb"^UPDATE celery_taskmeta SET",
    "reading": rb"^SELECT celery_taskmeta",
    "searching": rb"^SELECT .*FROM celeriac_claim\s+WHERE .*holder IS NOT NULL",
}
RABBIT_MOMENTS = {
    "acknowledging": rb"^basic\.ack",
    "publishing": rb"^basic\.publish .*\x07default",
    "searching messages": rb"^queue\.declare \x00\x00\x07default[\x01\x09]",
}
LEDGER_MOMENTS = {"writing the ledger": rb"^(INSERT INTO|UPDATE) celeriac_task"}
POSTGRES_WRITING = ("claiming", "renewing", "storing")
WRITING_RESULTS = rb"^(INSERT INTO|UPDATE) (celery_taskmeta|celeriac_claim|celeriac_lease)"
WRITING_LEDGER = rb"^(INSERT INTO|UPDATE) celeriac_(task|run)"


def on_postgres(begin: Callable[[PostgresServer], AbstractContextManager[object]]) -> Begin:
    return lambda site: begin(site.postgres)


def on_rabbit(begin: Callable[[RabbitServer], AbstractContextManager[object]]) -> Begin:
    def begin_on(site: RefusalSite) -> AbstractContextManager[object]:
        assert isinstance(site.broker, RabbitServer)
        return begin(site.broker)

    return begin_on


@contextlib.contextmanager
def full_disk(rabbit: RabbitServer) -> Iterator[None]:
    """Raise the disk alarm."""
    rabbit.control("set_disk_free_limit", "mem_relative", "1000.0")
    try:
        yield
    finally:
        rabbit.control("set_disk_free_limit", "50MB")


@contextlib.contextmanager
def queue_replaced(rabbit: RabbitServer, *, is_exclusive: bool) -> Iterator[None]:
    """Replace the queue by one of another connection (405), or by one with other arguments (406)."""
    with Connection(f"127.0.0.1:{rabbit.port}", virtual_host=rabbit.vhost) as connection:
        while True:
            channel = connection.channel()
            channel.queue_delete("default")
            with contextlib.suppress(PreconditionFailed, ResourceLocked):  # a client has declared it in between
                channel.queue_declare("default", exclusive=is_exclusive, auto_delete=False)
                break
        yield
        channel.queue_delete("default")


@contextlib.contextmanager
def queue_deleted(rabbit: RabbitServer) -> Iterator[None]:
    rabbit.control("delete_queue", "--vhost", rabbit.vhost, "default")
    yield


@contextlib.contextmanager
def database_killed(postgres: PostgresServer) -> Iterator[None]:
    postgres.kill()
    try:
        yield
    finally:
        postgres.start()


def closing_connections(code: int, text: str) -> Begin:
    return answering_broker(rb"^(queue|basic)\.", AmqpError(code, text, closes=True))


DISK_FULL = SqlError("53100", "could not extend file: No space left on device")
FATAL_57P03 = SqlError("57P03", "the database system is shutting down", closes=True)

RABBIT: dict[str, tuple[Begin, tuple[str, ...]]] = {
    "memory alarm": (on_rabbit(RabbitServer.memory_alarm), (*ALWAYS, "publishing", "acknowledging")),
    "disk alarm": (on_rabbit(full_disk), ("running", "publishing")),
    "403": (on_rabbit(RabbitServer.no_rights), (*ALWAYS, *RABBIT_MOMENTS)),
    "404": (on_rabbit(queue_deleted), ("idle", "running", *RABBIT_MOMENTS)),
    "405": (on_rabbit(lambda rabbit: queue_replaced(rabbit, is_exclusive=True)), (*ALWAYS, *RABBIT_MOMENTS)),
    "406": (on_rabbit(lambda rabbit: queue_replaced(rabbit, is_exclusive=False)), (*ALWAYS, *RABBIT_MOMENTS)),
    "320": (closing_connections(320, "CONNECTION_FORCED - closed by an operator"), ("running",)),
    "506": (closing_connections(506, "RESOURCE_ERROR - out of memory"), ("running",)),
    "540": (closing_connections(540, "NOT_IMPLEMENTED"), (*ALWAYS, *RABBIT_MOMENTS)),
    "541": (closing_connections(541, "INTERNAL_ERROR"), (*ALWAYS, *RABBIT_MOMENTS)),
}

POSTGRES: dict[str, tuple[Begin, tuple[str, ...]]] = {
    "25006": (on_postgres(PostgresServer.read_only), (*ALWAYS, *POSTGRES_WRITING)),
    "53100": (answering_backend(WRITING_RESULTS, DISK_FULL), ("running", *POSTGRES_WRITING)),
    "53300": (on_postgres(PostgresServer.too_many_clients), (*ALWAYS, *POSTGRES_MOMENTS)),
    "57P03": (answering_backend(EVERYTHING, FATAL_57P03), (*ALWAYS, *POSTGRES_MOMENTS)),
    "42501": (lambda site: site.postgres.no_rights(site.role), ("idle", "running", *POSTGRES_MOMENTS)),
    "28000": (lambda site: site.postgres.no_login(site.role), (*ALWAYS, *POSTGRES_MOMENTS)),
}

PGBOUNCER: dict[str, tuple[Begin, tuple[str, ...]]] = {
    "a killed database": (on_postgres(database_killed), (*ALWAYS, *POSTGRES_MOMENTS)),
}

LEDGER: dict[str, tuple[Begin, tuple[str, ...]]] = {
    "25006": (on_postgres(PostgresServer.read_only), ("running", *LEDGER_MOMENTS)),
    "53100": (answering_ledger(WRITING_LEDGER, DISK_FULL), tuple(LEDGER_MOMENTS)),
    "53300": (on_postgres(PostgresServer.too_many_clients), tuple(LEDGER_MOMENTS)),
    "57P03": (answering_ledger(EVERYTHING, FATAL_57P03), tuple(LEDGER_MOMENTS)),
}

PAIRS = {
    "redis": REDIS,
    "rabbit-postgres": {**RABBIT, **POSTGRES},
    "rabbit-pgbouncer": PGBOUNCER,
    "redis-ledger": LEDGER,
}
"""The refusals of each pair, and the moments of each refusal."""

NEED_A_PERSON = ("MOVED", "NOPERM", "NOAUTH", "403", "404", "406", "540", "42501", "28000")
"""Refusals that only a person can lift: a command that starts meanwhile ends with status 2."""

MAY_BE_FOR_ONE_CLIENT = ("NOPERM", "NOAUTH", "42501", "28000", "53300")
"""Refusals of the result backend that others may not get. Executors may then declare a worker dead, so it ends its
commands, and they run again after a loss that an event reports."""

SHORT = {
    ("redis", "OOM", "storing"),
    ("redis", "READONLY", "running"),
    ("redis", "NOPERM", "start"),
    ("rabbit-pgbouncer", "a killed database", "running"),
}
"""The cells of every day."""

CELLS = [
    pytest.param(pair, name, moment, id=f"{pair}-{name}-{moment}".replace(" ", "_"))
    for pair, refusals in PAIRS.items()
    for name, (_, moments) in refusals.items()
    for moment in moments
    if LONG or (pair, name, moment) in SHORT
]


@pytest.fixture
def site(pair: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RefusalSite]:
    with ExitStack() as stack:
        site = stack.enter_context(closing(make_site(pair, request, tmp_path, stack)))
        yield site


def make_site(pair: str, request: pytest.FixtureRequest, folder: Path, stack: ExitStack) -> RefusalSite:
    """Return the site of a pair. A user or role of its own has rights that can be taken away."""
    if pair == "redis":
        redis: RedisServer = request.getfixturevalue("shared_redis")
        redis.command("FLUSHALL")
        url = redis.user("+@all", "~*", "&*") if "NOPERM" in request.node.name else redis.url
        return RefusalSite(folder, redis, redis, broker_url=url, backend_url=url)
    postgres: PostgresServer = stack.enter_context(request.getfixturevalue("postgres_for_all").lent())
    if pair == "redis-ledger":
        redis = request.getfixturevalue("shared_redis")
        redis.command("FLUSHALL")
        return RefusalSite(folder, redis, redis, postgres=postgres, ledger=postgres)
    rabbit: RabbitServer = stack.enter_context(request.getfixturevalue("rabbit_for_all").lent())
    if pair == "rabbit-pgbouncer":
        return RefusalSite(folder, rabbit, stack.enter_context(closing(PgBouncer(postgres))), postgres=postgres)
    role, url = postgres.role()
    return RefusalSite(folder, rabbit, postgres, postgres=postgres, role=role, backend_url=f"db+{url}")


@pytest.mark.parametrize(("pair", "name", "moment"), CELLS)
def test_work_goes_on_after_a_refusal(site, pair, name, moment):
    begin, _ = PAIRS[pair][name]
    if moment == "start":
        (check_start_refused if name in NEED_A_PERSON else check_start)(site, begin)
    elif moment == "idle":
        check_idle(site, begin)
    else:
        check_at_work(site, begin, moment, may_lose=name in MAY_BE_FOR_ONE_CLIENT)
    assert site.tracebacks() == []


def check_start_refused(site: RefusalSite, begin: Begin) -> None:
    """Check that a worker and a run that start during a refusal end with status 2 and one line."""
    with begin(site), site.worker(0) as worker, site.run("run", commands(TASKS)) as run:
        assert site.wait(worker, "the worker") == 2
        assert site.wait(run, "the run") == 2
    for name in ("w0", "run"):
        assert len(without_password_warning(site.log(name).read_text()).splitlines()) == 1


def check_start(site: RefusalSite, begin: Begin) -> None:
    """Check that workers and a run that start during a refusal work after it."""
    open_gates(site)
    with ExitStack() as stack:
        with begin(site):
            workers = [stack.enter_context(site.worker(number)) for number in range(2)]
            run = stack.enter_context(site.run("run", commands(TASKS)))
            until(lambda: all(site.log(name).read_text() for name in ("w0", "w1", "run")), "three refusals", 60)
            time.sleep(SHORT_HOLD)  # the length of the refusal
        check_end(site, workers, run)


def check_idle(site: RefusalSite, begin: Begin) -> None:
    """Check that workers that have run a command, and have nothing to do, work after a refusal."""
    open_gates(site)
    with site.workers() as workers:
        check_each_slot(site, "first")
        with begin(site):
            time.sleep(HOLD)  # the length of the refusal
        with site.run("run", commands(TASKS)) as run:
            check_end(site, workers, run)


def check_at_work(site: RefusalSite, begin: Begin, moment: str, *, may_lose: bool) -> None:
    """Check that commands go on during a refusal, and that all that waits runs after it."""
    with site.workers() as workers, site.run("run", commands(TASKS)) as run:
        until(lambda: site.keys("begun").keys() == RUNNING.keys(), "a command in each slot", 60)
        with refusal_from(site, begin, moment):
            site.open_gate("early")
            time.sleep(HOLD if moment in LONG_MOMENTS else SHORT_HOLD)  # the length of the refusal
            assert site.keys("ended").keys() <= TASKS.keys() - {"long-0", "long-1"}
        site.open_gate("late")
        check_end(site, workers, run, may_lose=may_lose)


def refusal_from(site: RefusalSite, begin: Begin, moment: str) -> AbstractContextManager[object]:
    """Return a refusal that begins just before the first request of a moment."""
    if moment == "running":
        return begin(site)
    server, request = request_of(site, moment)
    gate = None if "searching" in moment else "early"  # a task that a worker has claimed is not searched for
    return site.refusing_from(server, request, lambda: begin(site), gate)


def request_of(site: RefusalSite, moment: str) -> tuple[Server, bytes]:
    """Return the server of a moment's request, and a pattern of the request."""
    if moment in LEDGER_MOMENTS:
        return site.postgres, LEDGER_MOMENTS[moment]
    if isinstance(site.broker, RedisServer):
        return site.broker, REDIS_MOMENTS[moment]
    if moment in RABBIT_MOMENTS:
        return site.broker, RABBIT_MOMENTS[moment]
    return site.backend, POSTGRES_MOMENTS[moment]


def check_end(site: RefusalSite, workers: list[Celeriac], run: Celeriac, *, may_lose: bool = False) -> None:
    """Check that every command has run once, or once more for each loss, and that all slots are free."""
    assert site.wait(run, "the run") == 0
    losses = site.losses("run")
    assert site.keys("begun") == Counter(TASKS.keys()) + losses
    assert site.keys("ended") == Counter(TASKS.keys())
    assert may_lose or not losses
    until(lambda: site.running() == [0, 0], "workers that run nothing")
    check_each_slot(site, "batch")
    assert site.stop(workers) == [0, 0]


def check_each_slot(site: RefusalSite, name: str) -> None:
    """Run as many commands at once as there are slots. Each waits for all the others."""
    with site.run(name, {f"{name}-{number}": MEET.format(name=name) for number in range(SLOTS)}) as run:
        assert site.wait(run, "as many commands at once as there are slots") == 0
    until(lambda: site.running() == [0, 0], "workers that run nothing")


def commands(gates: dict[str, str]) -> dict[str, str]:
    return {key: RECORD.format(gate=gate) for key, gate in gates.items()}


def open_gates(site: RefusalSite) -> None:
    for gate in ("early", "late"):
        site.open_gate(gate)
