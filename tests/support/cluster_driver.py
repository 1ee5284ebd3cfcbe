"""An executor on a cluster, driven step by step by a test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from celeriac import Cluster, Event, State
from tests.support.cli_runner import until


class ClusterDriver:
    """Calls the executor's heartbeat until a condition holds, and keeps its events."""

    def __init__(self, cluster: Cluster) -> None:
        self.executor = cluster.executor()
        self.events: list[Event] = []

    def drive(self, is_done: Callable[[], object], what: str) -> None:
        def reached() -> object:
            self.executor.heartbeat()
            self.events += self.executor.get_event_buffer()
            self.executor.wait(0.05)
            return is_done()

        until(reached, what, 90)

    def drive_to_ends(self, number: int) -> Counter[State]:
        """Wait for so many final events. Return how many tasks have ended in each state."""
        self.drive(lambda: sum(self.ends.values()) >= number, f"the end of {number} tasks")
        return self.ends

    @property
    def ends(self) -> Counter[State]:
        return Counter(event.state for event in self.events if event.state.is_final)

    def in_state(self, state: State) -> set[Any]:
        """Return the keys of all tasks that were in a state at any time."""
        return {event.key for event in self.events if event.state is state}
