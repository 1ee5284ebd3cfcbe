"""`Cluster` with real brokers, backends and workers.

Each command writes its key to a file first, and then waits for its gate. So the test knows from outside which commands
have started, and in which order.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from celery import Celery
from celery.result import AsyncResult
from kombu import Connection
from redis import Redis

from celeriac import Cluster, Config, Event, State
from celeriac.errors import CommandFailed, InvalidConfig
from tests.support.cli_runner import started, until
from tests.support.long import slow
from tests.support.workers import GATED, read_log, worker

pytestmark = pytest.mark.celery


@pytest.fixture
def urls(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Return the URLs of a broker without messages and of its backend."""
    if request.param == "redis":
        redis = request.getfixturevalue("shared_redis")
        with Redis(port=redis.port) as client:
            client.flushall()
        return redis.url, redis.url
    rabbit, postgres = request.getfixturevalue("rabbit"), request.getfixturevalue("postgres")
    with Connection(rabbit.url) as connection:
        connection.default_channel.queue_delete("default")
    return rabbit.url, postgres.url


BOTH = pytest.mark.parametrize("urls", ["redis", "rabbit"], indirect=True)


class Side:
    """An executor, and its events."""

    def __init__(self, cluster: Cluster) -> None:
        self.executor = cluster.executor()
        self.events: list[Event] = []

    def step(self) -> None:
        self.executor.heartbeat()
        self.events += self.executor.get_event_buffer()
        self.executor.wait(0.02)

    def drive(self, is_done: Callable[[], object], what: str = "the condition") -> None:
        def reached() -> object:
            self.step()
            return is_done()

        until(reached, what)

    def in_state(self, state: State) -> set[Any]:
        """Return the keys of all tasks that were in a state at any time."""
        return {event.key for event in self.events if event.state is state}

    @property
    def ran(self) -> set[Any]:
        """The keys of all tasks that have started, by their final events."""
        ends = (event for event in self.events if event.state.is_final)
        return {event.key for event in ends if event.execution is not None and event.execution.started is not None}

    @property
    def ends(self) -> Counter[Any]:
        return Counter((event.key, event.state) for event in self.events if event.state.is_final)


def cluster_at(urls: tuple[str, str], *, late_binding: bool = True, **fields: Any) -> Cluster:
    config = Config(parallelism=10_000, reconcile_interval=0.5, **fields)
    return Cluster(urls[0], urls[1], config=config, late_binding=late_binding)


@pytest.mark.parametrize(
    ("broker", "backend", "setting"),
    [
        ("amqp://127.0.0.1:1//", None, "backend"),
        ("nonsense://127.0.0.1:1/0", "redis://127.0.0.1:1/0", "broker"),
        ("redis://127.0.0.1:1/0", "nonsense://127.0.0.1:1/0", "backend"),
    ],
)
def test_url_of_an_unknown_kind_is_named(broker, backend, setting):
    with pytest.raises(InvalidConfig) as caught:
        Cluster(broker, backend)
    assert caught.value.setting == setting


def test_one_redis_is_broker_and_backend(shared_redis):
    with Cluster(shared_redis.url) as cluster, Cluster.from_app(cluster.app) as other:
        assert other.app.conf.result_backend == shared_redis.url
        until(lambda: cluster.capacity() == other.capacity() == {}, "the reply that there are no workers")


@pytest.mark.parametrize(
    ("urls", "pool", "at_once"),
    [("redis", "threads", 2), ("redis", "prefork", 1), ("rabbit", "threads", 2)],
    indirect=["urls"],
)
def test_urgent_task_overtakes_a_thousand_in_the_broker(urls, pool, at_once, tmp_path):
    log, lows = tmp_path / "log", [f"low-{n}" for n in range(1_000)]
    with (
        worker(tmp_path, urls, "--pool", pool, "--concurrency", str(at_once)),
        cluster_at(urls, late_binding=False) as cluster,
    ):
        side = Side(cluster)
        for key in lows:
            side.executor.queue_command(key, GATED, cwd=str(tmp_path))
        side.drive(lambda: len(side.in_state(State.QUEUED)) == 1_000 and len(read_log(log)) == at_once)
        side.executor.queue_command("high", GATED, cwd=str(tmp_path), priority=5)
        side.drive(lambda: "high" in side.in_state(State.QUEUED))
        (tmp_path / "go-low-0").touch()  # room for one more
        side.drive(lambda: len(read_log(log)) == at_once + 1)
        (tmp_path / "go-high").touch()
        side.drive(lambda: len(read_log(log)) == at_once + 2)
        assert sorted(read_log(log)[:at_once]) == lows[:at_once]
        assert read_log(log)[at_once:] == ["high", lows[at_once]]


@pytest.mark.parametrize("urls", ["redis", slow("rabbit")], indirect=True)
def test_urgent_task_starts_next_while_a_hundred_thousand_wait(urls, tmp_path):
    log, at_once = tmp_path / "log", 2
    with (
        worker(tmp_path, urls, "--concurrency", str(at_once)),
        cluster_at(urls) as cluster,
    ):
        side = Side(cluster)
        for n in range(100_000):
            side.executor.queue_command(f"low-{n}", GATED, cwd=str(tmp_path))
        side.drive(lambda: len(read_log(log)) == at_once and side.executor.tasks_in_flight == 2 * at_once)
        side.executor.queue_command("high", GATED, cwd=str(tmp_path), priority=5)
        side.drive(lambda: "high" in side.in_state(State.QUEUED))
        (tmp_path / f"go-{read_log(log)[0]}").touch()
        side.drive(lambda: len(read_log(log)) == at_once + 1)
        assert read_log(log)[at_once] == "high"
        side.executor.terminate()
        side.drive(lambda: side.executor.tasks_in_flight == 0, "the end of the revoked tasks")
    assert len(side.ends) == side.ends.total() == 100_001
    assert len(side.in_state(State.QUEUED)) <= 2 * at_once + 2
    assert Counter(read_log(log)) == Counter(side.ran)


