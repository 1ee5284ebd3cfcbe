"""A thread that makes the blocking calls of the application, one after another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

from celeriac.surviving_loop import SurvivingLoop

T = TypeVar("T")


class CallThread:
    """Makes calls for an event loop, in a daemon thread: a server that does not answer delays no exit."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = SimpleQueue()
        self._thread = SurvivingLoop("celeriac-top", self._run_round)
        self._thread.start()

    async def call(self, function: Callable[[], T]) -> T:
        """Call a function in the thread. Return what it returns, or raise what it raises."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._calls.put((function, future))
        return await future

    def close(self) -> None:
        """End the thread after the present call."""
        self._calls.put(None)

    def _run_round(self) -> bool:
        call = self._calls.get()
        if call is None:
            return False
        function, future = call
        try:
            result, error = function(), None
        except Exception as raised:  # noqa: BLE001 - raised again where the call is awaited
            result, error = None, raised
        with suppress(RuntimeError):  # the loop has ended, and nothing waits for the result
            future.get_loop().call_soon_threadsafe(settle, future, result, error)
        return True


def settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    """Set the result of a future, unless its screen has gone meanwhile."""
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
