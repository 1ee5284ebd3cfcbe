"""The gate that holds starts back: the load, the free memory, and the delay between two starts."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from math import exp
from pathlib import Path

import pytest

from celeriac.executor.requests import WaitReason
from celeriac.executor.start_gate import Readings, StartGate
from celeriac.task.size import format_size
from celeriac.worker import start_hold
from celeriac.worker.readings import free_of_groups, read_machine
from celeriac.worker.start_hold import StartHold

GIB = 2**30


class Machine:
    """A machine that is as busy as a test says."""

    def __init__(self, load: float = 0.0, free: int | None = None) -> None:
        self.load, self.free, self.reads = load, free, 0

    def read(self) -> Readings:
        self.reads += 1
        return Readings(load=self.load, cpus=4, free_memory=self.free)


def start_all(gate: StartGate, now: float, in_use: int = 0, most: int = 100) -> int:
    """Start what the gate admits. Return the slots in use."""
    while in_use < most and gate.admits(in_use, now):
        in_use += 1
        gate.started(in_use, now)
    return in_use


def words_of(gate: StartGate) -> str:
    assert gate.waits is not None
    return gate.waits.words


def reason_of(gate: StartGate) -> WaitReason:
    assert gate.waits is not None
    return gate.waits.reason


@pytest.mark.parametrize(("limit", "shown"), [(2, "2"), ("50%", "2"), (2.5, "2.5")])
def test_nothing_starts_above_the_load(limit, shown):
    machine = Machine(load=9.21)
    gate = StartGate(machine.read, max_load=limit)
    assert not gate.admits(0, 100.0)
    assert (words_of(gate), gate.retry_at) == (f"load 9.2 is above {shown}", 101.0)
    assert reason_of(gate) is WaitReason.LOAD
    machine.load = 0.5
    assert not gate.admits(0, 100.9)
    assert gate.admits(0, 101.0)
    assert (gate.waits, machine.reads) == (None, 2)


def test_a_burst_counts_until_the_load_average_shows_it():
    machine = Machine(load=0.5)
    gate = StartGate(machine.read, max_load=4)
    assert start_all(gate, 0.0) == 4
    assert words_of(gate) == "load 0.5 and the tasks that have just started come to 4"
    machine.load = 2.1
    assert start_all(gate, 30.0, in_use=4) == 4
    machine.load = 3.9  # of commands that compute
    assert start_all(gate, 600.0, in_use=4) == 5
    machine.load = 0.0  # of commands that sleep
    assert start_all(gate, 1200.0, in_use=5) == 9


def test_short_tasks_in_a_steady_row_are_not_counted_twice():
    machine, now = Machine(load=0.0), 0.0
    gate = StartGate(machine.read, max_load=10)
    in_use = start_all(gate, now, most=8)
    for _ in range(600):
        now, machine.load = now + 1.0, 8.0 + (machine.load - 8.0) * exp(-1 / 60)
        in_use = start_all(gate, now, in_use - 4, most=8)
        assert in_use == 8


def test_each_start_counts_as_the_least_free_memory_until_the_next_reading():
    machine = Machine(free=7 * GIB // 2)
    gate = StartGate(machine.read, min_free_memory=GIB)
    assert start_all(gate, 0.0) == 3
    assert words_of(gate) == "the free memory is measured again first"
    machine.free = GIB - 1
    assert start_all(gate, 0.5, in_use=3) == 3
    assert start_all(gate, 1.0, in_use=3) == 3
    assert words_of(gate) == "free memory 1,024 MiB is below 1 GiB"
    assert reason_of(gate) is WaitReason.MEMORY


def test_memory_that_is_just_enough_is_not_called_too_little():
    gate = StartGate(Machine(free=GIB).read, min_free_memory=GIB)
    assert start_all(gate, 0.0) == 1
    assert words_of(gate) == "the free memory is measured again first"


def test_the_next_start_waits_for_the_delay():
    gate = StartGate(None, max_load=1, delay=2.5)
    assert start_all(gate, 10.0) == 1
    assert (words_of(gate), gate.retry_at) == ("the next start is in 2.5 s", 12.5)
    assert not gate.admits(0, 12.4)
    assert gate.admits(0, 12.5)


def test_unknown_readings_limit_nothing():
    gate = StartGate(lambda: Readings(load=None, cpus=4, free_memory=None), max_load=1, min_free_memory=GIB)
    assert start_all(gate, 0.0) == 100


def test_a_machine_that_others_keep_busy_is_logged_once(caplog):
    gate = StartGate(Machine(load=9.0).read, max_load=1)
    with caplog.at_level(logging.WARNING):
        for now in range(10):
            assert not gate.admits(0, float(now))
    assert caplog.messages == ["nothing runs, and nothing starts: load 9.0 is above 1"]


def facts_of(gate: StartGate) -> dict[str, int | float | str]:
    assert gate.waits is not None
    return gate.waits.facts


def test_what_holds_a_task_back_has_its_numbers_as_facts():
    delay = StartGate(None, delay=2.5)
    delay.started(1, 10.0)
    assert not delay.admits(1, 10.12345)
    assert facts_of(delay) == {"seconds": 2.377}
    load = StartGate(Machine(load=9.2149).read, max_load="61.44%")
    assert not load.admits(0, 0.0)
    assert facts_of(load) == {"load": 9.21, "max_load": 2.46}
    machine = Machine(free=GIB - 1)
    memory = StartGate(machine.read, min_free_memory=GIB)
    assert not memory.admits(0, 0.0)
    assert facts_of(memory) == {"free_memory": GIB - 1, "min_free_memory": GIB}
    machine.free = GIB
    assert start_all(memory, 1.0) == 1
    assert facts_of(memory) == {"free_memory": GIB, "min_free_memory": GIB}


def test_slots_that_were_taken_lately_count_as_load_by_the_second():
    machine = Machine(load=1.0)
    gate = StartGate(machine.read, max_load=1.5)
    assert gate.admits(0, 0.0)
    gate.started(40, 0.0)
    assert gate.admits(0, 0.5)  # 40 slots were in use until now
    started = []
    for now in (1.25, 31.25, 31.25):
        assert not gate.admits(10, now)
        started.append(facts_of(gate)["started"])
    assert started == [9.55, 5.79, 5.79]
    assert facts_of(gate) == {"load": 1.0, "max_load": 1.5, "started": 5.79}


def test_a_load_that_is_just_at_the_limit_holds_back_the_second_start_only():
    gate = StartGate(Machine(load=2.0, free=1).read, max_load=2)
    assert start_all(gate, 0.0) == 1
    assert words_of(gate) == "load 2.0 and the tasks that have just started come to 2"
    below = StartGate(Machine(load=1.0).read, max_load=2)
    assert start_all(below, 0.0) == 1


def test_a_machine_without_limits_is_not_read():
    machine = Machine(load=9.0)
    assert start_all(StartGate(machine.read, delay=0.0), 0.0) == 100
    assert machine.reads == 0


def test_a_task_that_waits_while_others_run_is_not_logged(caplog):
    gate = StartGate(Machine(load=9.0).read, max_load=1)
    with caplog.at_level(logging.WARNING):
        assert not gate.admits(1, 0.0)
        assert caplog.messages == []
        assert not gate.admits(0, 1.0)
    assert caplog.messages == ["nothing runs, and nothing starts: load 9.0 is above 1"]


# — readings —


def test_this_machine_is_read():
    readings = read_machine()
    assert min(readings.load or 0, readings.free_memory or 0) >= 0
    assert None not in (readings.load, readings.free_memory)
    assert readings.cpus >= 1


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_the_free_memory_of_each_cgroup_counts(tmp_path):
    write(tmp_path / "proc/self", cgroup="0::/a/b\n")
    write(tmp_path / "sys/a/b", memory__max="max\n", memory__current="70\n")
    write(tmp_path / "sys/a", memory__max="100\n", memory__current="90\n", memory__stat="anon 60\ninactive_file 25\n")
    assert list(free_of_groups(tmp_path / "proc", tmp_path / "sys")) == [35]


def test_the_free_memory_of_a_cgroup_of_the_first_version_counts(tmp_path):
    write(tmp_path / "proc/self", cgroup="4:memory:/a\n0::/\n")
    files = {"memory__limit_in_bytes": "100\n", "memory__usage_in_bytes": "130\n"}
    write(tmp_path / "sys/memory/a", **files)
    assert list(free_of_groups(tmp_path / "proc", tmp_path / "sys")) == [0]


@pytest.mark.parametrize(
    ("size", "text"),
    [(1, "1 bytes"), (1023, "1,023 bytes"), (1024, "1 KiB"), (3 * GIB // 2, "1.5 GiB"), (2**60, "1,048,576 TiB")],
)
def test_a_size_has_a_unit(size, text):
    assert format_size(size) == text


def test_two_messages_of_one_task_wait_for_a_start_each(monkeypatch):
    monkeypatch.setattr(start_hold, "POLL_INTERVAL", 0.001)
    machine = Machine(load=9.0)
    hold = StartHold(StartGate(machine.read, max_load=1))
    has_ended = False

    def start(task_id: str) -> bool:
        with hold.turn(task_id, lambda: has_ended) as may_start:
            return may_start

    with ThreadPoolExecutor(3) as threads:
        starts = [threads.submit(start, task_id) for task_id in ("a", "a", "b")]
        try:
            while sorted(hold.waiting) != ["a", "a", "b"]:
                time.sleep(0.001)
            machine.load = 0.0
            assert [each.result(timeout=10.0) for each in starts] == [True, True, True]
        finally:
            has_ended = True
    assert hold.waiting == ()
