"""Workers that are killed, frozen or cut off, messages that are delivered twice, and revoked tasks.

Brokers, backends and workers are real. Each command records its start, and whether another run of its task was alive:
see `tests.support.start_recorder`.
"""

from __future__ import annotations

import json
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from msgspec.structs import replace
from redis import Redis

from celeriac import Cluster, Config, Event, Reason, State
from celeriac.broker.command_message import command_message
from celeriac.broker.publishers import publisher_for
from celeriac.broker.task_message import TaskMessage, task_message
from celeriac.task.task import Task
from tests.support.cli_runner import until
from tests.support.long import LONG, slow
from tests.support.servers import RedisServer, Server
from tests.support.start_recorder import StartRecorder
from tests.support.worker_host import WorkerHost

pytestmark = [pytest.mark.celery, pytest.mark.fault, pytest.mark.usefixtures("collect_cut_sockets")]

GATE = "while [ ! -e go ]; do sleep 0.02; done"
STUBBORN = "trap '' TERM; (trap '' TERM; while :; do sleep 1; done) & while :; do sleep 1; done"


class Site:
    """A broker, a result backend, an executor, and the workers that a test starts."""

    def __init__(self, broker: Server, backend: Server, folder: Path, *, late_binding: bool = True) -> None:
        self.broker, self.backend, self.folder = broker, backend, folder
        self.queue = f"q-{folder.name}"
        self.recorder = StartRecorder(folder)
        config = Config(parallelism=1_000, reconcile_interval=1.0)
        self.cluster = Cluster(broker.url, backend.url, config=config, late_binding=late_binding)
        self.executor = self.cluster.executor()
        self.events: list[Event] = []

    def start_worker(self, name: str, *options: str, **options_of_host: Any) -> WorkerHost:
        known = ("--queues", self.queue, "--concurrency", "4")
        return WorkerHost(name, self.broker, self.backend, self.folder, *known, *options, **options_of_host)

    def add(self, key: str, then: str = GATE, **fields: Any) -> None:
        command = self.recorder.command(then)
        self.executor.queue_command(key, command, queue=self.queue, cwd=str(self.folder), **fields)

    def drive(self, is_done: Callable[[], object], what: str, timeout: float = 60.0) -> None:
        def heartbeat() -> object:
            self.executor.heartbeat()
            self.events += self.executor.get_event_buffer()
            self.executor.wait(0.02)
            return is_done()

        until(heartbeat, what, timeout)

    def drive_to_starts(self, number: int) -> None:
        self.drive(lambda: len(self.recorder.starts) >= number, f"{number} starts")

    @property
    def slots(self) -> int | None:
        """The number of tasks that the workers of this queue run at once; None if it is not known."""
        capacity = self.cluster.capacity()
        return None if capacity is None else capacity.get(self.queue, 0)

    def is_idle(self) -> bool:
        return not (self.executor.tasks_in_flight or self.executor.tasks_waiting)

    def to_the_end(self) -> None:
        (self.folder / "go").touch()
        self.drive(self.is_idle, "the end of all tasks")

    def events_of(self, key: str) -> list[tuple[State, int]]:
        return [(event.state, event.attempt) for event in self.events if event.key == key]

    def check(self, *keys: str) -> None:
        """Assert that each task succeeded, and that no two runs of a task overlapped."""
        assert self.recorder.overlaps == []
        assert self.recorder.unexplained(self.events) == []
        ends = [(event.key, event.state) for event in self.events if event.state.is_final]
        assert sorted(ends, key=str) == sorted(((key, State.SUCCESS) for key in keys), key=str)


ONE_KIND = pytest.mark.parametrize("servers", ["redis", "rabbit"] if LONG else ["redis"], indirect=True)
BOTH_KINDS = pytest.mark.parametrize("servers", ["redis", "rabbit"], indirect=True)


@pytest.fixture
def servers(request: pytest.FixtureRequest) -> tuple[Server, Server]:
    """Broker and backend."""
    if request.param == "redis":
        redis = request.getfixturevalue("shared_redis")
        return redis, redis
    return request.getfixturevalue("rabbit"), request.getfixturevalue("postgres")


