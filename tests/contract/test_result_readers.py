"""One suite for every result reader, with real servers; then tests of single readers."""

from __future__ import annotations

import logging
import pickle
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import celery
import pytest
from celery import Celery, states

from celeriac import CeleryExecutor, Config, Event, State
from celeriac.backend.results import results_for
from celeriac.backend.results.database import DatabaseResults
from celeriac.backend.results.decode import decode
from celeriac.backend.results.one_by_one import OneByOneResults
from celeriac.backend.results.reader import BackendResults
from celeriac.backend.results.redis import RedisResults
from celeriac.backend.results.task_events import MIN_RELIABLE_VERSION, TaskEvents, parse_version
from celeriac.broker.app import make_app
from celeriac.broker.one_by_one import OneByOnePublisher
from celeriac.cluster.revoker import ControlRevoker
from celeriac.config.settings import read_settings
from celeriac.errors import CommandFailed
from celeriac.executor.interfaces import Unreadable
from celeriac.task.result import Reason, Result
from celeriac.testing import InMemoryBroker
from celeriac.worker.app import worker_app
from tests.support.cli_runner import WAIT_TIMEOUT, until
from tests.support.long import slow
from tests.support.servers import PostgresServer, RedisServer, Server, ValkeyServer

pytestmark = [
    pytest.mark.filterwarnings("ignore:Call to deprecated setex"),  # by Celery's own backend
    pytest.mark.celery,
]

TIMEOUT = 0.5  # seconds that one read may take
NO_BROKER = "memory://"  # for a test that only reads results
REPORT = {"reason": None, "detail": None, "execution": {"host": "h", "exit_code": 0}}
FAILURE = CommandFailed({"reason": "exit_code", "detail": "exit code 3", "execution": {"host": "h", "exit_code": 3}})


class Kit:
    """A result backend and its reader, with methods to store, corrupt and copy results."""

    server: Server

    def __init__(self, url: str) -> None:
        self.app = make_app(broker_url=NO_BROKER, result_backend=url)
        self.reader = self.new_reader(url)

    def new_reader(self, url: str) -> Any:
        return results_for(
            make_app(broker_url=NO_BROKER, result_backend=url, operation_timeout=TIMEOUT), timeout=TIMEOUT, trigger=True
        )

    def store(self, task_id: str, state: str, value: object) -> None:
        self.app.backend.store_result(task_id, value, state)

    def has_result(self, task_id: str) -> bool:
        return bool(self.app.backend.get_task_meta(task_id, cache=False)["status"] != states.PENDING)

    def corrupt(self, task_id: str) -> None:
        raise NotImplementedError

    def copy(self, task_id: str, count: int) -> list[str]:
        """Store the same result under `count` further ids. Return them."""
        raise NotImplementedError

    def close(self) -> None:
        self.reader.close()


class RedisKit(Kit):
    def corrupt(self, task_id: str) -> None:
        self.app.backend.client.set(self.app.backend.get_key_for_task(task_id), b"{not json")

    def copy(self, task_id: str, count: int) -> list[str]:
        key = self.app.backend.get_key_for_task
        ids = [f"{task_id}-{n}" for n in range(count)]
        value = self.app.backend.client.get(key(task_id))
        self.app.backend.client.mset({key(copy): value for copy in ids})
        return ids


class PostgresKit(Kit):
    server: PostgresServer

    def corrupt(self, task_id: str) -> None:
        self.store(task_id, states.SUCCESS, REPORT)
        self.server.sql(rf"UPDATE celery_taskmeta SET result = '\x7b6e6f' WHERE task_id = '{task_id}'")

    def copy(self, task_id: str, count: int) -> list[str]:
        self.server.sql(
            "INSERT INTO celery_taskmeta (id, task_id, status, result)"
            " SELECT nextval('task_id_sequence'), task_id || '-' || n, status, result"
            f" FROM celery_taskmeta, generate_series(0, {count - 1}) AS n WHERE task_id = '{task_id}'"
        )
        return [f"{task_id}-{n}" for n in range(count)]


class FileKit(Kit):
    def path(self, task_id: str) -> Path:
        backend = self.app.backend
        return Path(backend._filename(backend.get_key_for_task(task_id)).decode())

    def corrupt(self, task_id: str) -> None:
        self.path(task_id).write_bytes(b"{not json")

    def copy(self, task_id: str, count: int) -> list[str]:
        ids = [f"{task_id}-{n}" for n in range(count)]
        for copy in ids:
            self.path(copy).write_bytes(self.path(task_id).read_bytes())
        return ids


