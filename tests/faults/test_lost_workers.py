"""Workers that are killed, frozen and cut off, messages that come twice, and what is called back: with real brokers,
backends and workers. Each run writes down its start, and whether another run of its task lived
(`tests.support.start_recorder`)."""

from __future__ import annotations

import json
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from celeriac import Cluster, Config, Event, Reason, State
from celeriac.broker.app import command_message
from celeriac.broker.publishers import publisher_for
from celeriac.broker.task_message import TaskMessage, task_message
from celeriac.task.task import Task
from tests.support.cli_runner import until
from tests.support.long import LONG, slow
from tests.support.servers import RedisServer, Server
from tests.support.start_recorder import Witness
from tests.support.worker_host import Machine

pytestmark = [pytest.mark.celery, pytest.mark.fault, pytest.mark.usefixtures("collect_cut_sockets")]

GATE = "while [ ! -e go ]; do sleep 0.02; done"
STUBBORN = "trap '' TERM; (trap '' TERM; while :; do sleep 1; done) & while :; do sleep 1; done"


class Place:
    def __init__(self, broker: Server, backend: Server, folder: Path, *, late_binding: bool = True) -> None:
        self.broker, self.backend, self.folder = broker, backend, folder
        self.queue = f"q-{folder.name}"
        self.witness = Witness(folder)
        config = Config(parallelism=1_000, reconcile_interval=1.0)
        self.cluster = Cluster(broker.url, backend.url, config=config, late_binding=late_binding)
        self.executor = self.cluster.executor()
        self.events: list[Event] = []

    def machine(self, name: str, *options: str, **how: Any) -> Machine:
        known = ("--queues", self.queue, "--concurrency", "4")
        return Machine(name, self.broker, self.backend, self.folder, *known, *options, **how)

    def add(self, key: str, then: str = GATE, **fields: Any) -> None:
        command = self.witness.command(then)
        self.executor.queue_command(key, command, queue=self.queue, cwd=str(self.folder), **fields)

    def drive(self, is_done: Callable[[], object], what: str, patience: float = 60.0) -> None:
        def beat() -> object:
            self.executor.heartbeat()
            self.events += self.executor.get_event_buffer()
            self.executor.wait(0.02)
            return is_done()

        until(beat, what, patience)

    def drive_to_starts(self, number: int) -> None:
        self.drive(lambda: len(self.witness.starts) >= number, f"{number} starts")

    @property
    def at_once(self) -> int | None:
        """How many tasks the workers of our queue run at once, if that is known."""
        capacity = self.cluster.capacity()
        return None if capacity is None else capacity.get(self.queue, 0)

    def is_idle(self) -> bool:
        return not (self.executor.tasks_in_flight or self.executor.tasks_waiting)

    def to_the_end(self) -> None:
        (self.folder / "go").touch()
        self.drive(self.is_idle, "the end of all")

    def events_of(self, key: str) -> list[tuple[State, int]]:
        return [(event.state, event.attempt) for event in self.events if event.key == key]

    def check(self, *keys: str) -> None:
        """Each succeeded, and no two runs of one lived at a time."""
        assert self.witness.overlaps == []
        assert self.witness.unexplained(self.events) == []
        ends = [(event.key, event.state) for event in self.events if event.state.is_final]
        assert sorted(ends, key=str) == sorted(((key, State.SUCCESS) for key in keys), key=str)


KINDS = pytest.mark.parametrize("servers", ["redis", "rabbit"] if LONG else ["redis"], indirect=True)
BOTH = pytest.mark.parametrize("servers", ["redis", "rabbit"], indirect=True)


@pytest.fixture
def servers(request: pytest.FixtureRequest) -> tuple[Server, Server]:
    """Broker and backend."""
    if request.param == "redis":
        redis = request.getfixturevalue("shared_redis")
        return redis, redis
    return request.getfixturevalue("rabbit"), request.getfixturevalue("postgres")


@pytest.fixture
def place(servers: tuple[Server, Server], tmp_path: Path) -> Iterator[Place]:
    place = Place(*servers, tmp_path)
    with place.cluster:
        yield place


