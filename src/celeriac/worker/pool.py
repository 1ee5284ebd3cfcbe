"""The pools of a worker: threads that wait for commands, or processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celeriac.errors import InvalidConfig
from celeriac.shortages import is_shortage
from celeriac.surviving_loop import Survivor
from celeriac.worker.celery_internals import ExceptionInfo, PreforkPool, ThreadPool, apply_target


class CommandPool(ThreadPool):  # type: ignore[misc]
    """Celery's pool of threads. At the end of each task it wakes the event loop, which has to acknowledge the task.

    Whatever a task raises, and whatever is raised while its end is recorded, its slot becomes free.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_flight: set[object] = set()
        self._survivor = Survivor("the pool")
        self.on_task_end: Callable[[], None] = lambda: None

    @property
    def is_busy(self) -> bool:
        """Whether a task runs or waits for a thread."""
        return bool(self._in_flight)

    @property
    def in_flight(self) -> int:
        """The number of tasks that run or wait for a thread."""
        return len(self._in_flight)

    def on_apply(
        self,
        target: Any,
        args: Any = None,
        kwargs: Any = None,
        callback: Any = None,
        accept_callback: Any = None,
        error_callback: Any = None,
        **options: Any,
    ) -> Any:
        token = object()
        self._in_flight.add(token)

        def run() -> None:
            try:
                apply_target(target, args, kwargs, callback, accept_callback)
            except Exception as error:  # noqa: BLE001 - no error may cost a slot
                self._survivor.record(error)
                with self._survivor.guard():
                    error_callback(ExceptionInfo())
            finally:
                self._end(token)

        return super().on_apply(run, (), {}, lambda _: None, **options)

    def _end(self, token: object) -> None:
        self._in_flight.discard(token)
        self.on_task_end()


class ProcessPool(PreforkPool):  # type: ignore[misc]
    """Celery's pool of processes. If it cannot be set up, an error of the settings says why."""

    def on_start(self) -> None:
        """Start the processes. Raises `InvalidConfig` if they can share no memory, and `OSError` for lack of means."""
        try:
            super().on_start()
        except OSError as error:
            if is_shortage(error):
                raise
            problem = f"the processes of the worker cannot share memory: {(error.strerror or str(error)).lower()}"
            remedy = "free the temporary folder, or raise the limit of the size of files: ulimit -f unlimited"
            raise InvalidConfig("pool", problem, remedy) from None
