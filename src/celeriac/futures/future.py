"""The future of one task."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

from celeriac.task.result import Result
from celeriac.task.task import TaskKey


class TaskFuture(Future[Result]):
    """A `concurrent.futures.Future` whose result is the `Result` of a task, also if the task failed."""

    def __init__(self, key: TaskKey, revoke: Callable[[TaskFuture], None]) -> None:
        super().__init__()
        self.key = key
        """The key of the task."""

        self._revoke = revoke
        self._may_run: bool | None = None
        """Whether the task was not cancelled before it was sent. None if that is not decided."""

    def cancel(self) -> bool:
        """Cancel the task if it was not sent yet: it never starts. Otherwise return False, and change nothing."""
        if not super().cancel():
            return False
        self._revoke(self)
        return True

    def revoke(self) -> None:
        """Cancel the task, or end it if it was sent already: its command gets TERM, and KILL after the grace period.

        The result then has the state REVOKED, unless the task ended first.
        """
        if not self.cancel():
            self._revoke(self)

    # — for the driver alone —

    def start(self) -> bool:
        """Note that the task is about to be sent, or has ended. Return False if it was cancelled before that."""
        if self._may_run is None:
            try:
                self._may_run = self.set_running_or_notify_cancel()
            except InvalidStateError:  # the caller has ended the future
                self._may_run = False
        return self._may_run

    def resolve(self, end: Result | Exception) -> None:
        """End the future with a result or an exception, unless it was cancelled."""
        if not self.start():
            return
        with suppress(InvalidStateError):  # the caller has ended it
            if isinstance(end, Exception):
                self.set_exception(end)
            else:
                self.set_result(end)
