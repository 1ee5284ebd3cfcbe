"""One suite over every result reader, with real servers behind them; then what each can do beyond it."""

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
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import celery
import pytest
from celery import Celery, states
from sqlalchemy.exc import DatabaseError

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
from celeriac.worker.start import worker_app
from tests.support.cli_runner import PATIENCE, until
from tests.support.long import slow
from tests.support.servers import PostgresServer, RedisServer, Server, ValkeyServer

pytestmark = [
    pytest.mark.filterwarnings("ignore:Call to deprecated setex"),
    pytest.mark.celery,
]  # by Celery's own backend

TIMEOUT = 0.5  # seconds that one read may take
NOWHERE = "memory://"  # a broker for those who only read
OUTCOME = {"reason": None, "detail": None, "execution": {"host": "h", "exit_code": 0}}
FAILURE = CommandFailed({"reason": "exit_code", "detail": "exit code 3", "execution": {"host": "h", "exit_code": 3}})


class Kit:
    """A result backend, what workers and accidents do to it, and its reader."""

    server: Server

    def __init__(self, url: str) -> None:
        self.app = make_app(broker_url=NOWHERE, result_backend=url)
        self.reader = self.new_reader(url)

    def new_reader(self, url: str) -> Any:
        return results_for(make_app(broker_url=NOWHERE, result_backend=url, operation_timeout=TIMEOUT), timeout=TIMEOUT)

    def store(self, task_id: str, state: str, value: object) -> None:
        self.app.backend.store_result(task_id, value, state)

    def holds(self, task_id: str) -> bool:
        return bool(self.app.backend.get_task_meta(task_id, cache=False)["status"] != states.PENDING)

    def corrupt(self, task_id: str) -> None:
        raise NotImplementedError

    def copy(self, task_id: str, count: int) -> list[str]:
        """Store the same under `count` further ids."""
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
        self.store(task_id, states.SUCCESS, OUTCOME)
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

    def holds(self, task_id: str) -> bool:
        return task_id in self.reader.results

    def corrupt(self, task_id: str) -> None:
        self.reader.put(task_id, Unreadable(ValueError("no JSON")))

    def copy(self, task_id: str, count: int) -> list[str]:
        ids = [f"{task_id}-{n}" for n in range(count)]
        for copy in ids:
            self.reader.put(copy, self.reader.results[task_id])
        return ids

    def close(self) -> None:
        """Nothing to end."""


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
    """One of each kind, started when first asked for."""
    up: dict[str, Server] = {}

    def server(kind: str) -> Server:
        if kind not in up:
            up[kind] = SERVERS[kind]()
        return up[kind]

    yield server
    for each in up.values():
        each.close()


@pytest.fixture(params=["memory", "file", *SERVERS])
def kit(request: pytest.FixtureRequest, servers: Callable[[str], Server], tmp_path: Path) -> Iterator[Any]:
    yield from made(request.param, servers, tmp_path)


@pytest.fixture(params=["file", *SERVERS])  # the backend in memory has nothing to wait for
def kit_that_waits(request: pytest.FixtureRequest, servers: Callable[[str], Server], tmp_path: Path) -> Iterator[Any]:
    yield from made(request.param, servers, tmp_path)


@pytest.fixture(params=SERVERS)
def kit_with_server(request: pytest.FixtureRequest, servers: Callable[[str], Server], tmp_path: Path) -> Iterator[Any]:
    yield from made(request.param, servers, tmp_path)


def made(kind: str, servers: Callable[[str], Server], folder: Path) -> Iterator[Kit]:
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


def all_of(reader: Any, ids: list[str], count: int) -> dict[str, Result | Unreadable]:
    """Read as an executor does, until so much is known."""
    found = dict(reader.read(ids))

    def more() -> bool:
        found.update(reader.read([task_id for task_id in reader.changed() if task_id in ids]))
        return len(found) >= count

    until(more, f"the results of {count} tasks")
    return found


# — the same of all —


