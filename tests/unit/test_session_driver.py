"""The rounds of a service: looks at the ledger, loads, and the last rounds of one that stops."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from celeriac.config.executor_config import Config
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.places import LocalPlaces
from celeriac.ledger.owned_run import OwnedRun
from celeriac.ledger.owned_runs import PendingWork
from celeriac.runs import service
from celeriac.runs.owner_session import MAX_PAUSE, OwnerSession
from celeriac.runs.service import SessionDriver
from celeriac.testing import InMemoryBroker, ManualClock

GRACE = 60.0  # seconds
SLOW = 15.0  # seconds


class LeasedPlaces(LocalPlaces):
    """A store that keeps places only for as long as they are renewed."""

    renew_interval: float | None = 20.0

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.renewed_at: list[float] = []
        self._now = clock

    def renew(self, requests: Any) -> None:
        self.renewed_at.append(self._now())


class SlowRuns:
    """A ledger with one run of one waiting task. Its reply to the request for runs takes long."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock, self._loads = clock, 0
        self.ended_at: float | None = None

    def pending_work(self) -> PendingWork:
        return PendingWork(has_idle_runs=not self._loads)

    def take(self, *, from_dead: bool) -> list[OwnedRun]:
        assert from_dead
        self._clock.advance(SLOW)
        return [OwnedRun(1, "r", 0, 1, None)]

    def load(self, run: OwnedRun) -> list[Any]:
        """Return nothing: first no task is in flight, and then none waits."""
        self._loads += 1
        run.add_batch([], is_last=True)
        return []

    def end_run(self, run: OwnedRun) -> None:
        self.ended_at = self._clock()

    def take_ended(self) -> list[OwnedRun]:
        return []


def test_a_run_is_loaded_on_at_once_although_the_look_before_has_waited_for_the_ledger(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = ManualClock()
    monkeypatch.setattr(service, "time", SimpleNamespace(monotonic=clock))
    executor: Any = SimpleNamespace(
        adjustments=SimpleNamespace(pause_runs=lambda pauses: False),
        recovery=SimpleNamespace(resume=lambda tasks: None),
        has_task=lambda key: False,
        tasks_waiting=1,
        heartbeat=lambda: None,
        get_event_buffer=list,
        wait=lambda seconds: None,
    )
    runs: Any = SlowRuns(clock)
    driver = SessionDriver(OwnerSession(Random(1)), runs, executor, SimpleNamespace())  # type: ignore[arg-type]
    began = clock()
    driver.tick()
    driver.tick()
    assert runs.ended_at == began + SLOW


def test_a_service_that_stops_renews_the_places_of_its_tasks_and_rests_in_between():
    clock = ManualClock()
    broker, places = InMemoryBroker(clock), LeasedPlaces(clock)
    executor = CeleryExecutor(
        Config(parallelism=2, concurrency_limits={"db": 2}),
        publisher=broker,
        results=broker,
        revoker=broker,
        open_places=lambda: places,
        clock=clock,
        wall_clock=clock,
    )
    for key in ("runs", "waits"):
        executor.queue_command(key, "true", concurrency_key="db")
        executor.heartbeat()
        executor.adjustments.stop_sending()
    runs: Any = SimpleNamespace(take_ended=list)
    driver = SessionDriver(SimpleNamespace(), runs, executor, SimpleNamespace())  # type: ignore[arg-type]
    began, ticks = clock.now, 0
    while clock.now < began + GRACE and ticks < 1_000:
        driver.tick_draining()
        ticks += 1
    assert places.renewed_at == [began + 20, began + 40]
    assert ticks < 2 * GRACE / MAX_PAUSE
    assert [task.key for task in broker.messages] == ["runs"]
