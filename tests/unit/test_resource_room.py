"""Test how the threads of a worker share its CPUs, memory and GPUs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from celeriac.task.amounts import NOTHING, Amounts
from celeriac.worker import resource_room
from celeriac.worker.machine import NO_MACHINE, Machine
from celeriac.worker.resource_room import ResourceRoom, needs_of
from tests.support.cli_runner import until

CPU = 1_000
MACHINE = Machine(milli_cpus=4 * CPU, memory=2**30, gpus=("0", "GPU-b"))


def stays() -> bool:
    return False


@pytest.fixture
def room() -> ResourceRoom:
    return ResourceRoom(MACHINE)


class Waiting:
    """A thread that waits for its turn, and keeps it until `end`."""

    def __init__(self, room: ResourceRoom, task_id: str, needs: Amounts) -> None:
        self._may_end = threading.Event()
        self.gpus: tuple[str, ...] | None = None
        self.has_ended = threading.Event()
        self.has_started = threading.Event()
        self._room, self._id, self._needs = room, task_id, needs
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with self._room.turn(self._id, self._needs, stays) as self.gpus:
            if self.gpus is not None:
                self.has_started.set()
                self._may_end.wait()
        self.has_ended.set()

    def end(self) -> None:
        self._may_end.set()
        assert self.has_ended.wait(30)


@contextmanager
def taken(room: ResourceRoom, *needs: Amounts) -> Iterator[None]:
    with ExitStack() as stack:
        for each in needs:
            assert stack.enter_context(room.turn("other", each, stays)) is not None
        yield


def wait(room: ResourceRoom, task_id: str, needs: Amounts) -> Waiting:
    """Start a thread that waits, and return once it does."""
    thread = Waiting(room, task_id, needs)
    until(lambda: task_id in room.waiting, "that it waits")
    return thread


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRST_PATIENCE", "FIRST_PATIENCE_IN_VAIN", "MAX_PATIENCE_IN_VAIN"):
        monkeypatch.setattr(resource_room, name, 60.0)


@pytest.mark.usefixtures("patient")
def test_a_thread_waits_until_there_is_enough(room):
    with taken(room, Amounts(3 * CPU)):
        thread = wait(room, "a", Amounts(2 * CPU))
        assert not thread.has_started.is_set()
    assert thread.has_started.wait(30)
    assert room.waiting == ()
    thread.end()


def test_each_gpu_belongs_to_one_command(room):
    with room.turn("a", Amounts(gpus=1), stays) as first, room.turn("b", Amounts(gpus=1), stays) as second:
        assert (first, second) == (("0",), ("GPU-b",))
    with room.turn("c", Amounts(gpus=2), stays) as both:
        assert both == ("0", "GPU-b")


@pytest.mark.usefixtures("patient")
def test_a_smaller_task_does_not_overtake_one_that_waits(room):
    with taken(room, Amounts(2 * CPU)):
        large = wait(room, "large", Amounts(4 * CPU))
        small = wait(room, "small", Amounts(CPU))
        with room.turn("memory", Amounts(memory=2**20), stays) as other:
            assert other == ()
        assert not small.has_started.is_set()
    assert large.has_started.wait(30)
    assert not small.has_started.is_set()
    large.end()
    assert small.has_started.wait(30)
    small.end()


def test_a_task_is_handed_back_after_a_while_and_waits_longer_each_time(room, monkeypatch):
    monkeypatch.setattr(resource_room, "FIRST_PATIENCE", 0.001)
    waits: list[float | None] = []
    monkeypatch.setattr(room._change, "wait", waits.append)
    with taken(room, Amounts(4 * CPU)):
        for _ in range(4):
            with room.turn("a", Amounts(CPU), stays) as gpus:
                assert gpus is None
    assert room._patience("a", in_vain=False) == pytest.approx(0.016)
    assert room.waiting == ()
    with room.turn("a", Amounts(4 * CPU), stays) as gpus:
        assert gpus == ()


def test_a_task_that_needs_more_than_there_is_keeps_nothing(room, patient):
    too_large = wait(room, "too large", Amounts(5 * CPU))
    with room.turn("small", Amounts(4 * CPU), stays) as gpus:
        assert gpus == ()
    assert not too_large.has_started.is_set()


def test_a_worker_that_shuts_down_hands_back_what_waits(room):
    with taken(room, Amounts(4 * CPU)), room.turn("a", Amounts(CPU), lambda: True) as gpus:
        assert gpus is None


def test_a_task_without_needs_never_waits():
    with ResourceRoom(NO_MACHINE).turn("a", NOTHING, stays) as gpus:
        assert gpus == ()


def test_what_a_command_took_is_given_back_if_it_raises(room):
    with pytest.raises(RuntimeError), room.turn("a", Amounts(4 * CPU, gpus=2), stays):
        raise RuntimeError
    with room.turn("b", Amounts(4 * CPU, gpus=2), stays) as gpus:
        assert gpus == ("0", "GPU-b")


def test_a_message_says_what_its_command_needs():
    assert needs_of({"cpus": 0.5, "memory": 2**20, "gpus": 1}) == Amounts(500, 2**20, 1)
    assert needs_of({"cpus": None}) == NOTHING