@pytest.mark.parametrize("servers", ["redis", slow("rabbit")], indirect=True)
def test_what_a_killed_worker_ran_runs_elsewhere(place):
    with place.machine("one") as one:
        for key in ("a", "b"):
            place.add(key)
        place.drive_to_starts(2)
        with place.machine("other"):
            one.kill_worker()
            place.drive_to_starts(4)
            place.to_the_end()
    place.check("a", "b")
    assert [attempt for _, attempt in place.witness.starts] == [1, 1, 2, 2]
    lost = next(event for event in place.events if event.reason is Reason.LOST)
    assert lost.detail is not None
    assert lost.detail.startswith("worker one@")
    assert "it had run for" in lost.detail
    assert lost.execution is not None


@KINDS
def test_a_frozen_worker_is_replaced_and_is_of_use_again_when_it_thaws(place):
    with place.machine("one") as one:
        place.add("a", f"[ $CELERIAC_ATTEMPT = 2 ] && exit; {STUBBORN}")
        place.drive_to_starts(1)
        one.freeze()
        with place.machine("other"):
            place.drive(place.is_idle, "the end of the second attempt")
        one.thaw()
        until(lambda: "declared dead" in one.log.read_text(), "that the worker hears of it")
        place.add("b", "true")
        place.to_the_end()
    place.check("a", "b")
    assert place.executor.stats().results_ignored <= 1


@pytest.mark.slow
@KINDS
def test_what_a_machine_ran_that_stood_still_as_a_whole_is_ended_when_it_wakes_up(place):
    with place.machine("one") as one:
        place.add("a", f"[ $CELERIAC_ATTEMPT = 2 ] && exit; {STUBBORN}")
        place.drive_to_starts(1)
        asleep = one.processes()
        for process in asleep:
            process.suspend()
        with place.machine("other"):
            place.drive(place.is_idle, "the end of the second attempt")
        for process in asleep:
            process.resume()
        until(lambda: "declared dead" in one.log.read_text(), "that the worker hears of it")
        until(lambda: not any("trap" in " ".join(each.cmdline()) for each in one.processes()), "the end of the first")
    assert place.events_of("a")[-1] == (State.SUCCESS, 2)


@KINDS
def test_a_worker_that_is_cut_off_ends_what_it_runs_before_it_runs_elsewhere(place):
    with place.machine("one") as one:
        place.add("a", f"[ $CELERIAC_ATTEMPT = 2 ] && exit; {STUBBORN}")
        place.drive_to_starts(1)
        with place.machine("other"):
            one.network.vanish()
            place.drive_to_starts(2)
            place.to_the_end()
        one.network.cut()
    place.check("a")


@pytest.mark.parametrize("way", ["killed", "frozen"] if LONG else ["killed"])
def test_what_runs_goes_on_while_the_result_backend_is_away_for_everybody(shared_redis, tmp_path, way):
    with closing(RedisServer()) as backend:
        place = Place(shared_redis, backend, tmp_path)
        with place.cluster, place.machine("one", is_behind_proxies=False) as one:
            place.add("a")
            place.drive_to_starts(1)
            (backend.kill if way == "killed" else backend.freeze)()
            place.drive(lambda: "running tasks go on" in one.log.read_text(), "that the worker misses it")
            place.drive(after(15 if LONG else 8), "the end of the outage")
            (backend.start if way == "killed" else backend.thaw)()
            place.to_the_end()
        place.check("a")


def test_a_strict_worker_ends_what_it_runs_when_its_result_backend_is_away(shared_redis, tmp_path):
    with closing(RedisServer()) as backend:
        place = Place(shared_redis, backend, tmp_path)
        strict = {"env": {"CELERIAC_STRICT_LEASE": "true"}, "is_behind_proxies": False}
        with place.cluster, place.machine("one", **strict) as one:
            place.add("a", f"[ $CELERIAC_ATTEMPT = 2 ] && exit; {STUBBORN}")
            place.drive_to_starts(1)
            backend.kill()
            place.drive(lambda: "reason=lost" in one.log.read_text(), "that the command is ended")
            backend.start()
            place.to_the_end()
        place.check("a")


