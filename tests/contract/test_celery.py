"""The one-by-one publisher and result reader, with a real Celery worker and a real broker between them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from celeriac import CeleryExecutor, Config, Event, Reason, State, Task
from celeriac.broker.app import make_app
from celeriac.broker.command_message import TASK_NAME
from celeriac.broker.one_by_one import OneByOnePublisher
from celeriac.cluster.revoker import ControlRevoker
from celeriac.executor.interfaces import NotSent, Sent, Unreadable, Unsure
from tests.support.cli_runner import WAIT_TIMEOUT, until
from tests.support.readers import close_readers as close_readers
from tests.support.readers import one_by_one_reader
from tests.support.servers import RedisServer

pytestmark = pytest.mark.celery

TIMEOUT = 0.5  # seconds that an operation may take that is to fail


@pytest.fixture(params=["redis", "file"])
def backend(request: pytest.FixtureRequest, redis: RedisServer, tmp_path: Path) -> str:
    if request.param == "redis":
        return redis.url
    (tmp_path / "results").mkdir()
    return f"file://{tmp_path}/results"


@pytest.fixture
def worker(redis: RedisServer, backend: str) -> Iterator[subprocess.Popen[bytes]]:
    script = Path(__file__).parents[1] / "support" / "celery_worker.py"
    process = subprocess.Popen([sys.executable, script, redis.url, backend])
    yield process
    process.terminate()
    process.wait(30)


def executor_on(redis: RedisServer, backend: str, **settings: float | int) -> CeleryExecutor:
    app = make_app(broker_url=redis.url, result_backend=backend, operation_timeout=TIMEOUT)
    config = Config(parallelism=4, operation_timeout=TIMEOUT, reconcile_interval=0.2, **settings)  # type: ignore[arg-type]
    return CeleryExecutor(
        config,
        publisher=OneByOnePublisher(app),
        results=one_by_one_reader(app, timeout=TIMEOUT),
        revoker=ControlRevoker(app, timeout=TIMEOUT),
    )


def drive(executor: CeleryExecutor, is_done: Callable[[list[Event]], bool]) -> list[Event]:
    events: list[Event] = []

    def beat() -> bool:
        executor.heartbeat()
        events.extend(executor.get_event_buffer())
        executor.wait(0.05)
        return is_done(events)

    until(beat, "the end of the tasks")
    return events


def ends(events: list[Event]) -> dict[object, Event]:
    return {event.key: event for event in events if event.state.is_final}


def test_celery_worker_runs_commands_and_returns_their_reasons(redis, backend, worker, tmp_path):
    executor = executor_on(redis, backend)
    for n in range(6):
        executor.queue_command(n, ["sh", "-c", f"echo {n} >> {tmp_path}/log"])
    executor.queue_command("bad", "echo why >&2; exit 3")
    executor.queue_command("slow", "sleep 60", timeout=0.2)
    executor.queue_command(
        "third", f"echo x >> {tmp_path}/tries; [ $(wc -l < {tmp_path}/tries) = 3 ]", retries=2, retry_delay=0.01
    )
    done = ends(drive(executor, lambda events: len(ends(events)) == 9))
    assert sorted((tmp_path / "log").read_text().split()) == list("012345")
    assert [done[n].state for n in range(6)] == [State.SUCCESS] * 6
    assert (done["bad"].state, done["bad"].reason, done["bad"].detail) == (
        State.FAILED,
        Reason.EXIT_CODE,
        "exit code 3",
    )
    assert done["bad"].execution is not None
    assert done["bad"].execution.stderr.tail == "why\n"
    assert (done["slow"].reason, done["slow"].detail) == (Reason.TIMEOUT, "it ran longer than 0.2 s")
    assert (done["third"].state, done["third"].attempt) == (State.SUCCESS, 3)
    assert executor.slots_available == 4


def test_celery_client_reads_results(redis, tmp_path):
    script = Path(__file__).parents[1] / "support" / "celery_worker.py"
    app = make_app(broker_url=redis.url, result_backend=redis.url)
    executor = executor_on(redis, redis.url, delete_results=False)
    task = executor.queue_command("k", "echo hello")
    with subprocess.Popen([sys.executable, script, redis.url, redis.url]) as process:
        drive(executor, lambda events: bool(ends(events)))
        meta = app.backend.get_task_meta(task.message_id)
        process.terminate()
    assert (meta["status"], meta["result"]["execution"]["stdout"]["tail"]) == ("SUCCESS", "hello\n")


def test_task_revoked_while_it_waits_never_runs_on_workers_that_know(redis, worker, backend, tmp_path):
    executor = executor_on(redis, backend)
    for n in range(4):
        executor.queue_command(n, f"touch {tmp_path}/up-{n}; while [ ! -e {tmp_path}/go ]; do sleep 0.02; done")
    drive(executor, lambda _: all((tmp_path / f"up-{n}").exists() for n in range(4)))
    other = executor_on(redis, backend)
    late = other.queue_command("late", f"touch {tmp_path}/late")
    other.heartbeat()
    other.revoke_task("late")
    inspect = make_app(broker_url=redis.url, result_backend=backend).control.inspect(timeout=0.5)
    until(lambda: any(late.id in ids for ids in (inspect.revoked() or {}).values()), "a worker that knows the revoke")
    (tmp_path / "go").touch()
    drive(executor, lambda events: len(ends(events)) == 4)
    done = ends(drive(other, lambda events: bool(ends(events))))
    assert (done["late"].state, done["late"].reason) == (State.REVOKED, Reason.REVOKED)
    assert not (tmp_path / "late").exists()


def test_message_shows_the_key_and_not_the_command_in_logs_and_events(redis):
    app = make_app(broker_url=redis.url, result_backend=redis.url)
    task = Task(key="k", command="secret stuff")
    assert list(OneByOnePublisher(app).publish([task], timeout=WAIT_TIMEOUT)) == [Sent(task)]
    with app.connection_for_read() as connection:
        message = connection.SimpleQueue("default").get(timeout=5)
    assert message.headers["task"] == TASK_NAME
    assert message.headers["id"] == message.properties["correlation_id"] == task.id
    assert message.headers["argsrepr"] == "('k',)"
    assert json.loads(message.body)[0][0]["command"] == "secret stuff"


def test_broker_frozen_after_the_connection_leaves_one_task_unsure(redis):
    app = make_app(broker_url=redis.url, result_backend=redis.url)
    publisher = OneByOnePublisher(app)
    tasks = [Task(key=n, command="true") for n in range(3)]
    assert [type(receipt) for receipt in publisher.publish(tasks, timeout=WAIT_TIMEOUT)] == [Sent] * 3
    redis.freeze()
    assert [type(receipt) for receipt in publisher.publish(tasks, timeout=TIMEOUT)] == [Unsure, NotSent, NotSent]
    assert [type(receipt) for receipt in publisher.publish(tasks, timeout=TIMEOUT)] == [NotSent] * 3
    redis.thaw()
    until(
        lambda: [type(receipt) for receipt in publisher.publish(tasks, timeout=TIMEOUT)] == [Sent] * 3,
        "the end of the outage",
    )


def test_message_that_cannot_be_encoded_fails_for_good(redis):
    app = make_app(broker_url=redis.url, result_backend=redis.url, task_serializer="no such serializer")
    (receipt,) = OneByOnePublisher(app).publish([Task(key=1, command="true")], timeout=TIMEOUT)
    assert isinstance(receipt, NotSent)
    assert receipt.transient is False


@pytest.mark.parametrize("fault", ["kill", "freeze"])
def test_tasks_survive_a_broker_outage(redis, tmp_path, fault):
    script = Path(__file__).parents[1] / "support" / "celery_worker.py"
    executor = executor_on(redis, redis.url, publish_backoff=0.05)
    getattr(redis, fault)()
    for n in range(8):
        executor.queue_command(n, f"echo {n} >> {tmp_path}/log")
    events = drive(executor, lambda events: sum(e.reason is Reason.PUBLISH_ERROR for e in events) >= 8)
    assert ends(events) == {}
    redis.start() if fault == "kill" else redis.thaw()
    with subprocess.Popen([sys.executable, script, redis.url, redis.url]) as process:
        done = ends(drive(executor, lambda events: len(ends(events)) == 8))
        process.terminate()
    assert {event.state for event in done.values()} == {State.SUCCESS}
    assert sorted((tmp_path / "log").read_text().split()) == list("01234567")


def test_corrupt_result_affects_one_task(redis):
    app = make_app(broker_url=redis.url, result_backend=redis.url)
    results = one_by_one_reader(app, timeout=WAIT_TIMEOUT)
    app.backend.client.set(app.backend.get_key_for_task("corrupt"), b"{not json")
    app.backend.client.set(app.backend.get_key_for_task("odd"), b'{"status": "SUCCESS", "result": 5}')
    app.backend.client.set(app.backend.get_key_for_task("fine"), b'{"status": "STARTED", "result": null}')
    found = results.read(["corrupt", "odd", "fine", "unknown"])
    assert {key: type(value).__name__ for key, value in found.items()} == {
        "corrupt": "Unreadable",
        "odd": "Unreadable",
        "fine": "Result",
    }
    assert isinstance(found["odd"], Unreadable)


def test_unavailable_backend_returns_no_results_and_raises_nothing(redis):
    results = one_by_one_reader(
        make_app(broker_url=redis.url, result_backend=redis.url, operation_timeout=TIMEOUT), timeout=TIMEOUT
    )
    redis.freeze()
    assert results.read(["a", "b", "c"]) == {}
    redis.thaw()
    redis.kill()
    assert results.read(["a", "b", "c"]) == {}
    redis.start()


def test_wake_ends_a_wait(redis):
    results = one_by_one_reader(make_app(broker_url=redis.url, result_backend=redis.url), timeout=TIMEOUT)
    results.wake()
    before = time.monotonic()
    results.wait(600)
    assert time.monotonic() - before < 300