class MemoryKit(Kit):
    def new_reader(self, url: str) -> Any:
        return InMemoryBroker()

    def store(self, task_id: str, state: str, value: object) -> None:
        result = decode(state, value)
        if result is not None:
            self.reader.put(task_id, result)

    def has_result(self, task_id: str) -> bool:
        return task_id in self.reader.results

    def corrupt(self, task_id: str) -> None:
        self.reader.put(task_id, Unreadable(ValueError("no JSON")))

    def copy(self, task_id: str, count: int) -> list[str]:
        ids = [f"{task_id}-{n}" for n in range(count)]
        for copy in ids:
            self.reader.put(copy, self.reader.results[task_id])
        return ids

    def close(self) -> None:
        """There is nothing to close."""


SERVERS: dict[str, type[Server]] = {"redis": RedisServer, "valkey": ValkeyServer, "postgres": PostgresServer}


@contextmanager
def running(kind: type[Server]) -> Iterator[Any]:
    server = kind()
    try:
        yield server
    finally:
        server.thaw()
        server.close()


@pytest.fixture(scope="module")
def servers() -> Iterator[Callable[[str], Server]]:
    """A function that returns the server of a kind, started with the first call."""
    started: dict[str, Server] = {}

    def server(kind: str) -> Server:
        if kind not in started:
            started[kind] = SERVERS[kind]()
        return started[kind]

    yield server
    for each in started.values():
        each.close()


@pytest.fixture(params=["memory", "file", *SERVERS])
def kit(request: pytest.FixtureRequest, servers: Callable[[str], Server], tmp_path: Path) -> Iterator[Any]:
    yield from open_kit(request.param, servers, tmp_path)


@pytest.fixture(params=["file", *SERVERS])  # the backend in memory does not wait
def kit_that_waits(request: pytest.FixtureRequest, servers: Callable[[str], Server], tmp_path: Path) -> Iterator[Any]:
    yield from open_kit(request.param, servers, tmp_path)


@pytest.fixture(params=SERVERS)
def kit_with_server(request: pytest.FixtureRequest, servers: Callable[[str], Server], tmp_path: Path) -> Iterator[Any]:
    yield from open_kit(request.param, servers, tmp_path)


def open_kit(kind: str, servers: Callable[[str], Server], folder: Path) -> Iterator[Kit]:
    kit: Kit
    match kind:
        case "memory":
            kit = MemoryKit("cache+memory://")
        case "file":
            kit = FileKit(f"file://{folder}")
        case "postgres":
            kit = PostgresKit(servers(kind).url)
        case _:
            kit = RedisKit(servers(kind).url)
    if kind in SERVERS:
        kit.server = servers(kind)
    yield kit
    kit.close()


def read_all(reader: Any, ids: list[str], count: int) -> dict[str, Result | Unreadable]:
    """Read as an executor does, until `count` results are there."""
    results = dict(reader.read(ids))

    def has_all() -> bool:
        results.update(reader.read([task_id for task_id in reader.changed() if task_id in ids]))
        return len(results) >= count

    until(has_all, f"the results of {count} tasks")
    return results


# — every reader —


def test_read_returns_stored_results_and_omits_others(kit):
    kit.store("started", states.STARTED, {"hostname": "celery@h"})
    kit.store("good", states.SUCCESS, REPORT)
    kit.store("bad", states.FAILURE, FAILURE)
    kit.store("waiting", states.PENDING, None)
    results = read_all(kit.reader, ["started", "good", "bad", "waiting", "unknown"], 3)
    assert {task_id: result.state for task_id, result in results.items()} == {  # type: ignore[union-attr]
        "started": State.RUNNING,
        "good": State.SUCCESS,
        "bad": State.FAILED,
    }
    assert results["bad"].execution.exit_code == 3  # type: ignore[union-attr]


def test_a_malformed_value_affects_only_its_task(kit):
    kit.corrupt("corrupt")
    kit.store("odd", states.SUCCESS, 5)
    kit.store("good", states.SUCCESS, REPORT)
    results = read_all(kit.reader, ["good", "odd", "corrupt"], 3)
    assert {task_id: type(result) for task_id, result in results.items()} == {
        "corrupt": Unreadable,
        "odd": Unreadable,
        "good": Result,
    }


