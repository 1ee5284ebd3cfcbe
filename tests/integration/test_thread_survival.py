"""An unexpected exception, raised once in each thread of `docs/threads.md`: the part works afterwards."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from celery import states
from redis import Redis
from sqlalchemy import text

from celeriac import CeleryExecutor, Config, FutureExecutor, State
from celeriac.airflow.failure_log import Failure, FailureLog
from celeriac.airflow.stats import StatsReporter
from celeriac.backend.claims import claims_for
from celeriac.backend.claims.claim import Lease
from celeriac.backend.refused import refused_store_for
from celeriac.backend.results.fetcher import ThreadedFetcher
from celeriac.broker.app import make_app
from celeriac.broker.broker_list import ReturnToFirst, broker_list_of
from celeriac.broker.connection import BrokerConnection
from celeriac.cli.top_view.call_thread import CallThread
from celeriac.cluster import preflight
from celeriac.cluster.cluster import Cluster, open_places_of
from celeriac.config.ledger_keep import LedgerKeep
from celeriac.config.notice_targets import NoticeTargets
from celeriac.control.broker_client import BrokerControlClient
from celeriac.control.unix_client import UnixControlClient
from celeriac.control.unix_server import UnixControlServer
from celeriac.doctor import machine
from celeriac.doctor.check import examine
from celeriac.doctor.machine import machine_subject
from celeriac.executor.limit import Limit, PlaceRequest
from celeriac.executor.requests import ExplainReply, ExplainRequest
from celeriac.ledger.database import Database
from celeriac.runs import job_limits, notices, service_schedules, standard_input
from celeriac.runs.job_limits import TaskCheck
from celeriac.runs.ledger_limits import RETRY_DELAY, DailyLimits
from celeriac.runs.notices import Notifier
from celeriac.runs.pipe import Blocks, PipeOptions
from celeriac.runs.service_notices import INTERVAL, ServiceNotices
from celeriac.runs.service_schedules import ServiceSchedules
from celeriac.sink_thread import SinkThread
from celeriac.surviving_loop import thread_health
from celeriac.task.result import Result
from celeriac.task.task import Task
from celeriac.telemetry import metrics
from celeriac.telemetry.sinks.statsd import StatsdSink
from celeriac.telemetry.telemetry import Telemetry
from celeriac.web.access import AccessRules
from celeriac.web.address import Address, bind
from celeriac.web.app import make_app as make_web_app
from celeriac.web.poller import Poller
from celeriac.web.server import WebServer
from celeriac.web.site import Site
from celeriac.worker import build
from celeriac.worker import renewals as lease_renewals
from celeriac.worker.output import OutputPolicy
from celeriac.worker.pool_control import HEARTBEAT, PreforkControl
from celeriac.worker.probe import Reach, server_of
from celeriac.worker.refusals import Refusals
from celeriac.worker.renewals import Renewals
from celeriac.worker.supervisor.messages import TIME
from celeriac.worker.taken_places import TakenPlaces
from tests.support.cli_runner import WAIT_TIMEOUT, started, until
from tests.unit.test_taken_places import LIMITS, OnePlace, manager_of

pytestmark = pytest.mark.celery

BUG = "the bug of this test"
ROOT = Path(__file__).parents[2]


class RaisesOnce:
    """A method that raises at its first call, and then does what it did before."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method
        self.thread = ""
        """The name of the thread in which it has raised."""

    @property
    def has_raised(self) -> bool:
        return self.thread != ""

    def __call__(self, *args: Any, **options: Any) -> Any:
        if not self.has_raised:
            self.thread = threading.current_thread().name
            raise ZeroDivisionError(BUG)
        return self._method(*args, **options)


threads_of_tests: dict[str, tuple[str, ...]] = {}
"""The threads in which each test raises an exception, by the name of the test."""


