"""Call a client library that may block for ever, and stop waiting at a deadline.

No client library keeps its timeout in every case: a frozen PostgreSQL or a frozen Sentinel can hold a call for ever. So
a separate thread makes the call, and the caller can stop waiting for it. A late reply is kept until it is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar, cast

from celeriac.surviving_loop import SurvivingLoop

T = TypeVar("T")


class DeadlineThread(Generic[T]):
    """Makes one call at a time, in a daemon thread that starts with the first call. For use by one thread."""

    def __init__(self, name: str) -> None:
        """`name` is the thread's, as it appears in a stack dump."""
        self._name = name
        self._calls: SimpleQueue[Callable[[], T] | None] = SimpleQueue()
        self._replies: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()
        self._thread: SurvivingLoop | None = None
        self.is_busy = False
        """Whether a call was begun and its reply was not taken."""

    def call(self, function: Callable[[], T], timeout: float) -> T:
        """Call a function and return what it returns, or raise what it raises.

        Raise `TimeoutError` after `timeout` seconds, and at once while an earlier call is still under way. The late
        reply of an earlier call is discarded.
        """
        if self.is_busy:
            self._take(0.0)
        self.begin(function)
        return self.reply(timeout)

    def begin(self, function: Callable[[], T]) -> None:
        """Begin a call. The reply of the previous call must have been taken."""
        if self.is_busy:
            raise RuntimeError("an earlier call is still under way")
        if self._thread is None:
            self._thread = SurvivingLoop(self._name, self._run_round)
            self._thread.start()
        self.is_busy = True
        self._calls.put(function)

    def reply(self, timeout: float) -> T:
        """Return what the function returned, or raise what it raised. Raise `TimeoutError` after `timeout` seconds;
        then the reply can still be taken later."""
        result, error = self._take(timeout)
        if error is not None:
            raise error
        return cast("T", result)

    def close(self) -> None:
        """End the thread. Wait for its end unless a call is under way."""
        if self._thread is not None:
            self._calls.put(None)
            if not self.is_busy:
                self._thread.join()

    def _take(self, timeout: float) -> tuple[T | None, BaseException | None]:
        try:
            reply = self._replies.get(timeout=timeout) if timeout > 0 else self._replies.get_nowait()
        except Empty:
            raise TimeoutError from None
        self.is_busy = False
        return reply

    def _run_round(self) -> bool:
        function = self._calls.get()
        if function is None:
            return False
        try:
            self._replies.put((function(), None))
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that takes the reply
            self._replies.put((None, error))
        return True