def test_it_finds_what_was_stored_and_leaves_out_what_was_not(kit):
    kit.store("started", states.STARTED, {"hostname": "celery@h"})
    kit.store("good", states.SUCCESS, OUTCOME)
    kit.store("bad", states.FAILURE, FAILURE)
    kit.store("waiting", states.PENDING, None)
    found = all_of(kit.reader, ["started", "good", "bad", "waiting", "never heard of"], 3)
    assert {task_id: result.state for task_id, result in found.items()} == {  # type: ignore[union-attr]
        "started": State.RUNNING,
        "good": State.SUCCESS,
        "bad": State.FAILED,
    }
    assert found["bad"].execution.exit_code == 3  # type: ignore[union-attr]


def test_a_value_that_cannot_be_understood_concerns_one_task(kit):
    kit.corrupt("corrupt")
    kit.store("odd", states.SUCCESS, 5)
    kit.store("good", states.SUCCESS, OUTCOME)
    found = all_of(kit.reader, ["good", "odd", "corrupt"], 3)
    assert {task_id: type(result) for task_id, result in found.items()} == {
        "corrupt": Unreadable,
        "odd": Unreadable,
        "good": Result,
    }


def test_what_would_run_when_it_is_unpickled_is_not_and_plain_pickles_are_read(servers, tmp_path):
    """Before Celery 5.7 all results in a database are pickles, whatever the serializer."""
    kit = PostgresKit(servers("postgres").url)
    kit.server = servers("postgres")
    pickles = {
        "evil": pickle.dumps(Touch(tmp_path / "marker")),
        "hidden": pickle.dumps({**OUTCOME, "detail": Touch(tmp_path / "marker")}),
        "plain": pickle.dumps({**OUTCOME, "reason": None}),
        "known": pickle.dumps({**OUTCOME, "reason": Reason.EXIT_CODE}),
    }
    for task_id, value in pickles.items():
        kit.store(task_id, states.SUCCESS, OUTCOME)
        kit.server.sql(rf"UPDATE celery_taskmeta SET result = '\x{value.hex()}' WHERE task_id = '{task_id}'")
    found = all_of(kit.reader, list(pickles), 4)
    kit.close()
    assert {task_id: type(result) for task_id, result in found.items()} == {
        "evil": Unreadable,
        "hidden": Unreadable,
        "plain": Result,
        "known": Result,
    }
    assert not (tmp_path / "marker").exists()


def test_a_worker_unpickles_no_more_than_plain_data_and_waits_for_its_database_in_every_thread(tmp_path):
    settings = {"broker": "redis://127.0.0.1:1/0", "backend": f"db+sqlite:///{tmp_path}/results.db"}
    with closing(worker_app(read_settings(settings, environment={}).connection)) as app:
        backend = app.backend  # of the thread whose children a pool of processes has
        assert backend.exception_safe_to_retry(DatabaseError("", None, Exception()))
        for task_id, state, value in (("good", states.SUCCESS, OUTCOME), ("bad", states.FAILURE, FAILURE)):
            backend.store_result(task_id, value, state)
            assert backend.get_task_meta(task_id, cache=False)["status"] == state
        with closing(sqlite3.connect(tmp_path / "results.db")) as database:
            pickled = pickle.dumps(Touch(tmp_path / "marker"))
            database.execute("UPDATE celery_taskmeta SET result = ? WHERE task_id = 'good'", (pickled,))
            database.commit()
        with pytest.raises(pickle.UnpicklingError, match="more than plain data"):
            backend.get_task_meta("good", cache=False)
        with suppress(pickle.UnpicklingError):  # before Celery 5.7, which reads what it writes over
            backend.store_result("good", OUTCOME, states.SUCCESS)
    assert not (tmp_path / "marker").exists()


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


def test_many_are_read_in_chunks(kit):
    kit.store("first", states.SUCCESS, OUTCOME)
    ids = kit.copy("first", 1_100)
    found = all_of(kit.reader, [*ids, *(f"nobody-{n}" for n in range(1_100))], 1_100)
    assert found.keys() == set(ids)
    kit.reader.forget(ids)
    until(lambda: not kit.holds(ids[-1]) and not kit.holds(ids[0]), "the end of the results")


def test_what_was_forgotten_is_gone_and_nothing_else(kit):
    for task_id in ("forgotten", "kept"):
        kit.store(task_id, states.SUCCESS, OUTCOME)
    kit.reader.forget(["forgotten", "nobody"])
    until(lambda: not kit.holds("forgotten"), "the end of the result")
    assert kit.holds("kept")
    assert all_of(kit.reader, ["forgotten", "kept"], 1).keys() == {"kept"}


