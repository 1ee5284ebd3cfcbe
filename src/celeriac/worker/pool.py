"""The pool of threads that wait for commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celeriac.worker.celery_internals import ThreadPool


class CommandPool(ThreadPool):  # type: ignore[misc]
    """Celery's pool of threads. At the end of each task it wakes the event loop, which has to acknowledge the task."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_flight: set[object] = set()
        self.on_task_end: Callable[[], None] = lambda: None

    @property
    def is_busy(self) -> bool:
        """Whether a task runs or waits for a thread."""
        return bool(self._in_flight)

    def on_apply(self, target: Any, args: Any = None, kwargs: Any = None, callback: Any = None, **options: Any) -> Any:
        token = object()
        self._in_flight.add(token)

        def run(*args: Any, **kwargs: Any) -> Any:
            try:
                return target(*args, **kwargs)
            except BaseException:  # then `on_end` is not called
                self._end(token)
                raise

        def on_end(*args: Any, **kwargs: Any) -> None:
            try:
                callback(*args, **kwargs)
            finally:
                self._end(token)

        return super().on_apply(run, args, kwargs, on_end, **options)

    def _end(self, token: object) -> None:
        self._in_flight.discard(token)
        self.on_task_end()