@BOTH
def test_executors_with_the_same_broker_workers_and_keys_do_not_affect_each_other(urls, tmp_path):
    log = tmp_path / "log"
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(worker(tmp_path, urls, "--concurrency", "2"))
        one, other = (Side(stack.enter_context(cluster_at(urls))) for _ in range(2))
        for n in range(60):
            one.executor.queue_command(n, f"echo one-{n} >> log", cwd=str(tmp_path))
            other.executor.queue_command(n, f"echo other-{n} >> log; exit 3", cwd=str(tmp_path))

        def both(is_done: Callable[[], object], what: str) -> None:
            one.drive(lambda: other.step() or is_done(), what)  # type: ignore[func-returns-value]

        both(
            lambda: not any(side.executor.tasks_waiting + side.executor.tasks_in_flight for side in (one, other)),
            "the end of all tasks",
        )
        assert one.ends == Counter((n, State.SUCCESS) for n in range(60))
        assert other.ends == Counter((n, State.FAILED) for n in range(60))
        assert Counter(read_log(log)) == Counter(f"{name}-{n}" for name in ("one", "other") for n in range(60))
        for name, side, tasks in (("one", one, 3), ("other", other, 20)):  # six run at once
            side.events.clear()
            for n in range(tasks):
                command = f"touch up-{name}; while [ ! -e go ]; do sleep 0.02; done"
                side.executor.queue_command(n, command, cwd=str(tmp_path))
            both((tmp_path / f"up-{name}").exists, "a start")
        other.executor.terminate()
        both(lambda: other.executor.tasks_in_flight == 0, "the end of the one that was terminated")
        (tmp_path / "go").touch()
        both(lambda: one.executor.tasks_in_flight + one.executor.tasks_waiting == 0, "the end of the other one")
    assert one.ends == Counter((n, State.SUCCESS) for n in range(3))
    assert other.ends == Counter((n, State.REVOKED) for n in range(20))
    assert not {event.id for event in one.events} & {event.id for event in other.events}


@BOTH
def test_cancel_unstarted_ends_no_task_that_has_started_unseen(urls, tmp_path):
    with worker(tmp_path, urls, "--concurrency", "1"), cluster_at(urls, late_binding=False) as cluster:
        side = Side(cluster)
        for n in range(50):
            side.executor.queue_command(n, GATED, cwd=str(tmp_path))
        side.executor.trigger_tasks(50)
        until((tmp_path / "log").exists, "the start of the first")
        side.executor.cancel_unstarted()
        side.drive(lambda: len(side.in_state(State.REVOKED)) == 49)
        (tmp_path / "go").touch()
        side.executor.queue_command("after", GATED, cwd=str(tmp_path))
        side.drive(lambda: side.executor.tasks_in_flight + side.executor.tasks_waiting == 0)
    assert side.ends == Counter(
        [(0, State.SUCCESS), *((n, State.REVOKED) for n in range(1, 50)), ("after", State.SUCCESS)]
    )
    assert read_log(tmp_path / "log") == ["0", "after"]


APP = """
from celery import Celery
import celeriac

app = Celery("site", broker={!r}, backend={!r}, worker_prefetch_multiplier=1)
celeriac.register_task(app)
"""


@BOTH
def test_celery_worker_runs_tasks_and_celery_client_reads_results(urls, tmp_path):
    (tmp_path / "site_app.py").write_text(APP.format(*urls))
    arguments = ["-A", "site_app", "worker", "--queues", "default", "--concurrency", "1", "--loglevel", "ERROR"]
    with (
        started(*arguments, cwd=tmp_path, program="celery") as celery_worker,
        cluster_at(urls, late_binding=False, delete_results=False) as cluster,
    ):
        side = Side(cluster)
        first = side.executor.queue_command("first", GATED, cwd=str(tmp_path))
        side.drive((tmp_path / "log").exists, "the start of the first")
        for key, priority in (("low", 0), ("high", 5), ("higher", 6)):
            side.executor.queue_command(key, GATED, cwd=str(tmp_path), priority=priority)
        bad = side.executor.queue_command("bad", "echo oh no >&2; exit 3")
        side.drive(lambda: side.in_state(State.QUEUED) >= {"first", "low", "high", "higher", "bad"})
        (tmp_path / "go").touch()
        side.drive(lambda: side.executor.tasks_in_flight == 0)
        celery_worker.signal(signal.SIGTERM)
        assert celery_worker.wait().status == 0
        celery_worker.wait_until_nothing_is_alive()
    assert read_log(tmp_path / "log") == ["first", "higher", "high", "low"]
    assert side.ends == Counter(
        [("bad", State.FAILED), *((key, State.SUCCESS) for key in ("first", "low", "high", "higher"))]
    )
    client = Celery("client", broker=urls[0], backend=urls[1], set_as_current=False)
    succeeded, failed = (AsyncResult(task.message_id, app=client) for task in (first, bad))
    assert (succeeded.state, succeeded.result["execution"]["exit_code"]) == ("SUCCESS", 0)
    assert (failed.state, str(failed.result)) == ("FAILURE", "exit code 3")
    assert isinstance(failed.result, CommandFailed)
    assert failed.result.report["execution"]["stderr"]["tail"] == "oh no\n"
    client.close()