def test_only_plain_pickles_are_unpickled(servers, tmp_path):
    """Before Celery 5.7 all results in a database are pickles, whatever the serializer."""
    kit = PostgresKit(servers("postgres").url)
    kit.server = servers("postgres")
    pickles = {
        "evil": pickle.dumps(Touch(tmp_path / "marker")),
        "hidden": pickle.dumps({**REPORT, "detail": Touch(tmp_path / "marker")}),
        "plain": pickle.dumps({**REPORT, "reason": None}),
        "known": pickle.dumps({**REPORT, "reason": Reason.EXIT_CODE}),
    }
    for task_id, value in pickles.items():
        kit.store(task_id, states.SUCCESS, REPORT)
        kit.server.sql(rf"UPDATE celery_taskmeta SET result = '\x{value.hex()}' WHERE task_id = '{task_id}'")
    results = read_all(kit.reader, list(pickles), 4)
    kit.close()
    assert {task_id: type(result) for task_id, result in results.items()} == {
        "evil": Unreadable,
        "hidden": Unreadable,
        "plain": Result,
        "known": Result,
    }
    assert not (tmp_path / "marker").exists()


def test_a_worker_reads_only_plain_pickles(tmp_path):
    settings = {"broker": "redis://127.0.0.1:1/0", "backend": f"db+sqlite:///{tmp_path}/results.db"}
    with closing(worker_app(read_settings(settings, environment={}).connection)) as app:
        backend = app.backend  # of the thread that forks the children of a prefork pool
        for task_id, state, value in (("good", states.SUCCESS, REPORT), ("bad", states.FAILURE, FAILURE)):
            backend.store_result(task_id, value, state)
            assert backend.get_task_meta(task_id, cache=False)["status"] == state
        with closing(sqlite3.connect(tmp_path / "results.db")) as database:
            pickled = pickle.dumps(Touch(tmp_path / "marker"))
            database.execute("UPDATE celery_taskmeta SET result = ? WHERE task_id = 'good'", (pickled,))
            database.commit()
        assert backend.get_task_meta("good", cache=False)["result"] is None
        backend.store_result("good", REPORT, states.SUCCESS)  # before Celery 5.7, which reads what it overwrites
    assert not (tmp_path / "marker").exists()


