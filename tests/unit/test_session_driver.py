"""A service that stops: its last rounds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from celeriac.config.executor_config import Config
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.places import LocalPlaces
from celeriac.runs.owner_session import MAX_PAUSE
from celeriac.runs.service import SessionDriver
from celeriac.testing import InMemoryBroker, ManualClock

GRACE = 60.0  # seconds


class LeasedPlaces(LocalPlaces):
    """A store that keeps places only for as long as they are renewed."""

    renew_interval: float | None = 20.0

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(clock)
        self.renewed_at: list[float] = []
        self._now = clock

    def renew(self, requests: Any) -> None:
        self.renewed_at.append(self._now())


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
