"""The executor, one heartbeat at a time.

    queue_command ─► PriorityQueue ─► open Slots ─► Publisher ─► broker ─► worker: execute_command
                                                                              │
  get_event_buffer ◄─ EventBuffer ◄─ Tracker ◄─ ResultReader ◄─ result backend ◄┘

    heartbeat()  =  trigger_tasks(open slots)  +  sync()

Everything here is decided in memory, by the caller's thread. What touches the world stands behind the doors of
`celeriac.interfaces`. One thread drives one executor; it is not to be shared.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from random import Random
from types import MappingProxyType, TracebackType
from typing import Any, Self, assert_never

from celeriac.backoff import backoff
from celeriac.bookkeeping import Books
from celeriac.config import Config
from celeriac.errors import ExecutorEnded, ImpossibleMove, InvalidTask, TaskAlreadyQueued, UnknownTask
from celeriac.event_buffer import Event, EventBuffer
from celeriac.explaining import Explainer
from celeriac.history import History
from celeriac.interfaces import (
    Capacity,
    Desk,
    Ledger,
    Missing,
    NotSent,
    Publisher,
    Receipt,
    Remembered,
    ResultReader,
    Revoker,
    Sent,
    Standing,
    Unreadable,
    Unsure,
    Whereabouts,
)
from celeriac.needs import Freed, Needs
from celeriac.orders import Explanation
from celeriac.priority_queue import Entry, PriorityQueue
from celeriac.publish_retries import PublishRetries
from celeriac.result import Execution, Reason, Result
from celeriac.searches import Searches
from celeriac.serving import Serving
from celeriac.slots import Slots
from celeriac.state import MOVES, State
from celeriac.task import DEFAULT_QUEUE, Command, OnWorkerLost, Task, TaskKey
from celeriac.tracker import Tracked, Tracker

logger = logging.getLogger(__name__)

REPORTED_BY_WORKERS = {State.QUEUED, State.RUNNING, State.SUCCESS, State.FAILED, State.REVOKED}
SET_BY_CALLERS = {State.QUEUED, State.RUNNING, State.SUCCESS, State.FAILED}
CAPACITY_LOOK = 0.5  # seconds until a worker that came or went is noticed, while tasks wait
MOST_FENCED = 10_000  # lost attempts whose results are still told apart
SOME_KEYS = 5  # that one line of the log names
LONGEST_PAUSE = 60.0  # seconds; `wait` returns at least this often
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
        whereabouts: Whereabouts | None = None,
        desk: Desk | None = None,
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
        self._publisher = publisher
        self._results = results
        self._revoker = revoker
        self._capacity = capacity
        self._searches = None if whereabouts is None else Searches(whereabouts, config.search_interval)
        self._clock = clock
        self._wall_clock = wall_clock
        self._random = random or Random()
        self._queue = PriorityQueue()
        self._needs = Needs()
        self._slots = Slots(config.parallelism, config.queue_limits)
        self._tracker = Tracker(config, self._random)
        self._publishing = PublishRetries(config, self._random)
        self._unsure: dict[TaskKey, Tracked] = {}
        self._withdrawn: dict[TaskKey, Tracked] = {}
        self._missing: dict[str, Missing] = {}
        """By id: not dealt with, because the result backend did not answer."""

        self._fenced: dict[str, None] = {}
        """Ids of lost attempts, the latest last: what comes of these after all is not wanted."""

        self.results_ignored = 0
        """How many results came of attempts that had been given up as lost."""

        self._events = EventBuffer()
        self._unserved: set[str] = set()
        self._books = Books(ledger, self._random, on_lost=self._disown)
        self._ledger, self._outbox = ledger, outbox
        self._is_out = {State.PUBLISHING, State.QUEUED, State.RUNNING} if outbox else set()
        self._forgettable: list[str] = []
        """Ids whose results may be deleted once the ledger has what became of them."""

        self._reads_numbers = False
        self._history = History()
        self._explainer = Explainer(
            queue=self._queue,
            needs=self._needs,
            slots=self._slots,
            tracker=self._tracker,
            publishing=self._publishing,
            history=self._history,
            unsure=self._unsure,
            withdrawn=self._withdrawn,
        )
        self._serving = None if desk is None else Serving(desk, self, self._explainer)
        self._draining = self._held = False
        self._room_was_made = False
        self._pushed = False

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
        self._arrives(task, self._wall_clock())

    def queue_tasks(self, tasks: Collection[Task]) -> None:
        """Queue tasks, in any order of what they need: all of them, or none. Raises as `queue_command` does."""
        keys: set[TaskKey] = set()
        for task in tasks:
            self._check_new(task)
            if task.key in keys:
                raise TaskAlreadyQueued(task.key)
            keys.add(task.key)
        self._needs.check(tasks, self.has_task)
        arrived = self._wall_clock()
        held = [entry for task in tasks if (entry := self._arrives(task, arrived)) is not None]
        self._let_go(self._needs.hold(held, self.has_task))

    def _check_new(self, task: Task) -> None:
        if self._draining:
            raise ExecutorEnded()
        self._slots.check(task)
        self._books.check(task)
        if self.has_task(task.key):
            raise TaskAlreadyQueued(task.key)

    def _arrives(self, task: Task, arrived: float) -> Entry | None:
        """Into the queue, or if it needs others only a place in line, for it to be held with."""
        self._explainer.saw(task.key)
        self._books.queued(task, arrived, self._clock())
        if task.needs:
            return self._queue.place(task, arrived)
        self._queue.push(task, arrived)
        self._room_was_made = True
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
            if each.state not in self._is_out:
                self._slots.check(each.task)
        self.go_on_with(found, coming=coming, ended=ended)
        return len(found)

    def go_on_with(
        self,
        found: Collection[Remembered],
        *,
        coming: Collection[TaskKey] = (),
        ended: Mapping[TaskKey, State] = NOTHING_ENDED,
    ) -> None:
        """Go on, as `recover` does, with tasks that this ledger has and that it does not yet hold; at any time, and as
        often as there are some. One that waits and needs more slots than there are fails."""
        self._needs.recall(ended)
        waiting = [each for each in found if each.state not in self._is_out]
        held = [entry for each in waiting if (entry := self._wait_again(each)) is not None]
        if out := [each for each in found if each.state in self._is_out]:
            self._take_over(out)
        self._let_go(self._needs.hold(held, lambda key: key in coming or self.has_task(key)))

    def adopt_tasks(self, tasks: Collection[Task], state: State = State.QUEUED) -> None:
        """Follow tasks that another executor sent, under their ids; `state` is QUEUED or RUNNING, as far as is known.

        They take slots, also more than there are. What the result backend knows of them is applied at once, as events;
        what is in no place is sent again, as `Task.on_worker_lost` says. Raises `TaskAlreadyQueued` or
        `ExecutorEnded`; then none was adopted.
        """
        if self._draining:
            raise ExecutorEnded()
        for task in tasks:
            self._books.check(task)
            if self.has_task(task.key):
                raise TaskAlreadyQueued(task.key)
        arrived = self._wall_clock()
        for task in tasks:
            self._books.queued(task, arrived, self._clock())
            self._books.stands(Standing(task, state, arrived), self._clock())
        self._take_over([Remembered(task, state, arrived) for task in tasks])

    def reprioritise(self, key: TaskKey, priority: int) -> None:
        """Change the priority of a waiting task. Raises `UnknownTask` if it does not wait."""
        task = (self._needs if key in self._needs else self._queue).reprioritise(key, priority)
        self._books.stands(Standing(task, State.WAITING, self._wall_clock()), self._clock())
        self._room_was_made = True

    def has_task(self, key: TaskKey) -> bool:
        """Whether a task of this key is waiting or out."""
        return self._is_waiting(key) or key in self._tracker

    def revoke_task(self, key: TaskKey) -> None:
        """Call a task back. A waiting one ends at once; of one that is out, REVOKED comes when its worker says so.

        Raises `UnknownTask`.
        """
        if self._is_waiting(key):
            self._end_waiting(self._take_waiting(key), State.REVOKED, Reason.REVOKED, "revoked while it waited")
            return
        self._revoke([self._out(key)])

    def revoke_queue(self, queue: str) -> list[TaskKey]:
        """Call back all tasks of a queue, as `revoke_task` does. Answers their keys."""
        out = [tracked for tracked in self._tracker if tracked.task.queue == queue]
        waiting = self._end_all_waiting("revoked while it waited", queue)
        self._revoke(out)
        return waiting + [tracked.task.key for tracked in out]

    def revoke_tasks(self, keys: Iterable[TaskKey]) -> list[TaskKey]:
        """Call tasks back, as `revoke_task` does, all of them together. Answers the keys of those there were, first of
        those that waited."""
        waiting, out = [], []
        for key in keys:
            if self._is_waiting(key):
                waiting.append(self._take_waiting(key))
            elif (tracked := self._tracker.get(key)) is not None:
                out.append(tracked)
        for entry in waiting:
            self._end_waiting(entry, State.REVOKED, Reason.REVOKED, "revoked while it waited")
        self._revoke(out)
        return [entry.task.key for entry in waiting] + [tracked.task.key for tracked in out]

    def tasks(self) -> Iterator[Task]:
        """Every task that waits or is out. Not to be kept while anything is queued, revoked or moves."""
        yield from self._queue.tasks()
        yield from self._needs.tasks()
        yield from (tracked.task for tracked in self._tracker)

    # — the heartbeat —

    def heartbeat(self) -> None:
        self.trigger_tasks(self.slots_available)
        self.sync()

    def trigger_tasks(self, open_slots: int) -> None:
        """Hand the most urgent waiting tasks to the publisher: as many as fit in `open_slots`."""
        now = self._clock()
        if self._held or self._publishing.paused(now) or (self._books.paused and not self._books.write(now)):
            return
        self._queue.release(now)
        if open_slots >= self.slots_available:
            self._room_was_made = False
        if self._capacity is not None:
            self._slots.bind(self._capacity.by_queue(), self.config.late_binding_margin)
        again = [tracked for tracked in self._unsure.values() if tracked.resend_at <= now]
        batch = [*again, *self._take_batch(open_slots, now)]
        if batch and self._put_down(batch, now):
            self._publish(batch)

    def sync(self) -> None:
        """Apply what has moved since the last look. One bad result never stops the others."""
        now = self._clock()
        hints = self._results.changed()
        pushed = self._results.pushes
        if ids := self._tracker.due(hints, now, pushed=pushed) | (self._fenced.keys() & hints):
            self._read(ids, now)
        if self._searches is not None:
            if self._pushed and not pushed:
                self._searches.after_outage(now)
            self._pushed = pushed
            self._missing.update((each.id, each) for each in self._searches.look(self._tracker, now))
            if self._missing:
                self._take_missing(now)
        self._end_withdrawn(now)
        if self._serving is not None:
            self._serving.serve(now)
        if self._books.write_what_is_due(now) and self._forgettable:
            self._results.forget(self._forgettable)
            self._forgettable = []

    def _read(self, ids: Collection[str], now: float) -> None:
        for message_id, result in self._results.read(ids).items():
            tracked = self._tracker.find(message_id)
            match tracked, result:
                case None, _:
                    self._ignore(message_id, result)
                case Tracked(), Unreadable(error):
                    self._apply_unreadable(tracked, error, now)
                case Tracked(), Result():
                    self._apply_result(tracked, result, now)

    def wait(self, timeout: float) -> None:
        """Return when a heartbeat may have something to do, or after `timeout` seconds."""
        now = self._clock()
        moments = [now + min(timeout, LONGEST_PAUSE)]
        if (next_look := self._tracker.next_look()) is not None:
            moments.append(next_look)
        if (next_send := self._next_send(now)) is not None:
            moments.append(next_send)
        if self._searches is not None and self._tracker:
            moments.append(self._searches.due)
        if self._capacity is not None and self._withdrawn:
            moments.append(now + CAPACITY_LOOK)
        if self._serving is not None and (answer_due := self._serving.due) is not None:
            moments.append(answer_due)
        if (write_due := self._books.due) is not None:
            moments.append(write_due)
        self._results.wait(max(0.0, min(moments) - now))

    def _next_send(self, now: float) -> float | None:
        """When something can next be sent, as far as that depends on time alone."""
        moments = [tracked.resend_at for tracked in self._unsure.values()]
        if self._held:
            return None
        if not self._draining and self.slots_available > 0:
            if self._room_was_made and self._queue:
                moments.append(now)
            if (next_release := self._queue.next_release()) is not None:
                moments.append(next_release)
            if self._capacity is not None and self._queue:
                moments.append(now + CAPACITY_LOOK)
        return max(min(moments), self._publishing.resume_at) if moments else None

    # — what the caller sees —

    def get_event_buffer(self, keys: Collection[TaskKey] | None = None) -> list[Event]:
        """Take the events since the last call, oldest first: all, or those of the given keys.

        The stored results behind them may then be deleted: see `Config.delete_results`.
        """
        events = self._events.drain(keys)
        if self.config.delete_results and (ended := [event.id for event in events if ends_attempt(event)]):
            self._forget(ended)
        return events

    def read_events(self) -> list[Event]:
        """Take the events since the last call, as `get_event_buffer` does, once the ledger has them: with a number that
        they keep. The first call begins with the final events that nobody has acknowledged, of earlier executors too.

        While the ledger is away there are none. Without a ledger the numbers are 0, and nothing comes again.
        """
        if not self.write_down():
            return []
        events = self.get_event_buffer()
        if not self._reads_numbers:
            self._reads_numbers = True
            new = {event.number for event in events}
            events = [*(event for event in self._books.unacknowledged() if event.number not in new), *events]
        return events

    def acknowledge(self, number: int) -> bool:
        """All events up to that number are dealt with, and will not come again. Answers whether that is written down
        already; if not, it will be with what is written next."""
        self._books.acknowledge(number, self._clock())
        return self.write_down()

    def write_down(self) -> bool:
        """Have all that has happened in the ledger now, and not 0.2 s later. Answers whether it is there: not
        while the ledger is away."""
        return self._books.write(self._clock())

    def explain(self, key: TaskKey) -> Explanation:
        """The life of a task: its moves, and what it waits for now. Known of all that wait or are out, and of the last
        10,000 that ended. Raises `UnknownTask`."""
        return self._explainer.explain(key, self._clock(), draining=self._draining or self._held)

    @property
    def slots_available(self) -> int:
        return self._slots.open

    @property
    def slots_occupied(self) -> int:
        return self._slots.in_use

    @property
    def draining(self) -> bool:
        """Whether nothing more will be started."""
        return self._draining

    @property
    def tasks_waiting(self) -> int:
        return len(self._queue) + len(self._needs)

    @property
    def queues_without_workers(self) -> frozenset[str]:
        """The queues whose tasks wait because no live worker takes them. Known with late binding only."""
        return frozenset(self._unserved)

    @property
    def tasks_out(self) -> int:
        return len(self._tracker)

    @property
    def tasks_running(self) -> int:
        """Of those that are out, how many a worker has started, as far as is known."""
        return sum(tracked.state is State.RUNNING for tracked in self._tracker)

    @property
    def task_publish_retries(self) -> Mapping[TaskKey, int]:
        """Failed tries at sending, of the tasks that are not yet sent."""
        return self._publishing.counts

    # — what the caller says —

    def change_state(self, key: TaskKey, state: State, detail: str | None = None) -> None:
        """Say what became of a task. Its worker is not told: to stop it, use `revoke_task`.

        Raises `UnknownTask`, or `ImpossibleMove` for a state that cannot follow the task's own.
        """
        now = State.WAITING if self._is_waiting(key) else self._out(key).state
        if state not in SET_BY_CALLERS or state not in MOVES[now]:
            raise ImpossibleMove(key, now, state)
        if now is State.WAITING:
            self._end_waiting(self._take_waiting(key), state, Reason.CALLER, detail)
        else:
            self._move(self._out(key), state, Reason.CALLER, detail)

    def success(self, key: TaskKey, detail: str | None = None) -> None:
        self.change_state(key, State.SUCCESS, detail)

    def fail(self, key: TaskKey, detail: str | None = None) -> None:
        """No retry follows: who fails a task by hand has decided."""
        self.change_state(key, State.FAILED, detail)

    # — the end —

    def drain(self) -> None:
        """Start nothing more, and take nothing more. What is out goes on; what failed is not tried again."""
        self._draining = True

    def hold(self) -> None:
        """Send nothing more, and leave what waits to whoever goes on with the ledger. What is out is followed still;
        what fails and may be tried again waits for its next attempt."""
        self._held = True

    def end(self, timeout: float | None = None) -> bool:
        """Start nothing more, wait for what is out, then revoke what never ran.

        Answers whether all had ended after `timeout` seconds, and is in the ledger; None waits without limit, but not
        for a ledger that is away.
        """
        self.drain()
        until = None if timeout is None else self._clock() + timeout
        self.sync()
        while self._tracker and (until is None or self._clock() < until):
            self.wait(LONGEST_PAUSE if until is None else until - self._clock())
            self.heartbeat()
        self._end_all_waiting("never ran: the executor ended")
        return self.write_down() and not self._tracker

    def withdraw(self) -> None:
        """Call back what was sent and has not started, as far as is known; what has started goes on.

        REVOKED comes when it is certain that such a task does not start: at once where workers claim what they start,
        else when a worker drops its message. Where nobody claims, and with late binding, it also comes when no live
        worker serves the queue: then the message stays with the broker, and a worker that starts later runs it.
        """
        out = [tracked for tracked in self._tracker if tracked.state is not State.RUNNING]
        withdrawn = [tracked for tracked in out if tracked.task.key not in self._withdrawn]
        self._withdrawn.update((tracked.task.key, tracked) for tracked in withdrawn)
        self._call_back(withdrawn, unless_started=True)

    def terminate(self) -> None:
        """Revoke everything, waiting or out. Does not wait: `end` does. What `withdraw` says of queues without workers
        holds here too.
        """
        self.drain()
        self._end_all_waiting("never ran: the executor ended")
        self._withdrawn.update((tracked.task.key, tracked) for tracked in self._tracker)
        self._revoke([tracked for tracked in self._tracker if not tracked.revoking])

    def abandon(self) -> None:
        """Give up what is out: each task ends as lost, whatever becomes of it."""
        for tracked in self._tracker:
            self._move(tracked, State.FAILED, Reason.LOST, "given up while it was out")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self.end()
        else:
            self.terminate()
            self.end(timeout=LONGEST_PAUSE)

    def debug_dump(self) -> str:
        """What waits and what is out, for a person: keys, ids and states, no commands and no values."""
        lines = [
            f"slots: {self._slots.in_use} in use of {self._slots.parallelism}",
            f"waiting: {self.tasks_waiting}, of which for others to end: {len(self._needs)}",
            f"out: {len(self._tracker)}, of which unsure: {len(self._unsure)}",
            f"results of lost attempts ignored: {self.results_ignored}",
        ]
        lines += [
            f"  {tracked.task.key!r} {tracked.state.value} id={tracked.task.message_id} queue={tracked.task.queue!r}"
            f" attempt={tracked.task.attempt}" + (" revoking" if tracked.revoking else "")
            for tracked in self._tracker
        ]
        lines += [f"  {key!r} tried to send {tries} times" for key, tries in self._publishing.counts.items()]
        return "\n".join(lines)

    # — what others left —

    def _wait_again(self, found: Remembered) -> Entry | None:
        """Answers its place in line if it needs others, for it to be held with."""
        self._explainer.saw(found.task.key)
        entry = self._queue.place(found.task, found.arrived)
        if found.revoking:
            self._end_waiting(entry, State.REVOKED, Reason.REVOKED, "revoked before its executor went")
            return None
        try:
            self._slots.check(found.task)
        except InvalidTask as wrong:
            self._end_waiting(entry, State.FAILED, Reason.NOT_STARTED, f"it can never start here: {wrong}")
            return None
        if found.task.needs and found.task.attempt == 1:  # a later one follows one that had what it needed
            return entry
        delay = 0.0 if found.not_before is None else found.not_before - self._wall_clock()
        self._queue.push_back(entry, not_before=self._clock() + delay if delay > 0 else None)
        self._room_was_made = True
        return None

    def _take_over(self, found: Collection[Remembered]) -> None:
        """Follow what is out, in more slots than there are if need be."""
        now = self._clock()
        revoking = []
        for each in found:
            self._slots.take(each.task)
            self._explainer.saw(each.task.key)
            entry = self._queue.place(each.task, each.arrived)
            self._history.begin(entry)
            tracked = self._tracker.watch(entry, now)
            tracked.moved_at = now
            if each.state is not State.PUBLISHING:
                tracked.state = each.state
            elif self._searches is not None:
                tracked.state = State.QUEUED  # if it is not, it will be found in no place
            else:
                tracked.resend_at = now
                self._unsure[each.task.key] = tracked
            if each.revoking:
                revoking.append(tracked)
        self._read([each.task.message_id for each in found], now)
        self._revoke([tracked for tracked in revoking if self._tracker.get(tracked.task.key) is tracked])
        if self._searches is not None:
            self._searches.at_once(now)

    def _disown(self) -> None:
        """It is another executor's now: nothing here is to be sent, followed or called back."""
        self._draining = True
        self._take_all_waiting()
        for tracked in self._tracker:
            self._settle(tracked)
            self._leave(tracked, tracked.state)

    # — back from the broker —

    def _revoke(self, out: Collection[Tracked]) -> None:
        for tracked in out:
            tracked.revoking = True
            standing = Standing(tracked.task, tracked.state, self._wall_clock(), revoking=True)
            self._books.stands(standing, self._clock())
        self._call_back(out)

    def _call_back(self, out: Collection[Tracked], *, unless_started: bool = False) -> None:
        if not out:
            return
        self._revoker.revoke([tracked.task.message_id for tracked in out], unless_started=unless_started)
        for tracked in out:
            if tracked.state is State.PUBLISHING:
                detail = "revoked while nobody knew whether the broker had it"
                self._move(tracked, State.REVOKED, Reason.REVOKED, detail)

    def _end_withdrawn(self, now: float) -> None:
        """Those whose queue no live worker serves, unless the result backend knows better."""
        if not self._withdrawn or self._revoker.lasts or not (unserved := self._slots.unserved_queues()):
            return

        def waits_for_nobody(tracked: Tracked) -> bool:
            return tracked.state is State.QUEUED and tracked.task.queue in unserved

        left = list(filter(waits_for_nobody, self._withdrawn.values()))
        self._read([tracked.task.message_id for tracked in left], now)
        if not self._results.answered:
            return
        left = list(filter(waits_for_nobody, left))
        for tracked in left:
            detail = f"no live worker serves queue {tracked.task.queue!r}: its message stays with the broker"
            self._move(tracked, State.REVOKED, Reason.REVOKED, detail)
        if left:
            logger.warning("%d called back; with nobody to drop their messages, a later worker runs them", len(left))

    # — to the broker —

    def _take_batch(self, open_slots: int, now: float) -> list[Tracked]:
        """Move the most urgent tasks out of the queue and into slots.

        A queue at its limit is stepped over. A task that needs more slots than are open holds back those behind it, or
        small tasks would keep it waiting for ever.
        """
        batch: list[Tracked] = []
        full: set[str] = set()
        open_slots = min(open_slots, self._slots.open)
        while not self._draining and open_slots > 0 and (task := self._queue.head(besides=full)):
            if not self._slots.queue_has_room(task):
                full.add(task.queue)
                continue
            if task.slots > open_slots:
                break
            self._slots.take(task)
            open_slots -= task.slots
            entry = self._queue.take(task.key)
            self._history.begin(entry)
            batch.append(self._tracker.watch(entry, now))
        self._note_unserved(full | self._slots.unserved_queues())
        return batch

    def _note_unserved(self, full: set[str]) -> None:
        """Say once of a queue that nobody takes its tasks, and once that somebody does."""
        for queue in {queue for queue in self._unserved if self._slots.is_served(queue)}:
            self._unserved.discard(queue)
            logger.warning("queue %r is served again", queue)
        for queue in sorted(full - self._unserved):
            if not self._slots.is_served(queue):
                self._unserved.add(queue)
                logger.warning("no live worker serves queue %r: its tasks wait", queue)

    def _put_down(self, batch: list[Tracked], now: float) -> bool:
        """In the ledger, before they are sent; where that need not be, at least that there are such tasks: else whoever
        comes after a crash knows nothing of what has begun. What cannot be put down waits where it stood."""
        if self._outbox:
            is_written = self._books.sending([tracked.task for tracked in batch], self._wall_clock(), now)
        else:
            is_written = self._books.write_new(now)
        if is_written:
            return True
        for tracked in batch:
            if tracked.task.key not in self._unsure:
                self._leave(tracked, State.WAITING)
                self._queue.push_back(tracked.entry)
        return False

    def _publish(self, batch: list[Tracked]) -> None:
        receipts: list[Receipt] = []
        try:
            for receipt in self._publisher.publish([t.task for t in batch], timeout=self.config.operation_timeout):
                receipts.append(receipt)
        finally:  # a publisher that raises has a bug; what it did send is out all the same
            answered = {receipt.task.key for receipt in receipts}
            silence = RuntimeError("the publisher gave no answer")
            receipts += [Unsure(t.task, silence) for t in batch if t.task.key not in answered]
            self._apply_receipts(receipts, self._clock())

    def _apply_receipts(self, receipts: list[Receipt], now: float) -> None:
        pause = None
        if any(isinstance(receipt, Sent) for receipt in receipts):
            if self._publishing.resume() and self._searches is not None:
                self._searches.after_outage(now)
        elif any(not isinstance(receipt, NotSent) or receipt.transient for receipt in receipts):
            pause = self._publishing.pause(now)
        for receipt in receipts:
            tracked = self._tracker.get(receipt.task.key)
            if tracked is not None and tracked.state is State.PUBLISHING:
                self._apply_receipt(tracked, receipt, pause, now)

    def _apply_receipt(self, tracked: Tracked, receipt: Receipt, pause: float | None, now: float) -> None:
        match receipt:
            case Sent():
                self._move(tracked, State.QUEUED)
            case NotSent(error=error, transient=False):
                self._move(tracked, State.FAILED, Reason.PUBLISH_ERROR, f"it cannot be sent: {word(error)}")
            case NotSent(error=error) if tracked.task.key not in self._unsure:
                self._put_back(tracked, error, pause, now)
            case NotSent(error=error) | Unsure(error=error):  # an earlier try may have got through
                self._not_confirmed(tracked, error, pause, now)
            case _:
                assert_never(receipt)

    def _put_back(self, tracked: Tracked, error: Exception, pause: float | None, now: float) -> None:
        delay = self._publishing.failed(tracked.task.key, now)
        if delay is None:
            self._give_up_publishing(tracked, error)
            return
        self._leave(tracked, State.WAITING)
        # With the broker away everything waits, so places in line are kept; a failure of its own waits alone.
        self._queue.push_back(tracked.entry, not_before=None if pause is not None else now + delay)
        self._emit(tracked.task, State.WAITING, Reason.PUBLISH_ERROR, word(error), retry_in=pause or delay)

    def _not_confirmed(self, tracked: Tracked, error: Exception, pause: float | None, now: float) -> None:
        delay = self._publishing.failed(tracked.task.key, now)
        if delay is None:
            self._revoker.revoke([tracked.task.message_id])
            self._give_up_publishing(tracked, error)
            return
        tracked.resend_at = now + (delay if pause is None else pause)
        if tracked.task.key not in self._unsure:
            self._unsure[tracked.task.key] = tracked
            self._emit(tracked.task, State.PUBLISHING, Reason.PUBLISH_ERROR, f"not confirmed: {word(error)}")

    def _give_up_publishing(self, tracked: Tracked, error: Exception) -> None:
        tries = self._publishing.counts[tracked.task.key]
        self._move(
            tracked, State.FAILED, Reason.PUBLISH_ERROR, f"the broker did not take it in {tries} tries: {word(error)}"
        )

    # — from the result backend —

    def _apply_result(self, tracked: Tracked, result: Result, now: float) -> None:
        tracked.unreadable_since = None
        state = result.state
        if state is State.FAILED and tracked.revoking:
            state = State.REVOKED
        if state not in REPORTED_BY_WORKERS or state not in MOVES[tracked.state]:
            return
        if state is State.FAILED and result.reason is Reason.LOST:
            self._lose(tracked, result, now)
        elif state is State.FAILED:
            self._fail(tracked, result, now)
        else:
            self._move(tracked, state, result.reason, result.detail, result)

    def _fail(self, tracked: Tracked, result: Result, now: float) -> None:
        may_retry = result.reason is not Reason.REFUSED and not self._draining  # nobody signs it better a second time
        if tracked.task.has_retries_left and may_retry:
            task = tracked.task
            delay = backoff(task.retry_delay, task.attempt - task.lost, self.config.retry_delay_max, self._random)
            self._again(tracked, task.next_attempt(), result, now, delay)
        else:
            self._move(tracked, State.FAILED, result.reason, result.detail, result)

    def _lose(self, tracked: Tracked, result: Result, now: float) -> None:
        """Its worker, or what ran it there, is gone: nothing is known of how the command fared."""
        task = tracked.task
        again = task.next_attempt(was_lost=True)
        if self._draining or task.on_worker_lost is OnWorkerLost.FAIL:
            self._move(tracked, State.FAILED, Reason.LOST, result.detail, result)
        elif again.lost >= task.max_lost:
            detail = f"lost {again.lost} times, it may be what kills its workers; the last time: {result.detail}"
            self._move(tracked, State.FAILED, Reason.POISON, detail, result)
        else:
            logger.warning("attempt %d of task %r is lost: %s", task.attempt, task.key, result.detail)
            self._again(tracked, again, result, now, delay=0.0)

    def _apply_unreadable(self, tracked: Tracked, error: Exception, now: float) -> None:
        if tracked.unreadable_since is None:
            tracked.unreadable_since = now
            logger.warning("the result of task %r cannot be read: %s", tracked.task.key, word(error))
        elif now - tracked.unreadable_since >= self.config.result_unreadable_timeout:
            unreadable = f"its result cannot be read: {word(error)}"
            if tracked.revoking:
                self._move(tracked, State.REVOKED, Reason.LOST, unreadable)
            else:
                self._fail(tracked, Result(State.FAILED, Reason.LOST, unreadable), now)

    def _take_missing(self, now: float) -> None:
        """What nobody has may have ended: then its result is there. Of a backend that is away nobody knows."""
        self._read(self._missing.keys(), now)
        if not self._results.answered:
            return
        missing, self._missing = self._missing, {}
        again = []
        for task_id, found in missing.items():
            tracked = self._tracker.find(task_id)
            if tracked is not None and tracked.state is not State.PUBLISHING:
                self._take_one_missing(tracked, found, now)
                again += [tracked.task.key] if tracked.task.key in self._unsure else []
        if again:
            some = ", ".join(map(repr, again[:SOME_KEYS])) + (", …" if len(again) > SOME_KEYS else "")
            logger.warning("sent again because nobody has them: %d, %s", len(again), some)

    def _take_one_missing(self, tracked: Tracked, found: Missing, now: float) -> None:
        if tracked.revoking or (tracked.state is State.QUEUED and tracked.task.key in self._withdrawn):
            self._move(tracked, State.REVOKED, Reason.REVOKED, found.detail)
        elif found.was_claimed or tracked.state is State.RUNNING:
            ran = now - tracked.started_at if tracked.started_at is not None else None
            detail = found.detail if ran is None else f"{found.detail}; it had run for {ran:.1f} s"
            place = Execution(host=found.host, duration=ran) if found.host is not None else None
            self._fence(found.id)
            self._lose(tracked, Result(State.FAILED, Reason.LOST, detail, place), now)
        elif self._draining:
            self._move(tracked, State.FAILED, Reason.LOST, found.detail)
        else:
            self._move(tracked, State.PUBLISHING, Reason.LOST, found.detail)
            tracked.resend_at = now
            self._unsure[tracked.task.key] = tracked

    def _fence(self, message_id: str) -> None:
        self._fenced[message_id] = None
        if len(self._fenced) > MOST_FENCED:
            del self._fenced[next(iter(self._fenced))]

    def _ignore(self, message_id: str, result: Result | Unreadable) -> None:
        """The end of an attempt that was given up as lost, if it is one."""
        if message_id in self._fenced and isinstance(result, Result) and result.state.is_final:
            del self._fenced[message_id]
            self.results_ignored += 1
            if self.config.delete_results:
                self._forget([message_id])

    def _again(self, tracked: Tracked, task: Task, result: Result, now: float, delay: float) -> None:
        """Run it once more, as `task`."""
        self._settle(tracked)
        self._leave(tracked, State.WAITING)
        self._queue.push_back(tracked.entry._replace(task=task), not_before=now + delay if delay else None)
        self._emit(tracked.task, State.WAITING, result.reason, result.detail, result, retry_in=delay, next_attempt=task)

    # — moves —

    def _out(self, key: TaskKey) -> Tracked:
        tracked = self._tracker.get(key)
        if tracked is None:
            raise UnknownTask(key)
        return tracked

    def _move(
        self,
        tracked: Tracked,
        state: State,
        reason: Reason | None = None,
        detail: str | None = None,
        result: Result | None = None,
    ) -> None:
        tracked.state, tracked.moved_at = state, self._clock()
        tracked.started_at = tracked.moved_at if state is State.RUNNING else None
        self._settle(tracked)
        if state.is_final:
            self._leave(tracked, state)
        self._emit(tracked.task, state, reason, detail, result)

    def _settle(self, tracked: Tracked) -> None:
        """Whether the broker has it is no longer in question."""
        self._unsure.pop(tracked.task.key, None)
        self._publishing.forget(tracked.task.key)

    def _leave(self, tracked: Tracked, state: State) -> None:
        """The task is no longer out: its slot is free."""
        tracked.state = state
        self._tracker.forget(tracked)
        self._slots.free(tracked.task.key)
        self._withdrawn.pop(tracked.task.key, None)
        self._room_was_made = True

    def _is_waiting(self, key: TaskKey) -> bool:
        return key in self._queue or key in self._needs

    def _take_waiting(self, key: TaskKey) -> Entry:
        return self._needs.take(key) if key in self._needs else self._queue.take(key)

    def _end_waiting(self, entry: Entry, state: State, reason: Reason, detail: str | None) -> None:
        self._publishing.forget(entry.task.key)
        self._history.begin(entry)
        self._emit(entry.task, state, reason, detail)

    def _take_all_waiting(self, queue: str | None = None) -> list[Entry]:
        tasks = [*self._queue.tasks(), *self._needs.tasks()]
        return [self._take_waiting(task.key) for task in tasks if queue in (None, task.queue)]

    def _end_all_waiting(self, detail: str, queue: str | None = None) -> list[TaskKey]:
        """Revoke what waits: all, or those of a queue. None is skipped for another, so all are taken out first."""
        entries = self._take_all_waiting(queue)
        for entry in entries:
            self._end_waiting(entry, State.REVOKED, Reason.REVOKED, detail)
        return [entry.task.key for entry in entries]

    def _let_go(self, freed: Freed) -> None:
        for entry in freed.ready:
            self._queue.push_back(entry)
            self._room_was_made = True
        for skipped in freed.skipped:
            self._history.begin(skipped.entry)
            self._emit(skipped.entry.task, State.SKIPPED, Reason.NEED_FAILED, skipped.why)

    def _emit(
        self,
        task: Task,
        state: State,
        reason: Reason | None = None,
        detail: str | None = None,
        result: Result | None = None,
        *,
        retry_in: float | None = None,
        next_attempt: Task | None = None,
    ) -> None:
        event = Event(
            key=task.key,
            state=state,
            when=self._wall_clock(),
            id=task.message_id,
            attempt=task.attempt,
            reason=reason,
            detail=detail,
            execution=result.execution if result else None,
            retry_in=retry_in,
            number=self._books.next_number(),
        )
        self._events.put(event)
        self._history.note(event)
        if self._books.kept:
            self._books.happened(event)
            tracked = self._tracker.get(task.key)
            revoking = tracked is not None and tracked.revoking
            self._books.stands(standing_after(event, next_attempt or task, revoking=revoking), self._clock())
        if state.is_final and state is not State.SKIPPED:  # for whom one is skipped, `needs` has said already
            self._let_go(self._needs.ended(task.key, state))

    def _forget(self, ids: list[str]) -> None:
        """Their results may be deleted: at once, or when the ledger has them."""
        if self._books.kept:
            self._forgettable += ids
        else:
            self._results.forget(ids)


def ends_attempt(event: Event) -> bool:
    """Whether its id is done with: the task has ended, or goes on under another one. What is skipped never used it."""
    if event.state is State.SKIPPED:
        return False
    return event.state.is_final or (event.state is State.WAITING and event.reason is not Reason.PUBLISH_ERROR)


def standing_after(event: Event, task: Task, *, revoking: bool) -> Standing:
    not_before = event.when + event.retry_in if event.retry_in else None
    return Standing(task, event.state, event.when, event.reason, event.detail, event.execution, not_before, revoking)


def word(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
