"""Accept new tasks: check them, then queue or block them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable

from msgspec.structs import replace

from celeriac.errors import ExecutorEnded, TaskAlreadyQueued
from celeriac.executor.accepted import AcceptedSource, AcceptedTask
from celeriac.executor.explain import Explainer
from celeriac.executor.interfaces import TaskRecord, TaskSource
from celeriac.executor.lifecycle import TaskLifecycle
from celeriac.executor.priority_queue import Entry
from celeriac.executor.traced import with_caller
from celeriac.task.state import State
from celeriac.task.task import Task, TaskKey

PART = 250  # tasks of a source that are queued together; each takes about 10 µs


class Intake:
    """Puts the caller's tasks into the queue. A refused task changes nothing."""

    def __init__(self, *, lifecycle: TaskLifecycle, explainer: Explainer) -> None:
        self._lifecycle, self._explainer = lifecycle, explainer
        self._queue, self._dependencies = lifecycle.queue, lifecycle.dependencies

    def check(self, task: Task, coming: Container[TaskKey]) -> None:
        """Raise `InvalidTask` for a task that cannot be queued after those of `coming`. Any thread may call this."""
        self._lifecycle.check_limits(task)
        self._lifecycle.ledger_writer.check(task)
        if task.needs:
            self._dependencies.check((task,), coming.__contains__)

    def ask_before_sending(self, may_send: Callable[[TaskKey], bool]) -> None:
        """Revoke each waiting task instead of sending it, if `may_send` returns False for its key."""
        self._lifecycle.may_send = may_send

    def queue_task(self, task: Task) -> None:
        """Queue one task. Raise `InvalidTask`, `TaskAlreadyQueued` or `ExecutorEnded`."""
        if task.needs:
            self.queue_tasks((task,))
            return
        self._check_new(task)
        self._enqueue(task, self._lifecycle.wall_clock())

    def queue_tasks(self, tasks: Collection[Task]) -> None:
        """Queue all of the tasks or none. Raise the same errors as `queue_task`."""
        keys: set[TaskKey] = set()
        for task in tasks:
            self._check_new(task)
            if task.key in keys:
                raise TaskAlreadyQueued(task.key)
            keys.add(task.key)
        self._dependencies.check(tasks, self._lifecycle.has)
        arrived = self._lifecycle.wall_clock()
        blocked = [entry for task in tasks if (entry := self._enqueue(task, arrived)) is not None]
        self._lifecycle.release(self._dependencies.block(blocked, self._lifecycle.has))

    def accept_tasks(self, sources: Collection[TaskSource]) -> None:
        """Accept tasks that `queue_part` queues: see `CeleryExecutor.accept_tasks`."""
        lifecycle = self._lifecycle
        if lifecycle.draining:
            raise ExecutorEnded()
        number, arrived = sum(map(len, sources)), lifecycle.wall_clock()
        order, place = self._queue.reserve(number), lifecycle.ledger_writer.reserve_places(number)
        self._dependencies.keeps_all = any(source.has_needs for source in sources)
        for source in sources:
            lifecycle.accepted.add(AcceptedSource(source, arrived, order, place))
        if not lifecycle.ledger_writer.may_forget_new:
            self.queue_named(queues={source.queue for source in sources})

    def queue_part(self) -> None:
        """Queue a part of the accepted tasks, if few tasks are ready."""
        if self._lifecycle.accepted and not self._lifecycle.draining:
            self._queue_accepted(self._lifecycle.accepted.take_needed(PART, self._queue.number_ready))

    def queue_named(self, names: Collection[str] = (), queues: Collection[str] = ()) -> None:
        """Queue the accepted tasks whose keys have these names, and those of these queues, so that each is found."""
        if self._lifecycle.accepted and not self._lifecycle.draining:
            self._queue_accepted(self._lifecycle.accepted.take_named(names, queues))

    def _queue_accepted(self, tasks: Iterable[AcceptedTask]) -> None:
        entries = [self._enqueue(task, arrived, order, place) for task, arrived, order, place in tasks]
        if blocked := [entry for entry in entries if entry is not None]:
            self._lifecycle.release(self._dependencies.block(blocked, self._lifecycle.has))
        if not self._lifecycle.accepted:
            self._dependencies.keeps_all = False

    def reprioritise(self, key: TaskKey, priority: int, *, asked_by: str | None) -> None:
        """Change the priority of a waiting task. Raise `UnknownTask`. With `asked_by`, report an event."""
        lifecycle = self._lifecycle
        place = self._dependencies if key in self._dependencies else self._queue
        before = place.get(key)
        task = place.reprioritise(key, priority)
        lifecycle.ledger_writer.record_state(TaskRecord(task, State.WAITING, lifecycle.wall_clock()), lifecycle.clock())
        lifecycle.may_start_more = True
        if asked_by is not None and before is not None:
            lifecycle.note_priority(replace(before, task=task), before.task.priority, asked_by)

    def _check_new(self, task: Task) -> None:
        if self._lifecycle.draining:
            raise ExecutorEnded()
        self._lifecycle.check_limits(task)
        self._lifecycle.ledger_writer.check(task)
        if self._lifecycle.has(task.key):
            raise TaskAlreadyQueued(task.key)

    def _enqueue(self, task: Task, arrived: float, order: int | None = None, place: int | None = None) -> Entry | None:
        """Queue a task. Return its entry instead if it has dependencies, so that the caller blocks it.

        `order` and `place` are reserved numbers; None for the next ones."""
        if (traces := self._lifecycle.measures.telemetry.traces) is not None:
            task = with_caller(task, traces)
        self._explainer.note_key(task.key)
        self._lifecycle.deadlines.watch(task)
        self._lifecycle.measures.queued(task)
        self._lifecycle.ledger_writer.record_queued(task, arrived, self._lifecycle.clock(), place)
        if task.needs:
            return self._queue.place(task, arrived, order)
        self._queue.push(task, arrived, order)
        self._lifecycle.may_start_more = True
        return None