class Touch:
    """An object whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


def test_many_results_are_read_in_batches(kit):
    kit.store("first", states.SUCCESS, REPORT)
    ids = kit.copy("first", 1_100)
    results = read_all(kit.reader, [*ids, *(f"unknown-{n}" for n in range(1_100))], 1_100)
    assert results.keys() == set(ids)
    kit.reader.forget(ids)
    until(lambda: not kit.has_result(ids[-1]) and not kit.has_result(ids[0]), "the deletion of the results")


def test_forget_deletes_only_the_given_results(kit):
    for task_id in ("forgotten", "kept"):
        kit.store(task_id, states.SUCCESS, REPORT)
    kit.reader.forget(["forgotten", "unknown"])
    until(lambda: not kit.has_result("forgotten"), "the deletion of the result")
    assert kit.has_result("kept")
    assert read_all(kit.reader, ["forgotten", "kept"], 1).keys() == {"kept"}


def test_wake_ends_a_wait_before_it_begins_and_from_a_thread_and_a_signal_handler(kit_that_waits):
    kit = kit_that_waits
    before, woken = time.monotonic(), threading.Semaphore(0)

    def wake(*_: object) -> None:
        woken.release()
        kit.reader.wake()

    def wait() -> None:
        while not woken.acquire(blocking=False):  # a wait may end for other reasons, too
            kit.reader.wait(300)

    wake()
    wait()
    threading.Timer(0.05, wake).start()
    wait()
    previous = signal.signal(signal.SIGALRM, wake)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        wait()
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert time.monotonic() - before < 300


# — readers with a server, which may be unavailable —


@pytest.mark.parametrize("fault", ["kill", "freeze"])
def test_an_unavailable_backend_neither_raises_nor_delays_every_heartbeat(kit_with_server, fault, caplog):
    kit, server = kit_with_server, kit_with_server.server
    kit.store("a", states.SUCCESS, REPORT)
    read_all(kit.reader, ["a"], 1)
    caplog.set_level(logging.WARNING, logger="celeriac")
    getattr(server, fault)()
    before = time.monotonic()
    for _ in range(1_000):
        assert kit.reader.read(["a", "b", *kit.reader.changed()]) == {}
        kit.reader.forget(["c"])
    assert time.monotonic() - before < 1_000 * TIMEOUT / 10
    server.start() if fault == "kill" else server.thaw()
    assert read_all(kit.reader, ["a"], 1).keys() == {"a"}
    assert [record.getMessage().partition(":")[0].rstrip("0123456789. s") for record in caplog.records] == [
        "the result backend is unavailable",
        "the result backend is available again after",
    ]


def test_a_result_stored_during_an_outage_is_reported_as_changed(kit_with_server):
    kit, server = kit_with_server, kit_with_server.server
    server.kill()
    assert kit.reader.read(["late"]) == {}
    server.start()
    kit.store("late", states.SUCCESS, REPORT)
    changed: set[str] = set()

    def has_changed() -> bool:
        kit.reader.wait(5)
        changed.update(kit.reader.changed())
        return "late" in changed

    until(has_changed, "the change")
    assert read_all(kit.reader, ["late"], 1).keys() == {"late"}


def test_a_database_without_celerys_tables_has_no_results(servers, caplog):
    postgres = servers("postgres")
    app = make_app(
        broker_url=NO_BROKER,
        result_backend=postgres.url,
        database_table_names={"task": "never_made", "group": "neither"},
    )
    with DatabaseResults(app, timeout=WAIT_TIMEOUT) as reader:
        assert reader.read(["a"]) == {}
        reader.forget(["a"])
    app.backend.task_cls.configure()  # the table's name belongs to Celery's class, not to the app
    app.backend.taskset_cls.configure()
    assert caplog.records == []


def test_the_backend_decides_the_reader(servers, tmp_path):
    kinds = {f"file://{tmp_path}": OneByOneResults, "db+sqlite://": DatabaseResults, "redis://": RedisResults}
    for url, kind in kinds.items():
        with results_for(make_app(broker_url=NO_BROKER, result_backend=url), timeout=TIMEOUT) as reader:
            assert type(reader) is kind


# — pushed changes —


def until_pushed(reader: BackendResults) -> None:
    def pushes() -> bool:
        reader.changed()
        return reader.pushes

    until(pushes, "the subscription")


def until_hinted(reader: BackendResults, task_id: str) -> None:
    def is_hinted() -> bool:
        reader.wait(5)
        return task_id in reader.changed()

    until(is_hinted, f"a hint for {task_id}")


URLS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("redis://127.0.0.1:{port}/0", {}),
    "another database": ("redis://127.0.0.1:{port}/3", {}),
    "unix socket": ("redis+socket://{socket}?virtual_host=2", {}),
    "prefix": ("redis://127.0.0.1:{port}/0", {"result_backend_transport_options": {"global_keyprefix": "[a*?\\b]"}}),
    "text": ("redis://127.0.0.1:{port}/4?decode_responses=true", {}),
}


@pytest.mark.parametrize("form", URLS)
@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_redis_reports_stored_results(servers, kind, form):
    server = servers(kind)
    url, settings = URLS[form]
    app = make_app(broker_url=NO_BROKER, result_backend=url.format(port=server.port, socket=server.socket), **settings)
    with RedisResults(app, timeout=TIMEOUT) as reader:
        until_pushed(reader)
        app.backend.store_result(form, REPORT, states.SUCCESS)
        until_hinted(reader, form)
        assert read_all(reader, [form], 1).keys() == {form}
        reader.forget([form])
        until(lambda: app.backend.client.get(app.backend.get_key_for_task(form)) is None, "the deletion of the result")


@pytest.mark.parametrize("fault", ["kill", "freeze"])
def test_a_lost_subscription_may_have_missed_changes_and_is_reopened(servers, fault):
    server = servers("redis")
    app = make_app(broker_url=NO_BROKER, result_backend=server.url)
    with RedisResults(app, timeout=TIMEOUT) as reader:
        until_pushed(reader)
        getattr(server, fault)()
        until(lambda: not reader.changed() and not reader.pushes, "the loss of the subscription")
        server.start() if fault == "kill" else server.thaw()
        until_pushed(reader)
        app.backend.store_result(f"after {fault}", REPORT, states.SUCCESS)
        until_hinted(reader, f"after {fault}")


@contextmanager
def working(broker: str, backend: str) -> Iterator[None]:
    script = Path(__file__).parents[1] / "support" / "celery_worker.py"
    with subprocess.Popen([sys.executable, script, broker, backend], stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:  # it waits for a command that a failed test left running
                process.kill()


@contextmanager
def executing(app: Celery, reader: BackendResults, **settings: Any) -> Iterator[CeleryExecutor]:
    publisher = OneByOnePublisher(app)
    yield CeleryExecutor(
        Config(parallelism=8, operation_timeout=TIMEOUT, **settings),
        publisher=publisher,
        results=reader,
        revoker=ControlRevoker(app, timeout=TIMEOUT),
    )
    publisher.close()
    app.close()


def drive(executor: CeleryExecutor, is_done: Callable[[list[Event]], bool]) -> list[Event]:
    events: list[Event] = []

    def is_done_after_heartbeat() -> bool:
        executor.heartbeat()
        events.extend(executor.get_event_buffer())
        executor.wait(0.05)
        return is_done(events)

    until(is_done_after_heartbeat, "the end of the tasks")
    return events


def drive_until_pushed(executor: CeleryExecutor, reader: BackendResults) -> None:
    """Run tasks until the reader pushes changes: it does so only after a worker's first event. Then end all tasks."""
    executor.queue_command(0, "true")

    def pushes() -> bool:
        executor.heartbeat()
        executor.wait(0.2)
        if not executor.tasks_waiting and not reader.pushes and executor.slots_available > 1:
            executor.queue_command(time.monotonic(), "true")
        return reader.pushes

    until(pushes, "the first event")
    for task in list(executor.tasks()):
        executor.success(task.key)
    executor.get_event_buffer()


