"""Submit commands from an event loop, and iterate over events."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from celeriac.futures.executor import FutureExecutor
from celeriac.futures.future import TaskFuture
from celeriac.task.event import Event
from celeriac.task.result import Result
from celeriac.task.task import Command, TaskKey

if TYPE_CHECKING:
    from celeriac.cluster.cluster import Cluster
    from celeriac.cluster.local import LocalCluster
    from celeriac.config.executor_config import Config
    from celeriac.executor.interfaces import Ledger


class AsyncExecutor:
    """A `FutureExecutor` for one event loop. Use it as an asynchronous context manager, or call `shutdown`.

    At the end of the block, all tasks are awaited. If an exception ends the block, they are ended, as in a
    `asyncio.TaskGroup`.
    """

    def __init__(
        self,
        parallelism: int | None = None,
        queue_limits: Mapping[str, int] | None = None,
        *,
        cluster: Cluster | LocalCluster | None = None,
        config: Config | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        """Start an executor: see `FutureExecutor`."""
        self.futures = FutureExecutor(parallelism, queue_limits, cluster=cluster, config=config, ledger=ledger)
        """The executor below this one. Other threads may use it."""

        self._driver = self.futures._driver

    def submit(
        self,
        command: Command | list[str],
        /,
        *arguments: str,
        key: TaskKey = None,
        needs: Iterable[TaskKey | TaskFuture] = (),
        **fields: Any,
    ) -> asyncio.Future[Result]:
        """Submit a command, as `FutureExecutor.submit` does. The event loop must be running.

        If the future is cancelled, as by `asyncio.timeout`, its task is revoked, even if it runs.
        """
        future = self.futures.submit(command, *arguments, key=key, needs=needs, **fields)
        awaitable = asyncio.wrap_future(future)

        def revoke(ended: asyncio.Future[Result]) -> None:
            if ended.cancelled():
                future.revoke()

        awaitable.add_done_callback(revoke)
        return awaitable

    def events(self) -> AsyncIterator[Event]:
        """Return an iterator over all events from now on, which ends after `shutdown`, with the last task.

        It keeps the events that were not read yet, so read them, or drop the iterator.
        """
        stream = EventStream(asyncio.get_running_loop())
        self._driver.listen(stream)
        return stream

    def terminate(self) -> None:
        """End all tasks: see `FutureExecutor.terminate`. `shutdown` waits for the ends."""
        self.futures.terminate()

    async def shutdown(self, *, cancel_futures: bool = False) -> None:
        """Accept no more tasks. With `cancel_futures`, cancel those that were not sent. Wait until all have ended."""
        self.futures.shutdown(wait=False, cancel_futures=cancel_futures)
        await asyncio.wrap_future(self._driver.has_ended)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if kind is not None:
            self.terminate()
        try:
            await self.shutdown()
        except asyncio.CancelledError:
            self.terminate()
            await self.shutdown()
            raise


class EventStream:
    """The events of one reader."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._batches: asyncio.Queue[Sequence[Event] | None] = asyncio.Queue()
        self._events: deque[Event] = deque()
        self._has_ended = False

    def put(self, events: Sequence[Event] | None) -> None:
        """Take events from another thread. None says that no more follow."""
        with suppress(RuntimeError):  # the event loop is closed: no one reads
            self._loop.call_soon_threadsafe(self._batches.put_nowait, events)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            batch = None if self._has_ended else await self._batches.get()
            if batch is None:
                self._has_ended = True
                raise StopAsyncIteration
            self._events.extend(batch)
        return self._events.popleft()