def test_waking_ends_a_wait_before_it_began_and_from_a_thread_and_from_a_signal_handler(kit_that_waits):
    kit = kit_that_waits
    before, woken = time.monotonic(), threading.Semaphore(0)

    def wake(*_: object) -> None:
        woken.release()
        kit.reader.wake()

    def wait() -> None:
        while not woken.acquire(blocking=False):  # it may return for other reasons too
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


# — those with a server, which may be away —


@pytest.mark.parametrize("fault", ["kill", "freeze"])
def test_while_a_backend_is_away_nothing_is_raised_and_no_heartbeat_waits_again_and_again(
    kit_with_server, fault, caplog
):
    kit, server = kit_with_server, kit_with_server.server
    kit.store("a", states.SUCCESS, OUTCOME)
    all_of(kit.reader, ["a"], 1)
    caplog.set_level(logging.WARNING, logger="celeriac")
    getattr(server, fault)()
    before = time.monotonic()
    for _ in range(1_000):
        assert kit.reader.read(["a", "b", *kit.reader.changed()]) == {}
        kit.reader.forget(["c"])
    assert time.monotonic() - before < 1_000 * TIMEOUT / 10
    server.start() if fault == "kill" else server.thaw()
    assert all_of(kit.reader, ["a"], 1).keys() == {"a"}
    assert [record.getMessage().partition(":")[0].rstrip("0123456789. s") for record in caplog.records] == [
        "the result backend is unavailable",
        "the result backend is available again after",
    ]


def test_what_is_stored_while_nobody_could_read_is_named_when_the_backend_is_back(kit_with_server):
    kit, server = kit_with_server, kit_with_server.server
    server.kill()
    assert kit.reader.read(["late"]) == {}
    server.start()
    kit.store("late", states.SUCCESS, OUTCOME)
    named: set[str] = set()

    def is_named() -> bool:
        kit.reader.wait(5)
        named.update(kit.reader.changed())
        return "late" in named

    until(is_named, "the name of the task")
    assert all_of(kit.reader, ["late"], 1).keys() == {"late"}


def test_a_database_in_which_nothing_was_ever_stored_knows_nothing(servers, caplog):
    postgres = servers("postgres")
    app = make_app(
        broker_url=NOWHERE, result_backend=postgres.url, database_table_names={"task": "never_made", "group": "neither"}
    )
    with DatabaseResults(app, timeout=PATIENCE) as reader:
        assert reader.read(["a"]) == {}
        reader.forget(["a"])
    app.backend.task_cls.configure()  # the table's name belongs to Celery's class, not to the app
    app.backend.taskset_cls.configure()
    assert caplog.records == []


def test_the_reader_is_chosen_by_the_backend(servers, tmp_path):
    kinds = {f"file://{tmp_path}": OneByOneResults, "db+sqlite://": DatabaseResults, "redis://": RedisResults}
    for url, kind in kinds.items():
        with results_for(make_app(broker_url=NOWHERE, result_backend=url), timeout=TIMEOUT) as reader:
            assert type(reader) is kind


# — changes that are pushed —


def until_pushed(reader: BackendResults) -> None:
    def pushes() -> bool:
        reader.changed()
        return reader.pushes

    until(pushes, "the subscription")


def hinted(reader: BackendResults, task_id: str) -> None:
    def is_hinted() -> bool:
        reader.wait(5)
        return task_id in reader.changed()

    until(is_hinted, f"a hint at {task_id}")


FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("redis://127.0.0.1:{port}/0", {}),
    "another database": ("redis://127.0.0.1:{port}/3", {}),
    "unix socket": ("redis+socket://{socket}?virtual_host=2", {}),
    "prefix": ("redis://127.0.0.1:{port}/0", {"result_backend_transport_options": {"global_keyprefix": "[a*?\\b]"}}),
    "text": ("redis://127.0.0.1:{port}/4?decode_responses=true", {}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_redis_tells_what_was_stored(servers, kind, form):
    server = servers(kind)
    url, settings = FORMS[form]
    app = make_app(broker_url=NOWHERE, result_backend=url.format(port=server.port, socket=server.socket), **settings)
    with RedisResults(app, timeout=TIMEOUT) as reader:
        until_pushed(reader)
        app.backend.store_result(form, OUTCOME, states.SUCCESS)
        hinted(reader, form)
        assert all_of(reader, [form], 1).keys() == {form}
        reader.forget([form])
        until(lambda: app.backend.client.get(app.backend.get_key_for_task(form)) is None, "the end of the result")


@pytest.mark.parametrize("fault", ["kill", "freeze"])
def test_a_subscription_that_was_lost_is_said_to_have_missed_something_and_is_opened_again(servers, fault):
    server = servers("redis")
    app = make_app(broker_url=NOWHERE, result_backend=server.url)
    with RedisResults(app, timeout=TIMEOUT) as reader:
        until_pushed(reader)
        getattr(server, fault)()
        until(lambda: not reader.changed() and not reader.pushes, "the loss of the subscription")
        server.start() if fault == "kill" else server.thaw()
        until_pushed(reader)
        app.backend.store_result(f"after {fault}", OUTCOME, states.SUCCESS)
        hinted(reader, f"after {fault}")


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
            except subprocess.TimeoutExpired:  # it waits for a command that a failed test left behind
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

    def beat() -> bool:
        executor.heartbeat()
        events.extend(executor.get_event_buffer())
        executor.wait(0.05)
        return is_done(events)

    until(beat, "the end of the tasks")
    return events


def drive_until_pushed(executor: CeleryExecutor, reader: BackendResults) -> None:
    """Nothing is promised before the first event of a worker."""
    executor.queue_command(0, "true")

    def beat() -> bool:
        executor.heartbeat()
        executor.wait(0.2)
        if not executor.tasks_waiting and not reader.pushes and executor.slots_available > 1:
            executor.queue_command(time.monotonic(), "true")
        return reader.pushes

    until(beat, "the first event")
    for task in list(executor._tracker):
        executor.success(task.task.key)
    executor.get_event_buffer()


if parse_version(celery.__version__) >= MIN_RELIABLE_VERSION:

    @pytest.mark.parametrize("broker", ["redis", "rabbit"])
    @pytest.mark.parametrize("backend", ["postgres", "file"])
    def test_task_events_tell_what_has_moved_where_the_backend_does_not(servers, request, tmp_path, broker, backend):
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
def test_nothing_is_promised_once_a_worker_was_heard_whose_celery_may_lose_events(servers, request, broker):
    broker_url = (servers(broker) if broker == "redis" else request.getfixturevalue("rabbit")).url
    app = make_app(broker_url=broker_url, result_backend="db+sqlite://", operation_timeout=TIMEOUT)
    source = TaskEvents(app, timeout=TIMEOUT)
    with app.events.default_dispatcher() as worker:
        heard = []
        for ids in source.listen():
            heard.append(ids)
            worker.send("task-succeeded", uuid="one")
            if None in heard:
                worker.send("worker-heartbeat", sw_ver="5.6.2")
        assert {"one"} in heard
        for ids in source.listen():
            assert ids is not None
            worker.send("task-succeeded", uuid="two")
            if "two" in ids:
                break


def test_the_queue_of_events_goes_with_its_reader(rabbit):
    app = make_app(broker_url=rabbit.url, result_backend="db+sqlite://", operation_timeout=TIMEOUT)

    def has_queue() -> bool:
        return "celeriac" in rabbit.control("list_queues", "--quiet", "--vhost", rabbit.vhost, "name")

    with results_for(app, timeout=TIMEOUT):
        until(has_queue, "the queue of events")
    until(lambda: not has_queue(), "the end of the queue")


# — a run —


@pytest.mark.parametrize(("backend", "fault"), [("redis", "kill"), slow("redis", "freeze"), ("postgres", "freeze")])
def test_a_backend_that_is_away_for_a_while_costs_a_run_nothing(servers, tmp_path, backend, fault):
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
            gone = time.monotonic()
            events += drive(executor, lambda _: time.monotonic() > gone + 2)
            server.start() if fault == "kill" else server.thaw()
            events += drive(executor, lambda more: sum(e.state.is_final for e in [*events, *more]) >= 40)
    assert [event.state for event in events if event.state.is_final] == [State.SUCCESS] * 40
    assert sorted(map(int, (tmp_path / "log").read_text().split())) == list(range(40))