if parse_version(celery.__version__) >= MIN_RELIABLE_VERSION:

    @pytest.mark.parametrize("broker", ["redis", "rabbit"])
    @pytest.mark.parametrize("backend", ["postgres", "file"])
    def test_task_events_report_changes_for_a_backend_that_does_not(servers, request, tmp_path, broker, backend):
        broker_url = (servers(broker) if broker == "redis" else request.getfixturevalue("rabbit")).url
        backend_url = servers(backend).url if backend == "postgres" else f"file://{tmp_path}"
        app = make_app(broker_url=broker_url, result_backend=backend_url, operation_timeout=TIMEOUT)
        rarely = {"first_look": 600, "reconcile_interval": 600, "reconcile_interval_pushed": 1200}
        with (
            results_for(app, timeout=TIMEOUT) as reader,
            working(broker_url, backend_url),
            executing(app, reader, **rarely) as executor,
        ):
            drive_until_pushed(executor, reader)
            executor.queue_command("hinted", f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done")
            drive(executor, lambda events: State.RUNNING in [event.state for event in events])
            (tmp_path / "go").touch()
            (end,) = [event for event in drive(executor, lambda events: bool(events)) if event.key == "hinted"]
            assert end.state is State.SUCCESS


@pytest.mark.parametrize("broker", ["redis", "rabbit"])
def test_task_events_are_incomplete_once_a_worker_may_lose_some(servers, request, broker):
    broker_url = (servers(broker) if broker == "redis" else request.getfixturevalue("rabbit")).url
    app = make_app(broker_url=broker_url, result_backend="db+sqlite://", operation_timeout=TIMEOUT)
    source = TaskEvents(app, timeout=TIMEOUT)
    with app.events.default_dispatcher() as worker:
        changes = []
        for ids in source.listen():
            changes.append(ids)
            worker.send("task-succeeded", uuid="one")
            if None in changes:
                worker.send("worker-heartbeat", sw_ver="5.6.2")
        assert {"one"} in changes
        for ids in source.listen():
            assert ids is not None
            worker.send("task-succeeded", uuid="two")
            if "two" in ids:
                break


def test_the_event_queue_is_deleted_with_its_reader(rabbit):
    app = make_app(broker_url=rabbit.url, result_backend="db+sqlite://", operation_timeout=TIMEOUT)

    def has_queue() -> bool:
        return "celeriac" in rabbit.control("list_queues", "--quiet", "--vhost", rabbit.vhost, "name")

    with results_for(app, timeout=TIMEOUT):
        until(has_queue, "the queue of events")
    until(lambda: not has_queue(), "the deletion of the queue")


# — a run —


@pytest.mark.parametrize(("backend", "fault"), [("redis", "kill"), slow("redis", "freeze"), ("postgres", "freeze")])
def test_a_run_survives_an_outage_of_its_backend(servers, tmp_path, backend, fault):
    broker = servers("valkey")
    with running(SERVERS[backend]) as server:
        app = make_app(broker_url=broker.url, result_backend=server.url, operation_timeout=TIMEOUT)
        with (
            results_for(app, timeout=TIMEOUT) as reader,
            working(broker.url, server.url),
            executing(app, reader) as executor,
        ):
            for n in range(40):
                executor.queue_command(n, f"sleep 0.1; echo {n} >> {tmp_path}/log", queue="default")
            events = drive(executor, lambda events: any(event.state is State.SUCCESS for event in events))
            getattr(server, fault)()
            unavailable_since = time.monotonic()
            events += drive(executor, lambda _: time.monotonic() > unavailable_since + 2)
            server.start() if fault == "kill" else server.thaw()
            events += drive(executor, lambda more: sum(e.state.is_final for e in [*events, *more]) >= 40)
    assert [event.state for event in events if event.state.is_final] == [State.SUCCESS] * 40
    assert sorted(map(int, (tmp_path / "log").read_text().split())) == list(range(40))
