"""The executor, one heartbeat at a time.

    queue_command ─► PriorityQueue ─► open Slots ─► Publisher ─► broker ─► worker: execute_command
                                                                              │
  get_event_buffer ◄─ EventBuffer ◄─ Tracker ◄─ ResultReader ◄─ result backend ◄┘

    heartbeat()  =  trigger_tasks(open slots)  +  sync()

Everything here is decided in memory, by the caller's thread. What touches the world stands behind the doors of
`celeriac.executor.interfaces`. One thread drives one executor; it is not to be shared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from random import Random
from types import MappingProxyType, TracebackType
from typing import Any, Self

from celeriac.config.executor_config import Config
from celeriac.errors import ExecutorEnded, InvalidTask, InvalidTransition, TaskAlreadyQueued
from celeriac.executor.control_handler import ControlHandler
from celeriac.executor.dispatcher import CAPACITY_POLL_INTERVAL, Dispatcher
from celeriac.executor.explain import Explainer
from celeriac.executor.interfaces import (
    Capacity,
    ControlChannel,
    Ledger,
    LostTaskDetector,
    Publisher,
    ResultReader,
    Revoker,
    TaskRecord,
    UnfinishedTask,
)
from celeriac.executor.lifecycle import TaskLifecycle
from celeriac.executor.lost_task_schedule import LostTaskSchedule
from celeriac.executor.priority_queue import Entry
from celeriac.executor.requests import Explanation
from celeriac.executor.result_handler import ResultHandler
from celeriac.executor.revocation import Revocation
from celeriac.task.event import Event
from celeriac.task.result import Reason
from celeriac.task.state import TRANSITIONS, State
from celeriac.task.task import DEFAULT_QUEUE, Command, Task, TaskKey

SET_BY_CALLERS = {State.QUEUED, State.RUNNING, State.SUCCESS, State.FAILED}
MAX_WAIT = 60.0  # seconds; `wait` returns at least this often
NOTHING_ENDED: Mapping[TaskKey, State] = MappingProxyType({})


class CeleryExecutor:
    def __init__(
        self,
        config: Config,
        *,
        publisher: Publisher,
        results: ResultReader,
        revoker: Revoker,
        capacity: Capacity | None = None,
        lost_task_detector: LostTaskDetector | None = None,
        control_channel: ControlChannel | None = None,
        ledger: Ledger | None = None,
        outbox: bool = True,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        random: Random | None = None,
    ) -> None:
        """With `capacity` tasks are bound late: sent when a live worker can take them, and not before. With
        `whereabouts` a task that was sent and is in no place any more is sent again. With `desk` others may ask things
        of it: they are answered in `sync`. With `ledger` each task and each move is written down, and `recover` goes on
        with what an earlier executor left; `outbox` has each task written down before it is sent, and is False for a
        broker that goes with this process.

        `clock` gives seconds that never run backwards; `wall_clock` seconds since the epoch, for events.
        """
        self.config = config
        self._results, self._ledger = results, ledger
        self._clock, self._wall_clock = clock, wall_clock
        self._watches_workers = capacity is not None
        self._lost_task_schedule = (
            None if lost_task_detector is None else LostTaskSchedule(lost_task_detector, config.search_interval)
        )
        self._lifecycle = TaskLifecycle(config, ledger, clock=clock, wall_clock=wall_clock, random=random or Random())
        self._dispatcher = Dispatcher(
            self._lifecycle,
            config,
            publisher=publisher,
            revoker=revoker,
            capacity=capacity,
            lost_task_schedule=self._lost_task_schedule,
            outbox=outbox,
        )
        self._result_handler = ResultHandler(
            self._lifecycle, config, results=results, lost_task_schedule=self._lost_task_schedule
        )
        self._revocation = Revocation(self._lifecycle, self._result_handler, revoker=revoker)
        self._queue, self._dependencies, self._slots = (
            self._lifecycle.queue,
            self._lifecycle.dependencies,
            self._lifecycle.slots,
        )
        self._tracker, self._ledger_writer = self._lifecycle.tracker, self._lifecycle.ledger_writer
        self._in_flight_states = {State.PUBLISHING, State.QUEUED, State.RUNNING} if outbox else set()
        self._reads_numbers = False
        self._explainer = Explainer(
            queue=self._queue,
            dependencies=self._dependencies,
            slots=self._slots,
            tracker=self._tracker,
            publish_retries=self._lifecycle.publish_retries,
            history=self._lifecycle.history,
            unconfirmed=self._lifecycle.unconfirmed,
            unstarted_cancels=self._lifecycle.unstarted_cancels,
        )
        self._control_handler = (
            None if control_channel is None else ControlHandler(control_channel, self, self._explainer)
        )

    # — what is asked for —

    def queue_command(
        self,
        key: TaskKey,
        command: Command | list[str],
        *,
        priority: int = 0,
        queue: str = DEFAULT_QUEUE,
        **fields: Any,
    ) -> Task:
        """Queue a command: a list of arguments, or a string for the shell. `fields` are those of `Task`.

        Raises `InvalidTask`, `TaskAlreadyQueued` or `ExecutorEnded`; then nothing was queued.
        """
        task = Task(
            key=key,
            command=tuple(command) if isinstance(command, list) else command,
            priority=priority,
            queue=queue,
            **fields,
        )
        self.queue_task(task)
        return task

    def queue_task(self, task: Task) -> None:
        """Queue a task. Those that it needs wait, are out, or are among the last 100,000 that ended. Raises as
        `queue_command` does."""
        if task.needs:
            self.queue_tasks((task,))
            return
        self._check_new(task)
        self._enqueue(task, self._wall_clock())

    def queue_tasks(self, tasks: Collection[Task]) -> None:
        """Queue tasks, in any order of what they need: all of them, or none. Raises as `queue_command` does."""
        keys: set[TaskKey] = set()
        for task in tasks:
            self._check_new(task)
            if task.key in keys:
                raise TaskAlreadyQueued(task.key)
            keys.add(task.key)
        self._dependencies.check(tasks, self._lifecycle.has)
        arrived = self._wall_clock()
        held = [entry for task in tasks if (entry := self._enqueue(task, arrived)) is not None]
        self._lifecycle.release(self._dependencies.block(held, self._lifecycle.has))

    def _check_new(self, task: Task) -> None:
        if self._lifecycle.draining:
            raise ExecutorEnded()
        self._slots.check(task)
        self._ledger_writer.check(task)
        if self._lifecycle.has(task.key):
            raise TaskAlreadyQueued(task.key)

    def _enqueue(self, task: Task, arrived: float) -> Entry | None:
        """Into the queue, or if it needs others only a place in line, for it to be held with."""
        self._explainer.note_key(task.key)
        self._ledger_writer.record_queued(task, arrived, self._clock())
        if task.needs:
            return self._queue.place(task, arrived)
        self._queue.push(task, arrived)
        self._lifecycle.may_start_more = True
        return None

    def recover(self, *, coming: Collection[TaskKey] = (), ended: Mapping[TaskKey, State] = NOTHING_ENDED) -> int:
        """Go on with what earlier executors of this ledger left: what waited waits, and what was out is followed under
        its id; what is in no place any more is sent again. What the result backend knows is applied at once, as
        events. Answers how many tasks there were.

        `coming` are the keys of tasks that the caller queues next: who needs one of them waits for it. `ended` says how
        others ended that may be needed. Any other task that is needed has ended, or who needs it were not there.

        To be called once, before anything is queued. Raises `LedgerAway` or `LedgerBroken`, and `InvalidTask` for one
        that needs more slots than there are; then nothing was taken over.
        """
        found = [] if self._ledger is None else list(self._ledger.unfinished())
        for each in found:
            if each.state not in self._in_flight_states:
                self._slots.check(each.task)
        self.resume(found, coming=coming, ended=ended)
        return len(found)

    def resume(
        self,
        found: Collection[UnfinishedTask],
        *,
        coming: Collection[TaskKey] = (),
        ended: Mapping[TaskKey, State] = NOTHING_ENDED,
    ) -> None:
        """Go on, as `recover` does, with tasks that this ledger has and that it does not yet hold; at any time, and as
        often as there are some. One that waits and needs more slots than there are fails."""
        self._dependencies.load_ended(ended)
        waiting = [each for each in found if each.state not in self._in_flight_states]
        held = [entry for each in waiting if (entry := self._requeue(each)) is not None]
        if out := [each for each in found if each.state in self._in_flight_states]:
            self._adopt(out)
        self._lifecycle.release(self._dependencies.block(held, lambda key: key in coming or self._lifecycle.has(key)))

    def adopt_tasks(self, tasks: Collection[Task], state: State = State.QUEUED) -> None:
        """Follow tasks that another executor sent, under their ids; `state` is QUEUED or RUNNING, as far as is known.

        They take slots, also more than there are. What the result backend knows of them is applied at once, as events;
        what is in no place is sent again, as `Task.on_worker_lost` says. Raises `TaskAlreadyQueued` or
        `ExecutorEnded`; then none was adopted.
        """
        if self._lifecycle.draining:
            raise ExecutorEnded()
        for task in tasks:
            self._ledger_writer.check(task)
            if self._lifecycle.has(task.key):
                raise TaskAlreadyQueued(task.key)
        arrived = self._wall_clock()
        for task in tasks:
            self._ledger_writer.record_queued(task, arrived, self._clock())
            self._ledger_writer.record_state(TaskRecord(task, state, arrived), self._clock())
        self._adopt([UnfinishedTask(task, state, arrived) for task in tasks])

    def reprioritise(self, key: TaskKey, priority: int) -> None:
        """Change the priority of a waiting task. Raises `UnknownTask` if it does not wait."""
        task = (self._dependencies if key in self._dependencies else self._queue).reprioritise(key, priority)
        self._ledger_writer.record_state(TaskRecord(task, State.WAITING, self._wall_clock()), self._clock())
        self._lifecycle.may_start_more = True

    def has_task(self, key: TaskKey) -> bool:
        """Whether a task of this key is waiting or out."""
        return self._lifecycle.has(key)

    def revoke_task(self, key: TaskKey) -> None:
        """Call a task back. A waiting one ends at once; of one that is out, REVOKED comes when its worker says so.

        Raises `UnknownTask`.
        """
        if self._lifecycle.is_waiting(key):
            self._lifecycle.end_waiting(
                self._lifecycle.take_waiting(key), State.REVOKED, Reason.REVOKED, "revoked while it waited"
            )
            return
        self._revocation.revoke([self._lifecycle.get_in_flight(key)])

    def revoke_queue(self, queue: str) -> list[TaskKey]:
        """Call back all tasks of a queue, as `revoke_task` does. Answers their keys."""
        out = [tracked for tracked in self._tracker if tracked.task.queue == queue]
        waiting = self._lifecycle.end_all_waiting("revoked while it waited", queue)
        self._revocation.revoke(out)
        return waiting + [tracked.task.key for tracked in out]

    def revoke_tasks(self, keys: Iterable[TaskKey]) -> list[TaskKey]:
        """Call tasks back, as `revoke_task` does, all of them together. Answers the keys of those there were, first of
        those that waited."""
        waiting, out = [], []
        for key in keys:
            if self._lifecycle.is_waiting(key):
                waiting.append(self._lifecycle.take_waiting(key))
            elif (tracked := self._tracker.get(key)) is not None:
                out.append(tracked)
        for entry in waiting:
            self._lifecycle.end_waiting(entry, State.REVOKED, Reason.REVOKED, "revoked while it waited")
        self._revocation.revoke(out)
        return [entry.task.key for entry in waiting] + [tracked.task.key for tracked in out]

    def tasks(self) -> Iterator[Task]:
        """Every task that waits or is out. Not to be kept while anything is queued, revoked or moves."""
        yield from self._queue.tasks()
        yield from self._dependencies.tasks()
        yield from (tracked.task for tracked in self._tracker)

    # — the heartbeat —

    def heartbeat(self) -> None:
        self.trigger_tasks(self.slots_available)
        self.sync()

    def trigger_tasks(self, open_slots: int) -> None:
        """Hand the most urgent waiting tasks to the publisher: as many as fit in `open_slots`."""
        self._dispatcher.trigger_tasks(open_slots, self._clock())

    def sync(self) -> None:
        """Apply what has moved since the last look. One bad result never stops the others."""
        now = self._clock()
        self._result_handler.update_all_task_states(now)
        self._revocation.end_unserved(now)
        if self._control_handler is not None:
            self._control_handler.handle_requests(now)
        if self._ledger_writer.write_if_due(now):
            self._result_handler.delete_recorded_results()

    def wait(self, timeout: float) -> None:
        """Return when a heartbeat may have something to do, or after `timeout` seconds."""
        now = self._clock()
        moments = [now + min(timeout, MAX_WAIT)]
        if (next_look := self._tracker.next_look()) is not None:
            moments.append(next_look)
        if (next_send := self._dispatcher.next_send(now)) is not None:
            moments.append(next_send)
        if self._lost_task_schedule is not None and self._tracker:
            moments.append(self._lost_task_schedule.due)
        if self._watches_workers and self._lifecycle.unstarted_cancels:
            moments.append(now + CAPACITY_POLL_INTERVAL)
        if self._control_handler is not None and (answer_due := self._control_handler.due) is not None:
            moments.append(answer_due)
        if (write_due := self._ledger_writer.due) is not None:
            moments.append(write_due)
        self._results.wait(max(0.0, min(moments) - now))

    # — what the caller sees —

    def get_event_buffer(self, keys: Collection[TaskKey] | None = None) -> list[Event]:
        """Take the events since the last call, oldest first: all, or those of the given keys.

        The stored results behind them may then be deleted: see `Config.delete_results`.
        """
        events = self._lifecycle.event_buffer.drain(keys)
        if self.config.delete_results and (ended := [event.id for event in events if ends_attempt(event)]):
            self._result_handler.delete_results(ended)
        return events

    def read_events(self) -> list[Event]:
        """Take the events since the last call, as `get_event_buffer` does, once the ledger has them: with a number that
        they keep. The first call begins with the final events that nobody has acknowledged, of earlier executors too.

        While the ledger is away there are none. Without a ledger the numbers are 0, and nothing comes again.
        """
        if not self.flush():
            return []
        events = self.get_event_buffer()
        if not self._reads_numbers:
            self._reads_numbers = True
            new = {event.number for event in events}
            events = [*(event for event in self._ledger_writer.unacknowledged() if event.number not in new), *events]
        return events

    def acknowledge(self, number: int) -> bool:
        """All events up to that number are dealt with, and will not come again. Answers whether that is written down
        already; if not, it will be with what is written next."""
        self._ledger_writer.acknowledge(number, self._clock())
        return self.flush()

    def flush(self) -> bool:
        """Have all that has happened in the ledger now, and not 0.2 s later. Answers whether it is there: not
        while the ledger is away."""
        return self._ledger_writer.flush(self._clock())

    def explain(self, key: TaskKey) -> Explanation:
        """The life of a task: its moves, and what it waits for now. Known of all that wait or are out, and of the last
        10,000 that ended. Raises `UnknownTask`."""
        return self._explainer.explain(key, self._clock(), draining=self._lifecycle.draining or self._dispatcher.paused)

    @property
    def slots_available(self) -> int:
        return self._slots.open

    @property
    def slots_occupied(self) -> int:
        return self._slots.in_use

    @property
    def draining(self) -> bool:
        """Whether nothing more will be started."""
        return self._lifecycle.draining

    @property
    def tasks_waiting(self) -> int:
        return len(self._queue) + len(self._dependencies)

    @property
    def queues_without_workers(self) -> frozenset[str]:
        """The queues whose tasks wait because no live worker takes them. Known with late binding only."""
        return frozenset(self._dispatcher.queues_without_workers)

    @property
    def tasks_in_flight(self) -> int:
        return len(self._tracker)

    @property
    def tasks_running(self) -> int:
        """Of those that are out, how many a worker has started, as far as is known."""
        return sum(tracked.state is State.RUNNING for tracked in self._tracker)

    @property
    def results_ignored(self) -> int:
        """How many results came of attempts that had been given up as lost."""
        return self._result_handler.results_ignored

    @property
    def task_publish_retries(self) -> Mapping[TaskKey, int]:
        """Failed tries at sending, of the tasks that are not yet sent."""
        return self._lifecycle.publish_retries.counts

    # — what the caller says —

    def change_state(self, key: TaskKey, state: State, detail: str | None = None) -> None:
        """Say what became of a task. Its worker is not told: to stop it, use `revoke_task`.

        Raises `UnknownTask`, or `ImpossibleMove` for a state that cannot follow the task's own.
        """
        now = State.WAITING if self._lifecycle.is_waiting(key) else self._lifecycle.get_in_flight(key).state
        if state not in SET_BY_CALLERS or state not in TRANSITIONS[now]:
            raise InvalidTransition(key, now, state, tuple(TRANSITIONS[now]))
        if now is State.WAITING:
            self._lifecycle.end_waiting(self._lifecycle.take_waiting(key), state, Reason.CALLER, detail)
        else:
            self._lifecycle.change_state(self._lifecycle.get_in_flight(key), state, Reason.CALLER, detail)

    def success(self, key: TaskKey, detail: str | None = None) -> None:
        self.change_state(key, State.SUCCESS, detail)

    def fail(self, key: TaskKey, detail: str | None = None) -> None:
        """No retry follows: who fails a task by hand has decided."""
        self.change_state(key, State.FAILED, detail)

    # — the end —

    def drain(self) -> None:
        """Start nothing more, and take nothing more. What is out goes on; what failed is not tried again."""
        self._lifecycle.draining = True

    def pause(self) -> None:
        """Send nothing more, and leave what waits to whoever goes on with the ledger. What is out is followed still;
        what fails and may be tried again waits for its next attempt."""
        self._dispatcher.paused = True

    def end(self, timeout: float | None = None) -> bool:
        """Start nothing more, wait for what is out, then revoke what never ran.

        Answers whether all had ended after `timeout` seconds, and is in the ledger; None waits without limit, but not
        for a ledger that is away.
        """
        self.drain()
        until = None if timeout is None else self._clock() + timeout
        self.sync()
        while self._tracker and (until is None or self._clock() < until):
            self.wait(MAX_WAIT if until is None else until - self._clock())
            self.heartbeat()
        self._lifecycle.end_all_waiting("never ran: the executor ended")
        return self.flush() and not self._tracker

    def cancel_unstarted(self) -> None:
        """Call back what was sent and has not started, as far as is known; what has started goes on.

        REVOKED comes when it is certain that such a task does not start: at once where workers claim what they start,
        else when a worker drops its message. Where nobody claims, and with late binding, it also comes when no live
        worker serves the queue: then the message stays with the broker, and a worker that starts later runs it.
        """
        self._revocation.cancel_unstarted()

    def terminate(self) -> None:
        """Revoke everything, waiting or out. Does not wait: `end` does. What `withdraw` says of queues without workers
        holds here too.
        """
        self.drain()
        self._lifecycle.end_all_waiting("never ran: the executor ended")
        self._revocation.terminate()

    def abandon(self) -> None:
        """Give up what is out: each task ends as lost, whatever becomes of it."""
        for tracked in self._tracker:
            self._lifecycle.change_state(tracked, State.FAILED, Reason.LOST, "given up while it was out")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self.end()
        else:
            self.terminate()
            self.end(timeout=MAX_WAIT)

    def debug_dump(self) -> str:
        """What waits and what is out, for a person: keys, ids and states, no commands and no values."""
        lines = [
            f"slots: {self._slots.in_use} in use of {self._slots.parallelism}",
            f"waiting: {self.tasks_waiting}, of which for others to end: {len(self._dependencies)}",
            f"out: {len(self._tracker)}, of which unsure: {len(self._lifecycle.unconfirmed)}",
            f"results of lost attempts ignored: {self._result_handler.results_ignored}",
        ]
        lines += [
            f"  {tracked.task.key!r} {tracked.state.value} id={tracked.task.message_id} queue={tracked.task.queue!r}"
            f" attempt={tracked.task.attempt}" + (" revoking" if tracked.revoking else "")
            for tracked in self._tracker
        ]
        lines += [
            f"  {key!r} tried to send {tries} times" for key, tries in self._lifecycle.publish_retries.counts.items()
        ]
        return "\n".join(lines)

    # — what others left —

    def _requeue(self, found: UnfinishedTask) -> Entry | None:
        """Answers its place in line if it needs others, for it to be held with."""
        self._explainer.note_key(found.task.key)
        entry = self._queue.place(found.task, found.arrived)
        if found.revoking:
            self._lifecycle.end_waiting(entry, State.REVOKED, Reason.REVOKED, "revoked before its executor went")
            return None
        try:
            self._slots.check(found.task)
        except InvalidTask as wrong:
            self._lifecycle.end_waiting(entry, State.FAILED, Reason.NOT_STARTED, f"it can never start here: {wrong}")
            return None
        if found.task.needs and found.task.attempt == 1:  # a later one follows one that had what it needed
            return entry
        delay = 0.0 if found.not_before is None else found.not_before - self._wall_clock()
        self._queue.push_back(entry, not_before=self._clock() + delay if delay > 0 else None)
        self._lifecycle.may_start_more = True
        return None

    def _adopt(self, found: Collection[UnfinishedTask]) -> None:
        """Follow what is out, in more slots than there are if need be."""
        now = self._clock()
        revoking = []
        for each in found:
            self._slots.take(each.task)
            self._explainer.note_key(each.task.key)
            tracked = self._lifecycle.track(self._queue.place(each.task, each.arrived), now)
            tracked.moved_at = now
            if each.state is not State.PUBLISHING:
                tracked.state = each.state
            elif self._lost_task_schedule is not None:
                tracked.state = State.QUEUED  # if it is not, it will be found in no place
            else:
                self._lifecycle.mark_unconfirmed(tracked, resend_at=now)
            if each.revoking:
                revoking.append(tracked)
        self._result_handler.read_results([each.task.message_id for each in found], now)
        self._revocation.revoke([tracked for tracked in revoking if self._tracker.get(tracked.task.key) is tracked])
        if self._lost_task_schedule is not None:
            self._lost_task_schedule.scan_now(now)


def ends_attempt(event: Event) -> bool:
    """Whether its id is done with: the task has ended, or goes on under another one. What is skipped never used it."""
    if event.state is State.SKIPPED:
        return False
    return event.state.is_final or (event.state is State.WAITING and event.reason is not Reason.PUBLISH_ERROR)
