"""Test late binding: tasks are sent only when live workers can take them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from celeriac import CeleryExecutor, Config, Event, Reason, Result, State
from celeriac.backend.results import results_for
from celeriac.broker.app import make_app
from celeriac.broker.publishers import publisher_for
from celeriac.cluster.revoker import ControlRevoker
from celeriac.cluster.worker_monitor import WorkerMonitor
from celeriac.testing import InMemoryBroker, ManualClock
from tests.support.cli_runner import until
from tests.support.servers import RabbitServer, RedisServer, Server

pytestmark = pytest.mark.celery

WORKER = Path(__file__).parents[1] / "support" / "celery_worker.py"


class FixedCapacity:
    """A `Capacity` that a test sets."""

    def __init__(self, by_queue: Mapping[str, int] | None) -> None:
        self.now = by_queue

    def by_queue(self) -> Mapping[str, int] | None:
        return self.now

    def why_held(self, queue: str) -> str | None:
        return None

    def shares(self) -> None:
        return None


def late_binding_executor(
    workers: FixedCapacity, margin: int = 2, parallelism: int = 100
) -> tuple[CeleryExecutor, InMemoryBroker]:
    broker = InMemoryBroker(ManualClock())
    config = Config(parallelism=parallelism, late_binding_margin=margin)
    return CeleryExecutor(config, publisher=broker, results=broker, revoker=broker, capacity=workers), broker


def sent_keys(broker: InMemoryBroker) -> list[object]:
    return [task.key for task in broker.messages]


def test_tasks_in_flight_are_limited_to_the_workers_and_a_margin():
    executor, broker = late_binding_executor(FixedCapacity({"default": 3}))
    for n in range(10):
        executor.queue_command(n, "true")
    executor.heartbeat()
    assert sent_keys(broker) == [0, 1, 2, 3, 4]
    broker.succeed(0)
    executor.heartbeat()
    executor.heartbeat()
    assert sent_keys(broker) == [0, 1, 2, 3, 4, 5]


def test_more_urgent_tasks_are_sent_at_once_up_to_the_same_limit():
    executor, broker = late_binding_executor(FixedCapacity({"default": 1}), margin=1)
    for priority, name in ((0, "low"), (5, "high"), (5, "same"), (100, "top"), (9, "as high"), (3, "less")):
        for n in range(3):
            executor.queue_command(f"{name}-{n}", "true", priority=priority)
        executor.heartbeat()
    assert sent_keys(broker) == ["low-0", "low-1", "high-0", "high-1", "top-0", "top-1"]
    broker.succeed("high-0")
    executor.heartbeat()
    executor.heartbeat()
    assert sent_keys(broker)[6:] == []
    broker.succeed("top-0")
    executor.heartbeat()
    executor.heartbeat()
    assert sent_keys(broker)[6:] == ["top-2"]


def test_the_margin_is_at_most_the_capacity_of_the_workers():
    executor, broker = late_binding_executor(FixedCapacity({"default": 1}), margin=64)
    for n in range(10):
        executor.queue_command(n, "true")
    executor.heartbeat()
    assert sent_keys(broker) == [0, 1]


def test_a_queue_without_workers_takes_no_slots_and_is_logged_once(caplog):
    workers = FixedCapacity({"default": 2})
    executor, broker = late_binding_executor(workers, parallelism=2)
    for n in range(5):
        executor.queue_command(f"gpu-{n}", "true", queue="gpu", priority=9)
        executor.queue_command(f"cpu-{n}", "true")
    executor.heartbeat()
    executor.heartbeat()
    assert sent_keys(broker) == ["cpu-0", "cpu-1"]
    assert executor.stats().queues_without_workers == {"gpu"}
    assert [r.message for r in caplog.records] == ["no live worker serves queue 'gpu': its tasks wait"]
    workers.now = {"default": 2, "gpu": 1}
    broker.succeed("cpu-0")
    broker.succeed("cpu-1")
    executor.heartbeat()
    executor.heartbeat()
    assert sent_keys(broker)[2:] == ["gpu-0", "gpu-1"]
    assert executor.stats().queues_without_workers == frozenset()
    assert caplog.records[-1].message == "queue 'gpu' is served again"


def test_one_task_of_each_queue_is_sent_while_the_workers_are_unknown():
    workers = FixedCapacity(None)
    executor, broker = late_binding_executor(workers)
    for n in range(3):
        executor.queue_command(f"a-{n}", "true", queue="a")
        executor.queue_command(f"b-{n}", "true", queue="b")
    executor.heartbeat()
    executor.heartbeat()
    assert sent_keys(broker) == ["a-0", "b-0"]
    assert executor.stats().queues_without_workers == frozenset()


def test_a_queue_without_workers_is_logged_even_if_all_its_tasks_were_sent(caplog):
    workers = FixedCapacity(None)
    executor, broker = late_binding_executor(workers)
    executor.queue_command("k", "true")
    executor.heartbeat()
    assert sent_keys(broker) == ["k"]
    workers.now = {}
    executor.heartbeat()
    executor.heartbeat()
    assert [r.message for r in caplog.records] == ["no live worker serves queue 'default': its tasks wait"]


def test_cancelled_tasks_end_at_once_if_no_worker_serves_their_queue(caplog):
    workers = FixedCapacity({"default": 1, "gpu": 1})
    executor, broker = late_binding_executor(workers)
    broker.obeys_revokes = False
    for key, queue in (("cpu", "default"), ("gpu", "gpu"), ("started", "gpu"), ("ended", "gpu")):
        executor.queue_command(key, "true", queue=queue)
        executor.heartbeat()
    workers.now = {"default": 1, "gpu": 3}
    executor.heartbeat()
    assert sent_keys(broker) == ["cpu", "gpu", "started", "ended"]
    executor.get_event_buffer()
    executor.drain()
    executor.cancel_unstarted()
    executor.cancel_unstarted()
    executor.heartbeat()
    assert broker.revoked == [task.message_id for task in broker.messages]
    assert executor.get_event_buffer() == []  # the workers will report the ends
    workers.now = {"default": 1}
    broker.put(broker.message("started").message_id, Result(State.RUNNING), hint=False)
    broker.put(broker.message("ended").message_id, Result(State.SUCCESS), hint=False)
    executor.heartbeat()
    assert {event.key: event.state for event in executor.get_event_buffer()} == {
        "gpu": State.REVOKED,
        "started": State.RUNNING,
        "ended": State.SUCCESS,
    }
    assert caplog.records[-1].message == (
        "tasks revoked while no live worker serves their queues: 1; a later worker runs their messages"
    )
    broker.put(broker.message("cpu").message_id, Result(State.REVOKED, Reason.REVOKED))
    broker.put(broker.message("started").message_id, Result(State.FAILED, Reason.EXIT_CODE))
    executor.heartbeat()
    assert {event.key: event.state for event in executor.get_event_buffer()} == {
        "cpu": State.REVOKED,
        "started": State.FAILED,
    }
    assert executor.tasks_in_flight == 0


def test_cancelled_tasks_wait_while_the_result_backend_is_unavailable():
    workers = FixedCapacity({"default": 1})
    executor, broker = late_binding_executor(workers)
    broker.obeys_revokes = False
    executor.queue_command("k", "true")
    executor.heartbeat()
    executor.get_event_buffer()
    workers.now, broker.answered = {}, False
    executor.terminate()
    executor.heartbeat()
    assert executor.get_event_buffer() == []
    broker.answered = True
    executor.heartbeat()
    (event,) = executor.get_event_buffer()
    assert (event.state, event.detail) == (
        State.REVOKED,
        "no live worker serves queue 'default': its message stays with the broker",
    )


# — with real workers —


@pytest.fixture(scope="module", params=["redis", "rabbit"])
def servers(request: pytest.FixtureRequest) -> Iterator[tuple[Server, RedisServer]]:
    backend = RedisServer()
    broker: Server = RabbitServer() if request.param == "rabbit" else backend
    yield broker, backend
    broker.close()
    backend.close()


@pytest.fixture
def executor(servers: tuple[Server, RedisServer]) -> Iterator[CeleryExecutor]:
    broker, backend = servers
    app = make_app(broker_url=broker.url, result_backend=backend.url)
    workers, publisher = WorkerMonitor(app, timeout=2.0), publisher_for(app)
    results = results_for(app, timeout=2.0)
    yield CeleryExecutor(
        Config(parallelism=1_000),
        publisher=publisher,
        results=results,
        revoker=ControlRevoker(app, timeout=2.0),
        capacity=workers,
    )
    publisher.close()
    workers.close()
    results.close()


def drive(executor: CeleryExecutor, condition: object, events: list[Event]) -> None:
    def heartbeat() -> bool:
        executor.heartbeat()
        events.extend(executor.get_event_buffer())
        executor.wait(0.05)
        return bool(condition())  # type: ignore[operator]

    until(heartbeat, "the end of the tasks")


def test_a_killed_worker_is_noticed(executor, servers, tmp_path):
    process = subprocess.Popen([sys.executable, WORKER, servers[0].url, servers[1].url])
    events: list[Event] = []
    executor.queue_command("first", "true")
    drive(executor, lambda: any(event.state is State.SUCCESS for event in events), events)
    process.kill()
    process.wait()
    executor.queue_command("second", "true")

    def is_noticed() -> bool:
        executor.heartbeat()
        for n in range(100):
            if not executor.has_task(n):
                executor.queue_command(n, "true")
        return "default" in executor.stats().queues_without_workers

    until(is_noticed, "that the worker is noticed as dead", timeout=30)
    executor.terminate()