@pytest.fixture
def site(servers: tuple[Server, Server], tmp_path: Path) -> Iterator[Site]:
    site = Site(*servers, tmp_path)
    with site.cluster:
        yield site


@pytest.mark.parametrize("servers", ["redis", slow("rabbit")], indirect=True)
def test_commands_of_a_killed_worker_run_elsewhere(site):
    with site.start_worker("one") as one:
        for key in ("a", "b"):
            site.add(key)
        site.drive_to_starts(2)
        with site.start_worker("other"):
            one.kill_worker()
            site.drive_to_starts(4)
            site.to_the_end()
    site.check("a", "b")
    assert [attempt for _, attempt in site.recorder.starts] == [1, 1, 2, 2]
    lost = next(event for event in site.events if event.reason is Reason.LOST)
    assert lost.detail is not None
    assert lost.detail.startswith("worker one@")
    assert "it had run for" in lost.detail
    assert lost.execution is not None


@ONE_KIND
def test_a_frozen_worker_is_replaced_and_works_again_after_it_thaws(site):
    with site.start_worker("one") as one:
        site.add("a", f"[ $CELERIAC_ATTEMPT = 2 ] && exit; {STUBBORN}")
        site.drive_to_starts(1)
        one.freeze()
        with site.start_worker("other"):
            site.drive(site.is_idle, "the end of the second attempt")
        one.thaw()
        until(lambda: "declared dead" in one.log.read_text(), "the log line of the worker")
        site.add("b", "true")
        site.to_the_end()
    site.check("a", "b")
    assert site.executor.stats().results_ignored <= 1


@pytest.mark.slow
@ONE_KIND
def test_commands_of_a_suspended_machine_are_ended_when_it_wakes_up(site):
    with site.start_worker("one") as one:
        site.add("a", f"[ $CELERIAC_ATTEMPT = 2 ] && exit; {STUBBORN}")
        site.drive_to_starts(1)
        asleep = one.processes()
        for process in asleep:
            process.suspend()
        with site.start_worker("other"):
            site.drive(site.is_idle, "the end of the second attempt")
        for process in asleep:
            with suppress(psutil.NoSuchProcess):  # a supervisor that goes on may end its commands before their turn
                process.resume()
        until(lambda: "declared dead" in one.log.read_text(), "the log line of the worker")
        until(lambda: not any("trap" in " ".join(each.cmdline()) for each in one.processes()), "the end of the first")
    assert site.events_of("a")[-1] == (State.SUCCESS, 2)


@ONE_KIND
def test_a_worker_that_is_cut_off_ends_its_commands_before_they_run_elsewhere(site):
    with site.start_worker("one") as one:
        site.add("a", f"[ $CELERIAC_ATTEMPT = 2 ] && exit; {STUBBORN}")
        site.drive_to_starts(1)
        with site.start_worker("other"):
            one.network.vanish()
            site.drive_to_starts(2)
            site.to_the_end()
        one.network.cut()
    site.check("a")


@pytest.mark.parametrize("way", ["killed", "frozen"] if LONG else ["killed"])
def test_commands_go_on_while_the_result_backend_is_unavailable_for_everyone(shared_redis, tmp_path, way):
    with closing(RedisServer()) as backend:
        site = Site(shared_redis, backend, tmp_path)
        with site.cluster, site.start_worker("one", is_behind_proxies=False) as one:
            site.add("a")
            site.drive_to_starts(1)
            (backend.kill if way == "killed" else backend.freeze)()
            site.drive(lambda: "running tasks go on" in one.log.read_text(), "the warning of the worker")
            site.drive(after(15 if LONG else 8), "the end of the outage")
            (backend.start if way == "killed" else backend.thaw)()
            site.to_the_end()
        site.check("a")


def test_a_strict_worker_ends_its_commands_when_the_result_backend_is_unavailable(shared_redis, tmp_path):
    with closing(RedisServer()) as backend:
        site = Site(shared_redis, backend, tmp_path)
        strict = {"env": {"CELERIAC_STRICT_LEASE": "true"}, "is_behind_proxies": False}
        with site.cluster, site.start_worker("one", **strict) as one:
            site.add("a", f"[ $CELERIAC_ATTEMPT = 2 ] && exit; {STUBBORN}")
            site.drive_to_starts(1)
            backend.kill()
            site.drive(lambda: "reason=lost" in one.log.read_text(), "the end of the command")
            backend.start()
            site.to_the_end()
        site.check("a")