def raises_in(*threads: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def note(test: Callable[..., None]) -> Callable[..., None]:
        threads_of_tests[test.__name__] = threads
        return test

    return note


@pytest.fixture
def raise_once(request, monkeypatch, caplog) -> Iterator[Callable[[Any, str], RaisesOnce]]:
    """Make a method raise at its next call, which must be in a thread that `raises_in` names."""
    caplog.set_level(logging.ERROR)
    raised: list[RaisesOnce] = []

    def patch(owner: Any, name: str) -> RaisesOnce:
        raising = RaisesOnce(getattr(owner, name))
        monkeypatch.setattr(owner, name, raising)
        raised.append(raising)
        return raising

    yield patch
    assert {each.thread for each in raised} == set(threads_of_tests[request.function.__name__])


def test_every_thread_has_a_test():
    tables = [line for line in (ROOT / "docs" / "threads.md").read_text().splitlines() if line.startswith("| ")]
    names = {name for line in tables for name in re.findall(r"`(celeriac-[a-z-]+)`", line.split("|")[1])}
    assert len(names) > 20
    assert names == {name for threads in threads_of_tests.values() for name in threads}


def expect_one_log_line(caplog, thread: str) -> None:
    def logged() -> list[logging.LogRecord]:
        return [record for record in caplog.records if BUG in record.getMessage()]

    until(logged, "the log line")
    (record,) = logged()
    assert f"thread {thread}:" in record.getMessage()
    assert record.exc_info is not None


@pytest.fixture
def redis(shared_redis) -> Iterator[Any]:
    with closing(Redis.from_url(shared_redis.url)) as client:
        client.flushall()
        yield client


@pytest.fixture
def cluster(redis, shared_redis) -> Iterator[Cluster]:
    with Cluster(shared_redis.url, config=Config(parallelism=4)) as cluster:
        yield cluster


# — an executor's process —


@raises_in("celeriac-futures")
def test_futures(raise_once, caplog):
    with FutureExecutor(parallelism=1) as executor:
        executor.submit("true").result(WAIT_TIMEOUT)
        raise_once(executor._driver._executor, "heartbeat")
        future = executor.submit("true")
        expect_one_log_line(caplog, "celeriac-futures")
        assert future.result(WAIT_TIMEOUT).state is State.SUCCESS


@raises_in("celeriac-leases")
def test_leases(cluster, raise_once, caplog):
    claims = cluster._leases.claims
    raise_once(claims, "leases")
    expect_one_log_line(caplog, "celeriac-leases")
    lease = Lease(holder="w", name="w@h", host="h", pid=1, boot_id="", queues=("q",), slots=1)
    claims.renew(lease)
    until(lambda: cluster._leases.find("w") == lease, "the lease")


@raises_in("celeriac-change-feed")
def test_change_feed(cluster, redis, raise_once, caplog):
    until(lambda: cluster._results.changed() is not None and cluster._results.pushes, "the subscription")
    raise_once(cluster._results._change_feeds[0], "_on_change")
    redis.publish("celery-task-meta-lost", b"x")
    expect_one_log_line(caplog, "celeriac-change-feed")
    until(lambda: cluster._results.changed() is not None and cluster._results.pushes, "the next subscription")
    redis.publish("celery-task-meta-t", b"x")
    until(lambda: "t" in cluster._results.changed(), "the change")


@raises_in("celeriac-output")
def test_output(redis, shared_redis, raise_once, caplog, tmp_path):
    with Cluster(shared_redis.url, output=OutputPolicy(directory=tmp_path)) as cluster:
        outputs: Any = cluster._outputs
        raise_once(outputs._store, "progress")
        task, result = Task(key="k", id="an id", command="true"), Result(State.SUCCESS)
        outputs.begin(task)
        expect_one_log_line(caplog, "celeriac-output")
        until(lambda: outputs.complete(task, result) == result, "the result without output")


@raises_in("celeriac-telemetry")
def test_telemetry(raise_once, caplog):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(WAIT_TIMEOUT)
        sink, telemetry = StatsdSink("127.0.0.1", server.getsockname()[1]), Telemetry()
        raise_once(sink, "send")
        telemetry.count(metrics.WORKER_STARTED)
        with SinkThread(sink, telemetry):
            expect_one_log_line(caplog, "celeriac-telemetry")
            assert server.recv(1_000) == b"celeriac.worker_started_total:1|c"


@raises_in("celeriac-results")
def test_results(cluster, redis, raise_once):
    raising = raise_once(cluster._results._fetcher, "_fetch")
    redis.set("celery-task-meta-t", json.dumps({"status": states.STARTED, "result": None}))
    until(lambda: "t" in cluster._results.read(["t"]), "the result")
    assert raising.has_raised


@raises_in("celeriac-results")
def test_results_that_are_late(raise_once, caplog):
    gate = threading.Event()

    def fetch(_: object) -> dict[str, Any]:
        gate.wait(WAIT_TIMEOUT)
        return {}

    fetcher = ThreadedFetcher(fetch, count=1, on_late=lambda: None)
    raise_once(fetcher, "_on_late")
    assert list(fetcher.fetch([["a"]], time.monotonic() + 0.05)) == []
    gate.set()
    expect_one_log_line(caplog, "celeriac-results")
    until(lambda: list(fetcher.take_late()), "the late reply")
    assert len(list(fetcher.fetch([["b"]], time.monotonic() + WAIT_TIMEOUT))) == 1
    fetcher.close(time.monotonic() + WAIT_TIMEOUT)


@raises_in("celeriac-cleaner")
def test_cleaner(cluster, redis, raise_once, caplog):
    raise_once(cluster._results._cleaner, "_try")
    redis.mset({"celery-task-meta-a": b"x", "celery-task-meta-b": b"x"})
    cluster._results.forget(["a"])
    expect_one_log_line(caplog, "celeriac-cleaner")
    cluster._results.forget(["b"])
    until(lambda: not redis.exists("celery-task-meta-b"), "the deletion")


@raises_in("celeriac-workers")
def test_workers(cluster, raise_once, caplog):
    raise_once(cluster._workers, "_query_workers")
    expect_one_log_line(caplog, "celeriac-workers")
    until(lambda: cluster.capacity() == {}, "the end of a round")


@raises_in("celeriac-lost-tasks")
def test_lost_tasks(cluster, raise_once, caplog):
    detector = cluster._lost_task_detector
    raise_once(detector, "_run_scan")
    task = Task(key="k", command=("true",))
    detector.scan([task], requested_at=1.0)
    expect_one_log_line(caplog, "celeriac-lost-tasks")
    until(lambda: not detector.is_scanning, "the end of the first scan")
    detector.scan([task], requested_at=2.0, urgent=True)
    until(lambda: [lost.id for lost in detector.take_lost()] == [task.message_id], "the lost task")


@raises_in("celeriac-revoker")
def test_revoker(cluster, raise_once, caplog):
    pending = cluster._revoker._pending[-1]
    raise_once(pending, "_send")
    cluster._revoker.revoke(["bad"])
    expect_one_log_line(caplog, "celeriac-revoker")
    cluster._revoker.revoke(["good"])
    until(lambda: cluster.app.backend.get_state("good") == states.REVOKED, "the revocation")


def test_revoker_sends_the_others_if_one_cannot_be_sent(cluster, monkeypatch, caplog):
    pending = cluster._revoker._pending[-1]
    send = pending._send

    def refuse_bad(ids: list[str], unless_started: bool) -> None:
        if "bad" in ids:
            raise ZeroDivisionError(BUG)
        send(ids, unless_started)

    monkeypatch.setattr(pending, "_send", refuse_bad)
    ids = [f"good-{n}" for n in range(9)]
    cluster._revoker.revoke([*ids[:5], "bad", *ids[5:]])
    expect_one_log_line(caplog, "celeriac-revoker")
    until(lambda: {cluster.app.backend.get_state(each) for each in ids} == {states.REVOKED}, "the revocations")


@raises_in("celeriac-places")
def test_places_of_limits(shared_redis, raise_once, caplog):
    request = PlaceRequest("a", (Limit("key:db", 1),))
    with closing(make_app(broker_url=shared_redis.url, result_backend=shared_redis.url)) as app:
        places = open_places_of(app, Config(concurrency_limits={"db": 1}, operation_timeout=0.5))
        assert places is not None
        with closing(places):
            raise_once(places._places, "reserve")
            assert list(places.reserve([request])) == ["a"]  # refused, as by a store that does not answer
            expect_one_log_line(caplog, "celeriac-places")
            until(lambda: not places.reserve([request]), "the place")


@raises_in("celeriac-broker-probe")
def test_broker_probe(redis, shared_redis, raise_once, caplog):
    with closing(make_app(broker_url=shared_redis.url, result_backend=shared_redis.url)) as app:
        connection = BrokerConnection(app)
        with closing(connection):
            connection.open(2.0)
            raise_once(connection._outage, "_probe")
            connection.fail(ConnectionResetError("gone"))
            expect_one_log_line(caplog, "celeriac-broker-probe")
            until(lambda: connection._outage.error is None, "the end of the outage")
            connection.open(2.0)


def ask(send: Callable[[Any], Any]) -> list[Any]:
    return list(send(ExplainRequest(name="k")))


def answer_all(requests: Any) -> None:
    for pending in requests.take_requests():
        requests.reply(pending, ExplainReply(()))


@raises_in("celeriac-control")
def test_control_over_a_unix_socket(raise_once, caplog, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("celeriac.control.folder.LAST_RESORT", str(tmp_path))  # other programs here may have sockets
    servers: list[UnixControlServer] = []

    def wake() -> None:
        answer_all(servers[0].requests)

    with closing(UnixControlServer(wake=wake)) as server:
        servers.append(server)
        raise_once(server, "_handle")
        ask(UnixControlClient().send_request)
        expect_one_log_line(caplog, "celeriac-control")
        assert [reply.error for reply in ask(UnixControlClient().send_request)] == [None]


@raises_in("celeriac-control")
def test_control_over_a_broker(cluster, raise_once, caplog):

    server = cluster._control
    server.requests._wake = lambda: answer_all(server.requests)
    with cluster.app.connection_for_write() as connection:
        client = BrokerControlClient(connection)
        until(lambda: ask(client.send_request), "the control channel")
        raise_once(server, "_send_replies")
        expect_one_log_line(caplog, "celeriac-control")
        until(lambda: [reply.error for reply in ask(client.send_request)] == [None], "a reply")


@raises_in("celeriac-stdin")
def test_standard_input(raise_once, caplog, monkeypatch):
    read_end, write_end = os.pipe()
    monkeypatch.setattr(standard_input, "STDIN", read_end)
    raise_once(job_limits, "check_concurrency_key")
    problems: list[Any] = []
    os.write(write_end, b"true\nfalse\n")
    os.close(write_end)
    with standard_input.stream_standard_input(
        "text", {}, TaskCheck(Config(), is_local=True), report_problem=problems.append, wake=lambda: None
    ):
        expect_one_log_line(caplog, "celeriac-stdin")
        until(lambda: problems, "the problem")
    os.close(read_end)
    assert BUG in str(problems[0])


@raises_in("celeriac-pipe")
def test_pipe(raise_once, caplog, tmp_path):
    (tmp_path / "input").write_text("a\nb\n")
    blocks = Blocks(str(tmp_path / "input"), PipeOptions(command=("wc",), block=1), {}, 1)
    raise_once(blocks, "_tasks")
    problems: list[Any] = []
    with blocks.stream(problems.append, wake=lambda: None):
        expect_one_log_line(caplog, "celeriac-pipe")
        until(lambda: problems, "the problem")
    assert BUG in str(problems[0])


@raises_in("celeriac-schedules")
def test_schedules(raise_once, caplog, monkeypatch, tmp_path):
    monkeypatch.setattr(service_schedules, "RETRY_DELAY", 0.0)
    lines: list[str] = []
    schedule: Any = SimpleNamespace(name="nightly")
    schedules = ServiceSchedules(f"sqlite:///{tmp_path}/ledger.db", [schedule], lambda event, **_: lines.append(event))
    raise_once(service_schedules, "RunStore")
    schedules.check()
    expect_one_log_line(caplog, "celeriac-schedules")

    def has_looked_again() -> bool:
        schedules.check()
        return bool(lines)

    until(has_looked_again, "the next look, at a ledger that is not there")
    schedules.finish()


@raises_in("celeriac-failure-log")
def test_failure_log_of_airflow(raise_once, caplog):
    written = list[str]()
    target = SimpleNamespace(write=lambda failure: written.append(failure.text))
    raise_once(target, "write")
    with closing(FailureLog(lambda failure: target.write(failure))) as failure_log:
        for text in ("first", "second"):
            failure_log.add(failure_of_a_try(text))
        expect_one_log_line(caplog, "celeriac-failure-log")
        until(lambda: written, "the next line")
    assert written == ["second"]


def failure_of_a_try(text: str) -> Failure:
    at = datetime.now(UTC)
    return Failure(ti_id="a", try_number=1, log_path="a.log", text=text, detail=text, has_started=False, at=at)


@raises_in("celeriac-stats")
def test_metrics_of_airflow(raise_once, caplog):
    telemetry, names = Telemetry(), list[str]()
    telemetry.set_source("one", lambda: [(metrics.SLOTS_OPEN, {(): 3})])
    client = SimpleNamespace(gauge=lambda name, *_, **__: names.append(name))
    raise_once(client, "gauge")
    with closing(StatsReporter(telemetry, client, tagged=False)) as reporter:
        reporter.start()
        expect_one_log_line(caplog, "celeriac-stats")
        until(lambda: names, "the next report")
    assert set(names) == {"celeriac.slots_open"}


@raises_in("celeriac-leases")
def test_the_statistics_of_an_executor_show_its_threads(cluster, raise_once, caplog):
    raise_once(cluster._leases.claims, "leases")
    expect_one_log_line(caplog, "celeriac-leases")
    executor = cluster.executor()
    (leases,) = (thread for thread in executor.stats().threads if thread.name == "celeriac-leases")
    assert (leases.is_alive, leases.unexpected_errors) == (True, 1)
    assert f"thread celeriac-leases: round of {leases.round_age:.1f}"[:40] in executor.debug_dump()
    assert {thread.name for thread in thread_health()} >= {"celeriac-change-feed", "celeriac-workers"}


@raises_in("celeriac-first-broker")
def test_return_to_the_first_broker(redis, shared_redis, raise_once, caplog):
    first, second = shared_redis.url, shared_redis.url.removesuffix("0") + "1"
    with closing(make_app(broker_url=f"{first};{second}", result_backend=first)) as app:
        brokers = broker_list_of(app)
        brokers.use(second)
        raise_once(brokers, "better")
        with closing(ReturnToFirst(app, timeout=2.0, interval=0.01)):
            expect_one_log_line(caplog, "celeriac-first-broker")
            until(lambda: brokers.current == first, "the return to the first broker")


@raises_in("celeriac-preflight")
def test_preflight(redis, shared_redis, raise_once):
    with closing(make_app(broker_url=shared_redis.url, result_backend=shared_redis.url)) as app:
        raise_once(preflight, "check_publish")
        with pytest.raises(ZeroDivisionError):
            preflight.check_servers(app, ["q"], timeout=2.0)
        preflight.check_servers(app, ["q"], timeout=2.0)
    assert "celeriac-preflight" not in {thread.name for thread in thread_health()}


@raises_in("celeriac-ledger")
def test_ledger_on_a_server(postgres, raise_once):
    with closing(Database(postgres.ledger_url)) as database:
        raise_once(database, "writing")
        with pytest.raises(ZeroDivisionError):
            database.write(lambda connection: connection.scalar(text("SELECT 1")))
        assert database.write(lambda connection: connection.scalar(text("SELECT 1"))) == 1


@raises_in("celeriac-top")
def test_calls_of_the_application_top(raise_once):
    class Reads:
        def overview(self) -> int:
            return 7

    reads, calls = Reads(), CallThread()
    raise_once(reads, "overview")

    async def call_twice() -> int:
        with pytest.raises(ZeroDivisionError):
            await calls.call(lambda: reads.overview())
        return await calls.call(lambda: reads.overview())

    with closing(calls):
        assert asyncio.run(call_twice()) == 7


@raises_in("celeriac-ledger-limits")
def test_ledger_limits(tmp_path, raise_once, caplog):
    lines: list[str] = []
    limits = DailyLimits(f"sqlite:///{tmp_path}/ledger.db", LedgerKeep(1.0), lines.append)
    raise_once(limits, "_remove")
    limits.check(0.0)
    expect_one_log_line(caplog, "celeriac-ledger-limits")

    def has_checked_again() -> bool:
        limits.check(RETRY_DELAY)
        return bool(lines)

    until(has_checked_again, "the next check, of a ledger that is not there")


@raises_in("celeriac-notices")
def test_notices(tmp_path, raise_once):
    told = {"event": "end"}
    raise_once(notices, "post")
    notifier = Notifier(NoticeTargets(url="http://localhost/"))
    notifier.begin(told)
    assert notifier.wait(WAIT_TIMEOUT) == [f"a notice was not delivered: ZeroDivisionError: {BUG}"]
    notifier = Notifier(NoticeTargets(command=f"cat > {tmp_path}/told"))
    notifier.begin(told)
    assert notifier.wait(WAIT_TIMEOUT) == []
    assert (tmp_path / "told").read_text() == '{"event": "end"}'


@raises_in("celeriac-run-notices")
def test_run_notices(tmp_path, raise_once, caplog):
    lines: list[str] = []
    reports = ServiceNotices(f"sqlite:///{tmp_path}/ledger.db", lines.append)
    raise_once(reports, "_report")
    reports.check(0.0)
    expect_one_log_line(caplog, "celeriac-run-notices")

    def has_looked_again() -> bool:
        reports.check(INTERVAL)
        return bool(lines)

    until(has_looked_again, "the next look, at a ledger that is not there")


@raises_in("celeriac-web")
def test_web_server(raise_once, caplog):
    address = Address("127.0.0.1", 0)
    listening, poller = bind(address), Poller()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/healthz"
    server = WebServer(make_web_app(Site(rules=AccessRules(address, None)), poller), listening, poller)
    raise_once(server, "_serve")
    with server:
        assert httpx.get(url, timeout=WAIT_TIMEOUT).json()["status"] == "ok"
        expect_one_log_line(caplog, "celeriac-web")


@raises_in("celeriac-web-poll")
def test_web_poller(raise_once, caplog):
    poller = Poller()
    raise_once(poller, "_read")
    poller.start()
    try:
        viewer = poller.watch("t", lambda: b"content", lambda: None)
        until(lambda: viewer.take_news() == b"content", "the next round")
        expect_one_log_line(caplog, "celeriac-web-poll")
    finally:
        poller.close()


# — a worker's process —


def drive(executor: CeleryExecutor, is_done: Callable[[], bool]) -> None:
    def beat() -> bool:
        executor.heartbeat()
        return is_done()

    until(beat, "the end of the task")


@raises_in("celeriac-goodbye", "celeriac-lease", "celeriac-renewal", "celeriac-shutdown")
def test_every_thread_of_a_worker(redis, shared_redis, tmp_path):
    options = ("--broker", shared_redis.url, "--backend", shared_redis.url, "--concurrency", "2")
    log = tmp_path / "worker.log"
    with (
        log.open("ab") as file,
        started(
            "worker",
            *options,
            cwd=tmp_path,
            log=file,
            program="tests.support.raising_worker",
            env={"PYTHONPATH": str(ROOT)},
        ) as worker,
    ):
        until(lambda: log.read_text().count("unexpected error in thread") == 3, "the exceptions")
        with Cluster(shared_redis.url) as cluster, cluster.executor() as executor:
            executor.queue_command("k", ["true"])
            drive(executor, lambda: not executor.has_task("k"))
            assert executor.get_event_buffer()[-1].state is State.SUCCESS
        began = redis.hget(redis.keys("celeriac-lease-*")[0], "beat")
        until(lambda: redis.hget(redis.keys("celeriac-lease-*")[0], "beat") != began, "a heartbeat")
        worker.signal(signal.SIGTERM)
        assert worker.process.wait(60) == 0
    log_text = log.read_text()
    assert sorted(re.findall(r"unexpected error in thread (\S+): \w+: '?the bug in (\w+)", log_text)) == [
        ("celeriac-lease", "_carry_out"),
        ("celeriac-lease", "_send_lease_end"),
        ("celeriac-lease", "renew"),
        ("celeriac-shutdown", "_wait_for_request"),
    ]
    assert log_text.count("Traceback") == 4


@raises_in("celeriac-child")
def test_child_of_a_prefork_pool(raise_once, caplog):
    control = PreforkControl()
    with closing(control):
        raise_once(control.runner, "heartbeat")
        beats: list[float] = []
        control.runner.heartbeat._method = beats.append  # type: ignore[attr-defined]
        control._begin_child()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            address = str(control._folder / str(os.getpid()))
            sock.sendto(HEARTBEAT + TIME.pack(1.0), address)
            expect_one_log_line(caplog, "celeriac-child")
            sock.sendto(b"\xff", address)  # no id
            sock.sendto(HEARTBEAT + TIME.pack(2.0), address)
            until(lambda: beats == [2.0], "a heartbeat")
        control.end()
        until(lambda: "celeriac-child" not in {thread.name for thread in thread_health()}, "the end of the thread")


@raises_in("celeriac-killed")
def test_places_of_a_killed_child(raise_once, caplog):
    store: Any = OnePlace()
    TakenPlaces(lambda: store).take("a", LIMITS, "one", "first")
    raise_once(store, "leave")
    manager_of(store).leave_places_of_killed(os.getpid(), "a", LIMITS)
    expect_one_log_line(caplog, "celeriac-killed")
    until(lambda: store.holder == "", "the free place")


@raises_in("celeriac-lease-probe")
def test_lease_probe(redis, shared_redis, raise_once, caplog):
    with closing(make_app(broker_url=shared_redis.url, result_backend=shared_redis.url)) as app:
        claims = claims_for(app, timeout=2.0)
        assert claims is not None
        with closing(claims):
            renewals = Renewals(claims, server_of(app), on_reply=lambda *_: (), on_error=lambda *_: ())
            raise_once(lease_renewals, "probe")
            results: list[tuple[int, Reach]] = []

            def on_probe(number: int, reach: Reach) -> tuple[()]:
                results.append((number, reach))
                return ()

            for number in (1, 2):
                renewals.begin_probe(number, on_probe)
                renewals.wait(WAIT_TIMEOUT)
    expect_one_log_line(caplog, "celeriac-lease-probe")
    assert results == [(1, Reach.NO_CONNECTION), (2, Reach.REPLY)]


@raises_in("celeriac-refused")
def test_refused_messages(redis, shared_redis, raise_once, caplog):
    with closing(make_app(broker_url=shared_redis.url, result_backend=shared_redis.url)) as app:
        store = refused_store_for(app, timeout=2.0)
        assert store is not None
        refusals = Refusals(store)
        with closing(refusals):
            raise_once(store, "add")
            for why in ("the first", "the second"):
                refusals.record(why, queue="q", worker="w@h")
            expect_one_log_line(caplog, "celeriac-refused")
            until(lambda: [message.why for message in store.newest()] == ["the second"], "the second message")
        assert refusals.count == 2
    assert "celeriac-refused" not in {thread.name for thread in thread_health()}


@raises_in("celeriac-check")
def test_check_before_the_start_of_a_worker(redis, shared_redis, monkeypatch, raise_once, caplog):
    with closing(make_app(broker_url=shared_redis.url, result_backend=shared_redis.url)) as app:
        claims = claims_for(app, timeout=2.0)
        monkeypatch.setattr(build, "claims_for", lambda *_, **__: claims)
        raise_once(claims, "check_rights")
        for _ in range(2):
            build.check_store(app, 2.0, "backend")
    expect_one_log_line(caplog, "celeriac-check")
    assert "celeriac-check" not in {thread.name for thread in thread_health()}


@raises_in("celeriac-doctor")
def test_examination(raise_once):
    subject = machine_subject(1)
    raise_once(machine, "process_room")
    for level in ("error", "ok"):
        findings = {finding.check: finding.level for finding in examine([subject], timeout=60)}
        assert findings.pop("processes") == level
        assert set(findings.values()) == {"ok"}
    until(lambda: "celeriac-doctor" not in {thread.name for thread in thread_health()}, "the end of the threads")
