"""Return events to the caller, and have the stored results of these events deleted."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator

from celeriac.config.executor_config import Config
from celeriac.errors import LedgerUnavailable
from celeriac.executor.lifecycle import TaskLifecycle
from celeriac.executor.result_handler import ResultHandler
from celeriac.task.event import Event
from celeriac.task.result import Reason
from celeriac.task.state import State
from celeriac.task.task import TaskKey


class EventReader:
    """Takes events out of the event buffer."""

    def __init__(self, *, lifecycle: TaskLifecycle, config: Config, result_handler: ResultHandler) -> None:
        self._lifecycle, self._config, self._result_handler = lifecycle, config, result_handler
        self._has_read_unacknowledged = False

    def take(self, keys: Collection[TaskKey] | None = None) -> list[Event]:
        """Return the events since the last call: see `CeleryExecutor.get_event_buffer`."""
        events = self._lifecycle.event_buffer.drain(keys)
        if self._config.delete_results and (ended := [event.id for event in events if ends_attempt(event)]):
            self._result_handler.delete_results(ended)
        return events

    def take_one_by_one(self) -> Iterator[Event]:
        """Yield the events, also those added meanwhile. If the caller stops early, the rest stays in the buffer."""
        while self._lifecycle.event_buffer:
            events = deque(self.take())
            try:
                while events:
                    yield events.popleft()
            finally:
                self._lifecycle.event_buffer.put_back(events)

    def take_with_unacknowledged(self) -> list[Event]:
        """Return the events. The first call puts the unacknowledged events of earlier executors before them.

        Return none while those cannot be read. They come first, so the new ones stay in the buffer until then."""
        if self._has_read_unacknowledged:
            return self.take()
        try:
            unacknowledged = list(self._lifecycle.ledger_writer.unacknowledged())
        except LedgerUnavailable:
            return []
        self._has_read_unacknowledged = True
        events = self.take()
        new = {event.number for event in events}
        return [*(event for event in unacknowledged if event.number not in new), *events]


def ends_attempt(event: Event) -> bool:
    """Return whether the Celery id of an event is no longer used: its task has ended or continues under another id.

    A skipped task never used its id.
    """
    if event.state is State.SKIPPED:
        return False
    return event.state.is_final or (event.state is State.WAITING and event.reason is not Reason.PUBLISH_ERROR)
