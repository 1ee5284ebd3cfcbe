"""The threads that commands run in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from celery.concurrency.thread import TaskPool as ThreadPool

Waker: TypeAlias = Callable[[], None]


class CommandPool(ThreadPool):  # type: ignore[misc]
    """Celery's threads; with each end of a task the event loop is woken, for its acknowledgement waits there."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.out: set[object] = set()
        self.wake: Waker = lambda: None

    def on_apply(self, target: Any, args: Any = None, kwargs: Any = None, callback: Any = None, **options: Any) -> Any:
        token = object()
        self.out.add(token)

        def run(*args: Any, **kwargs: Any) -> Any:
            try:
                return target(*args, **kwargs)
            except BaseException:  # then `on_end` is not called
                self._ended(token)
                raise

        def on_end(*args: Any, **kwargs: Any) -> None:
            try:
                callback(*args, **kwargs)
            finally:
                self._ended(token)

        return super().on_apply(run, args, kwargs, on_end, **options)

    def _ended(self, token: object) -> None:
        self.out.discard(token)
        self.wake()
