"""Run commands as futures of the standard library, and with asyncio.

    submit ─► inbox ─► Driver, a thread: heartbeat ─► CeleryExecutor
    TaskFuture ◄─ Result ◄─ final event ◄─────────────┘

    executor         `FutureExecutor`, a `concurrent.futures.Executor`
    async_executor   `AsyncExecutor`: the same for an event loop
    driver           the thread that owns the `CeleryExecutor`
    future           `TaskFuture`: the future of one task
    process_end      the exit of the interpreter, and forks

The caller's threads only put requests into the inbox and wake the driver. All decisions about tasks are made in the
driver's thread. The folder may import `cluster` and what that may import.
"""

from celeriac.futures.async_executor import AsyncExecutor
from celeriac.futures.executor import FutureExecutor
from celeriac.futures.future import TaskFuture

__all__ = ["AsyncExecutor", "FutureExecutor", "TaskFuture"]
