"""Submit commands, and get futures of the standard library."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future
from types import TracebackType
from typing import TYPE_CHECKING, Any
from weakref import finalize

from celeriac.cluster.local import LocalCluster
from celeriac.config.executor_config import Config
from celeriac.errors import InvalidConfig, InvalidTask
from celeriac.executor.interfaces import Ledger
from celeriac.futures import process_end
from celeriac.futures.driver import Driver
from celeriac.futures.future import TaskFuture
from celeriac.task.result import Result
from celeriac.task.task import Command, Task, TaskKey, new_task_id

if TYPE_CHECKING:
    from celeriac.cluster.cluster import Cluster


class FutureExecutor(Executor):
    """A `concurrent.futures.Executor` for commands. Threads may share it; each process needs its own.

    Use it as a context manager, or call `shutdown`. Without either, the interpreter exits when all tasks have ended.
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
        """Run commands on this machine, as a `LocalCluster` with these settings does; or on a given cluster.

        The cluster serves this executor alone, and has its own settings. The caller closes it, after `shutdown`.
        With `ledger`, the tasks that an earlier executor left in it are taken over: see `recovered`. Raise
        `InvalidConfig`, and for a ledger the errors of `CeleryExecutor.recover`.
        """
        local = None
        if cluster is None:
            cluster = local = LocalCluster(parallelism, queue_limits, config=config)
        elif parallelism is not None or queue_limits is not None or config is not None:
            name = "config" if config is not None else "parallelism" if parallelism is not None else "queue_limits"
            raise InvalidConfig(name, "the cluster has its own", "give it to the cluster")
        try:
            executor = cluster.executor(ledger=ledger)
            self._driver = Driver(
                executor,
                wake=cluster.wake,
                close=None if local is None else local.close,
                forget=None if local is None else local.forget,
            )
            if ledger is not None:
                executor.recover()
            self.recovered: Mapping[TaskKey, TaskFuture] = self._driver.adopt()
            """The futures of the tasks that were taken over, by key. `revoke` ends them; `cancel` does not."""

            self._driver.start()
        except BaseException:
            if local is not None:
                local.close()
            raise
        process_end.register(self._driver)
        finalize(self, self._driver.abandon).atexit = False

    def submit(  # type: ignore[override] # a command in place of a function
        self,
        command: Command | list[str],
        /,
        *arguments: str,
        key: TaskKey = None,
        needs: Iterable[TaskKey | TaskFuture] = (),
        **fields: Any,
    ) -> TaskFuture:
        """Submit a command: a list of arguments, to which `arguments` are added; or a string for the shell.

        `fields` are those of `Task`. Without a `key`, the task has its Celery id as the key. `needs` are keys or
        futures. Raise `InvalidTask` or `TaskAlreadyQueued` for a task that cannot be queued, `RuntimeError` after
        `shutdown`, and `BrokenExecutor` when the executor has failed.
        """
        fields.setdefault("id", new_task_id())
        if needs:
            fields["needs"] = tuple(need.key if isinstance(need, TaskFuture) else need for need in needs)
        key = fields["id"] if key is None else key
        return self._driver.submit(Task(key=key, command=complete(command, arguments), **fields))

    def submit_task(self, task: Task) -> TaskFuture:
        """Submit a task that was made before, as by `celeriac.make_tasks`. Raise as `submit` does."""
        return self._driver.submit(task)

    def map(  # type: ignore[override] # a command in place of a function
        self,
        command: list[str],
        *iterables: Iterable[str],
        timeout: float | None = None,
        chunksize: int = 1,
        **fields: Any,
    ) -> Iterator[Result]:
        """Run the command once with each set of further arguments. Yield the results in order.

        All tasks are submitted at once. `timeout` is in seconds from this call until the last result; `fields` are
        those of each `Task`. Raise `TimeoutError`; the tasks that were not sent yet are then cancelled.
        """
        return Submitter(self, fields).map(command, *iterables, timeout=timeout, chunksize=chunksize)  # type: ignore[arg-type]

    def terminate(self) -> None:
        """Accept no more tasks, cancel those that were not sent, and revoke the others. `shutdown` waits for the ends.

        A task that has not ended 60 s later, as its worker does not answer, is given up as lost.
        """
        self._driver.terminate()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more tasks. With `cancel_futures`, cancel those that were not sent. Wait until all have ended."""
        self._driver.shut_down(cancel_futures=cancel_futures)
        if wait:
            self._driver.join()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> bool | None:
        """Wait until all tasks have ended. After Ctrl-C, end them."""
        try:
            if kind is not None and issubclass(kind, KeyboardInterrupt):
                self.terminate()
            self.shutdown()
        except KeyboardInterrupt:
            self.terminate()
            self.shutdown()
            raise
        return None


class Submitter(Executor):
    """Submits commands with the same fields: `Executor.map` passes none."""

    def __init__(self, executor: FutureExecutor, fields: Mapping[str, Any]) -> None:
        self._executor, self._fields = executor, fields

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Submit a command, which takes the place of the function."""
        return self._executor.submit(fn, *args, **self._fields)  # type: ignore[arg-type]


def complete(command: Command | list[str], arguments: tuple[str, ...]) -> Command:
    """Return a command with further arguments. Raise `InvalidTask` for a string: the shell would ignore them."""
    if arguments and isinstance(command, str):
        raise InvalidTask(
            "command", "a string for the shell takes no further arguments", 'write a list: ["gzip", "-k"]'
        )
    if isinstance(command, list | tuple):
        return (*command, *arguments)
    return command