def after(seconds: float) -> Callable[[], bool]:
    """How long an outage lasts: longer than a supervisor waits for a word of life."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


@BOTH
def test_a_message_that_comes_twice_starts_once(place):
    with place.machine("one") as one, closing(publisher_for(place.cluster.app)) as publisher:
        place.add("a")
        place.drive_to_starts(1)
        (tracked,) = place.executor._tracker
        list(publisher.publish([tracked.task] * 3, timeout=2.0))
        until(lambda: one.log.read_text().count("dropped") == 3, "that the copies are dropped")
        place.to_the_end()
        list(publisher.publish([tracked.task], timeout=2.0))
        until(lambda: one.log.read_text().count("dropped") == 4, "that a late copy is dropped")
    place.check("a")
    assert place.witness.starts == [("a", 1)]


@BOTH
def test_a_message_with_the_body_of_another_runs_nothing_and_its_task_is_sent_again(place):
    def mixed(task: Task) -> TaskMessage:
        return replace(task_message(task), args=({**command_message(task), "id": "another"},))

    with place.machine("one") as one, closing(publisher_for(place.cluster.app, message_factory=mixed)) as publisher:
        place.add("up", "true")
        place.to_the_end()
        task = Task(key="a", command=place.witness.command("true"), queue=place.queue, cwd=str(place.folder))
        list(publisher.publish([task], timeout=2.0))
        until(lambda: "its body belongs to another message" in one.log.read_text(), "that it is dropped")
        place.executor.adopt_tasks([task])
        place.drive(place.is_idle, "the end of the task")
    place.check("up", "a")
    assert place.witness.starts == [("up", 1), ("a", 1)]


def test_a_task_that_runs_longer_than_the_visibility_timeout_runs_once(shared_redis, tmp_path):
    place = Place(shared_redis, shared_redis, tmp_path)
    with (
        place.cluster,
        place.machine("one", program="tests.support.short_visibility") as one,
        place.machine("other", program="tests.support.short_visibility") as other,
    ):
        place.add("a", "sleep 20" if LONG else GATE)
        place.drive(lambda: "dropped" in one.log.read_text() + other.log.read_text(), "that it comes again")
        place.to_the_end()
    place.check("a")
    assert place.witness.starts == [("a", 1)]


@BOTH
def test_what_was_called_back_while_no_worker_was_up_never_starts(servers, tmp_path):
    broker, backend = servers
    place = Place(broker, backend, tmp_path, late_binding=False)
    keys = [f"k{n}" for n in range(3)]
    with place.cluster:
        for key in keys:
            place.add(key, "true")
        place.executor.trigger_tasks(2)
        for key in keys:
            place.executor.revoke_task(key)
        place.drive(place.is_idle, "three ends")
        assert {event.key for event in place.events if event.state is State.QUEUED} == {"k0", "k1"}
        assert {event.key for event in place.events if event.state is State.REVOKED} == set(keys)
        with place.machine("late") as late:
            place.add("after", "true")
            place.drive(place.is_idle, "the end of another task")
            until(lambda: late.log.read_text().count("reason=revoked") == 2, "that the messages are dropped")
    assert place.witness.starts == [("after", 1)]


@BOTH
def test_revoked_comes_when_the_last_process_is_dead_and_says_how_it_died(place):
    with place.machine("one") as one:
        for n in range(4):
            place.add(f"k{n}", STUBBORN, grace=0.5)
        place.drive_to_starts(4)
        for n in range(4):
            place.executor.revoke_task(f"k{n}")
        place.drive(lambda: any(event.state is State.REVOKED for event in place.events), "the first end")
        place.drive(lambda: place.executor.tasks_in_flight == 0, "all ends")
        alive = [process for process in one.processes() if "trap" in " ".join(process.cmdline())]
    ends = [event for event in place.events if event.state is State.REVOKED]
    assert alive == []
    assert len(ends) == 4
    assert {event.execution.signal for event in ends if event.execution is not None} == {"SIGKILL"}


@BOTH
def test_a_worker_that_goes_hands_back_what_it_cannot_finish_and_no_attempt_is_used_up(place):
    with place.machine("one", "--grace", "0.5") as one:
        place.add("a", GATE, retries=0)
        place.drive_to_starts(1)
        with place.machine("other"):
            one.worker.signal(signal.SIGTERM)
            place.drive_to_starts(2)
            assert one.worker.process.wait(30) == 0
            place.to_the_end()
    assert place.witness.starts == [("a", 1), ("a", 1)]
    assert place.witness.overlaps == []
    assert place.events_of("a")[-1] == (State.SUCCESS, 1)
    assert {attempt for _, attempt in place.events_of("a")} == {1}


@pytest.mark.slow
@KINDS
def test_workers_are_restarted_one_after_another_and_nothing_fails_and_no_attempt_is_used_up(place):
    unit = 1.0 if LONG else 0.2  # seconds
    lengths = [unit * length for length in (1, 2, 5, 10, 20)]
    with ExitStack() as stack:
        options = ("--grace", str(5 * unit))
        machines = [stack.enter_context(place.machine(f"w{n}", *options)) for n in range(3)]
        keys = [f"k{n}" for n in range(60)]
        for n, key in enumerate(keys):
            place.add(key, f"sleep {lengths[n % len(lengths)]}", retries=0)
        for n, machine in enumerate(machines[:3]):
            place.drive_to_starts(8 * (n + 1))
            machine.worker.signal(signal.SIGTERM)
            place.drive(lambda worker=machine.worker: worker.process.poll() is not None, "the end of a worker")
            assert machine.worker.process.returncode == 0
            machines.append(stack.enter_context(place.machine(f"w{n + 3}", *options)))
        place.to_the_end()
        handed_back = Counter(re.findall(r"handed back key=(k\d+)", "".join(m.log.read_text() for m in machines)))
    assert handed_back
    assert place.witness.overlaps == []
    assert {event.attempt for event in place.events} == {1}
    assert Counter(event.key for event in place.events if event.state is State.SUCCESS) == Counter(keys)
    starts = Counter(key for key, _ in place.witness.starts)
    assert all(1 <= starts[key] <= 1 + handed_back[key] for key in keys)


@BOTH
def test_a_worker_that_drains_is_sent_nothing_more(place):
    with place.machine("one") as one:
        place.add("a")
        place.drive_to_starts(1)
        place.drive(lambda: place.at_once == 4, "that it is counted")
        one.worker.signal(signal.SIGTERM)
        place.drive(lambda: place.at_once == 0, "that it is no longer counted")
        place.add("b", "true")
        place.drive(
            lambda: place.queue in place.executor.stats().queues_without_workers, "that nobody is there for another"
        )
        assert place.executor.tasks_waiting == 1
        with place.machine("other"):
            place.to_the_end()
    place.check("a", "b")


def test_a_lease_costs_one_write_however_many_tasks_run(redis, tmp_path):
    """Counted by the server: while nothing starts or ends, renewals alone write."""

    def lease() -> dict[str, str]:
        with Redis(port=redis.port, decode_responses=True) as client:
            (name,) = client.keys("celeriac-lease-*")
            found: dict[str, str] = client.hgetall(name)
            return found

    def counts() -> tuple[int, int]:
        """Renewals, and writes: each write to a lease gives it a new beat."""
        found = lease()
        return json.loads(found["content"])["number"], int(found["beat"])

    place = Place(redis, redis, tmp_path)
    with place.cluster, place.machine("one", "--concurrency", "40"):
        for n in range(40):
            place.add(f"k{n}")
        place.drive_to_starts(40)
        renewals, writes = counts()
        place.drive(lambda: counts()[0] >= renewals + 3, "three more renewals")
        renewals_then, writes_then = counts()
        assert writes_then - writes == renewals_then - renewals
        assert len(json.loads(lease()["content"])["running"]) == 40
        place.to_the_end()
    place.check(*(f"k{n}" for n in range(40)))