def after(seconds: float) -> Callable[[], bool]:
    """Return a condition that comes true after these seconds: an outage longer than supervisors wait for heartbeats."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


@BOTH_KINDS
def test_a_message_that_is_delivered_twice_starts_one_command(site):
    with site.start_worker("one") as one, closing(publisher_for(site.cluster.app)) as publisher:
        site.add("a")
        site.drive_to_starts(1)
        (task,) = site.executor.tasks()
        list(publisher.publish([task] * 3, timeout=2.0))
        until(lambda: one.log.read_text().count("dropped") == 3, "three dropped copies")
        site.to_the_end()
        list(publisher.publish([task], timeout=2.0))
        until(lambda: one.log.read_text().count("dropped") == 4, "a dropped late copy")
    site.check("a")
    assert site.recorder.starts == [("a", 1)]


@BOTH_KINDS
def test_a_message_with_the_body_of_another_runs_nothing_and_its_task_is_re_sent(site):
    def mixed(task: Task) -> TaskMessage:
        return replace(task_message(task), args=({**command_message(task), "id": "another"},))

    with site.start_worker("one") as one, closing(publisher_for(site.cluster.app, message_factory=mixed)) as publisher:
        site.add("up", "true")
        site.to_the_end()
        task = Task(key="a", command=site.recorder.command("true"), queue=site.queue, cwd=str(site.folder))
        list(publisher.publish([task], timeout=2.0))
        until(lambda: "its body belongs to another message" in one.log.read_text(), "the dropped message")
        site.executor.adopt_tasks([task])
        site.drive(site.is_idle, "the end of the task")
    site.check("up", "a")
    assert site.recorder.starts == [("up", 1), ("a", 1)]


def test_a_task_that_runs_longer_than_the_visibility_timeout_runs_once(shared_redis, tmp_path):
    site = Site(shared_redis, shared_redis, tmp_path)
    with (
        site.cluster,
        site.start_worker("one", program="tests.support.short_visibility") as one,
        site.start_worker("other", program="tests.support.short_visibility") as other,
    ):
        site.add("a", "sleep 20" if LONG else GATE)
        site.drive(lambda: "dropped" in one.log.read_text() + other.log.read_text(), "a dropped redelivery")
        site.to_the_end()
    site.check("a")
    assert site.recorder.starts == [("a", 1)]


@BOTH_KINDS
def test_a_task_that_was_revoked_before_any_worker_started_never_runs(servers, tmp_path):
    broker, backend = servers
    site = Site(broker, backend, tmp_path, late_binding=False)
    keys = [f"k{n}" for n in range(3)]
    with site.cluster:
        for key in keys:
            site.add(key, "true")
        site.executor.trigger_tasks(2)
        for key in keys:
            site.executor.revoke_task(key)
        site.drive(site.is_idle, "three ends")
        assert {event.key for event in site.events if event.state is State.QUEUED} == {"k0", "k1"}
        assert {event.key for event in site.events if event.state is State.REVOKED} == set(keys)
        with site.start_worker("late") as late:
            site.add("after", "true")
            site.drive(site.is_idle, "the end of another task")
            until(lambda: late.log.read_text().count("reason=revoked") == 2, "the dropped messages")
    assert site.recorder.starts == [("after", 1)]


@BOTH_KINDS
def test_revoked_is_reported_with_the_signal_once_the_last_process_is_dead(site):
    with site.start_worker("one") as one:
        for n in range(4):
            site.add(f"k{n}", STUBBORN, grace=0.5)
        site.drive_to_starts(4)
        for n in range(4):
            site.executor.revoke_task(f"k{n}")
        site.drive(lambda: any(event.state is State.REVOKED for event in site.events), "the first end")
        site.drive(lambda: site.executor.tasks_in_flight == 0, "all ends")
        alive = [process for process in one.processes() if "trap" in " ".join(process.cmdline())]
    ends = [event for event in site.events if event.state is State.REVOKED]
    assert alive == []
    assert len(ends) == 4
    assert {event.execution.signal for event in ends if event.execution is not None} == {"SIGKILL"}


@BOTH_KINDS
def test_a_worker_that_shuts_down_hands_back_unfinished_tasks_and_uses_up_no_attempt(site):
    with site.start_worker("one", "--grace", "0.5") as one:
        site.add("a", GATE, retries=0)
        site.drive_to_starts(1)
        with site.start_worker("other"):
            one.worker.signal(signal.SIGTERM)
            site.drive_to_starts(2)
            assert one.worker.process.wait(30) == 0
            site.to_the_end()
    assert site.recorder.starts == [("a", 1), ("a", 1)]
    assert site.recorder.overlaps == []
    assert site.events_of("a")[-1] == (State.SUCCESS, 1)
    assert {attempt for _, attempt in site.events_of("a")} == {1}


@pytest.mark.slow
@ONE_KIND
def test_a_rolling_restart_fails_no_task_and_uses_up_no_attempt(site):
    unit = 1.0 if LONG else 0.2  # seconds
    lengths = [unit * length for length in (1, 2, 5, 10, 20)]
    with ExitStack() as stack:
        options = ("--grace", str(5 * unit))
        machines = [stack.enter_context(site.start_worker(f"w{n}", *options)) for n in range(3)]
        keys = [f"k{n}" for n in range(60)]
        for n, key in enumerate(keys):
            site.add(key, f"sleep {lengths[n % len(lengths)]}", retries=0)
        for n, machine in enumerate(machines[:3]):
            site.drive_to_starts(8 * (n + 1))
            machine.worker.signal(signal.SIGTERM)
            site.drive(lambda worker=machine.worker: worker.process.poll() is not None, "the end of a worker")
            assert machine.worker.process.returncode == 0
            machines.append(stack.enter_context(site.start_worker(f"w{n + 3}", *options)))
        site.to_the_end()
        handed_back = Counter(re.findall(r"handed back key=(k\d+)", "".join(m.log.read_text() for m in machines)))
    assert handed_back
    assert site.recorder.overlaps == []
    assert {event.attempt for event in site.events} == {1}
    assert Counter(event.key for event in site.events if event.state is State.SUCCESS) == Counter(keys)
    starts = Counter(key for key, _ in site.recorder.starts)
    assert all(1 <= starts[key] <= 1 + handed_back[key] for key in keys)


@BOTH_KINDS
def test_a_draining_worker_is_sent_no_more_tasks(site):
    with site.start_worker("one") as one:
        site.add("a")
        site.drive_to_starts(1)
        site.drive(lambda: site.slots == 4, "the slots of the worker")
        one.worker.signal(signal.SIGTERM)
        site.drive(lambda: site.slots == 0, "the end of its slots")
        site.add("b", "true")
        site.drive(lambda: site.queue in site.executor.stats().queues_without_workers, "a queue without workers")
        assert site.executor.tasks_waiting == 1
        with site.start_worker("other"):
            site.to_the_end()
    site.check("a", "b")


def test_a_lease_costs_one_write_however_many_tasks_run(redis, tmp_path):
    """The server counts: while no task starts or ends, renewals alone write."""

    def lease() -> dict[str, str]:
        with Redis(port=redis.port, decode_responses=True) as client:
            (name,) = client.keys("celeriac-lease-*")
            fields: dict[str, str] = client.hgetall(name)
            return fields

    def counts() -> tuple[int, int]:
        """Return the number of renewals, and of writes: each write to a lease increases its heartbeat count."""
        fields = lease()
        return json.loads(fields["content"])["number"], int(fields["beat"])

    site = Site(redis, redis, tmp_path)
    with site.cluster, site.start_worker("one", "--concurrency", "40"):
        for n in range(40):
            site.add(f"k{n}")
        site.drive_to_starts(40)
        renewals, writes = counts()
        site.drive(lambda: counts()[0] >= renewals + 3, "three more renewals")
        renewals_then, writes_then = counts()
        assert writes_then - writes == renewals_then - renewals
        assert len(json.loads(lease()["content"])["running"]) == 40
        site.to_the_end()
    site.check(*(f"k{n}" for n in range(40)))
