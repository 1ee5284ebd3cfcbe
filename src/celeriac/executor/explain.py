"""Explain one task: its events, and what it waits for now, in words and facts.

waiting   ─► dependencies? retry delay? not_before? paused? broker unavailable? queue limit? no worker? no slot?
             too little memory? load?
in flight ─► not confirmed, queued at the broker, running, cancelling
ended     ─► its final state
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, TypeAlias

from msgspec import Struct

from celeriac.errors import UnknownTask
from celeriac.executor.accepted import AcceptedTasks
from celeriac.executor.capacity import Capacity
from celeriac.executor.dependencies import Dependencies
from celeriac.executor.history import History, TaskHistory, last_event
from celeriac.executor.pauses import Pauses
from celeriac.executor.priority_queue import Entry, Group, PriorityQueue
from celeriac.executor.publish_retries import PublishRetries
from celeriac.executor.requests import CurrentStatus, DemandReply, Explanation, WaitReason
from celeriac.executor.resources import Room
from celeriac.executor.slots import Slots
from celeriac.executor.tracker import Tracked, Tracker
from celeriac.task.amounts import FIELD_OF, MILLI, amount_text, amounts_of, needs_texts, shortage_text
from celeriac.task.result import Reason
from celeriac.task.state import State
from celeriac.task.task import Task, TaskKey

if TYPE_CHECKING:
    from celeriac.executor.limits import Limits
    from celeriac.executor.start_gate import StartGate

MAX_NEEDS_SHOWN = 3  # dependencies in one sentence


Obstacle: TypeAlias = tuple[WaitReason, str, dict[str, int | float | str]]
"""What a task waits for, in words and facts."""


class Explainer(Struct, kw_only=True):
    """Reads the parts of the executor, and changes nothing."""

    queue: PriorityQueue
    dependencies: Dependencies
    accepted: AcceptedTasks
    slots: Slots
    find_limits: Callable[[], Limits | None]
    pauses: Pauses
    start_gate: StartGate | None
    capacity: Capacity | None
    tracker: Tracker
    publish_retries: PublishRetries
    history: History
    unconfirmed: Mapping[TaskKey, Tracked]
    unstarted_cancels: Mapping[TaskKey, Tracked]
    all_keys_are_text: bool = True
    """Whether every key so far is a string. Then a name is itself the key, and no search is needed."""

    def note_key(self, key: TaskKey) -> None:
        """Take note of the type of a new task's key."""
        if type(key) is not str:
            self.all_keys_are_text = False

    def find_keys(self, names: Collection[str]) -> dict[str, list[TaskKey]]:
        """Return, for each name, the keys that have it as text. Search all keys only if some are not strings."""
        keys_by_name: dict[str, list[TaskKey]] = {name: [] for name in names}
        if self.all_keys_are_text:
            return {name: [name] if self._is_known(name) else [] for name in keys_by_name}
        keys = dict.fromkeys(task.key for task in self.queue.tasks())
        keys |= dict.fromkeys(task.key for task in self.dependencies.tasks())
        keys |= dict.fromkeys(self.history)  # each task in flight has one
        for key in keys:
            if (name := str(key)) in keys_by_name:
                keys_by_name[name].append(key)
        return keys_by_name

    def _is_known(self, key: TaskKey) -> bool:
        return key in self.queue or key in self.dependencies or self.history.of(key) is not None

    def demand(self) -> DemandReply:
        """Return how many tasks could start if there were workers."""
        waiting: dict[str, int] = {}
        open_slots = 0 if self.pauses.whole is not None else max(0, self.slots.open)
        accepted = self.accepted.by_queue()
        for queue, number in sorted({**dict.fromkeys(accepted, 0), **self.queue.by_queue}.items()):
            ready = min(number, self.queue.number_ready(queue)) + accepted[queue]
            if queue in self.pauses.queues:
                continue
            if (startable := min(ready, self.slots.room_of(queue, open_slots))) > 0:
                waiting[queue] = startable
        return DemandReply(waiting=waiting, open_slots=open_slots)

    def explain(self, key: TaskKey, now: float, *, draining: bool) -> Explanation:
        """Return the explanation of a task. Raise `UnknownTask`."""
        if (entry := self.queue.get(key) or self.dependencies.get(key)) is not None:
            history = self.history.of_active(key)
            return explanation(entry, State.WAITING, history, self._waiting(entry, history, now, draining=draining))
        if (tracked := self.tracker.get(key)) is not None:
            history = self.history.of_active(key)
            return explanation(tracked.entry, tracked.state, history, self._in_flight(tracked, history, now))
        history = self.history.of(key)
        if history is None or not history.has_ended:
            raise UnknownTask(key)
        return explanation_of_ended(key, history)

    # — waiting —

    def _waiting(self, entry: Entry, history: TaskHistory | None, now: float, *, draining: bool) -> CurrentStatus:
        task = entry.task
        if draining:
            words = "waiting: the executor starts no more tasks"
            return CurrentStatus(waits_for=WaitReason.NOTHING_MORE, words=words)
        if task.key in self.dependencies:
            return waiting_for_needs(self.dependencies.unmet_needs(task.key))
        if (due := self.queue.due(task.key)) is not None and due > now:
            last = last_event(history)
            was_not_sent = last is not None and last.reason is Reason.PUBLISH_ERROR
            return waiting_until(
                WaitReason.RETRY,
                "waiting: could not be sent; retrying" if was_not_sent else "waiting: next attempt",
                due - now,
            )
        if self.queue.is_scheduled(task.key) and task.not_before is not None:
            return waiting_until_moment(task.not_before)
        place = self.queue.place_in_line(task.key) + self.accepted.number_before(entry)
        reason, why, facts = self._pause(task) or self._delay(task, now)
        return CurrentStatus(
            waits_for=reason,
            words=f"waiting: place {place:,} of queue {task.queue!r} (priority {task.priority}); {why}",
            facts={"place": place, "queue": task.queue, "priority": task.priority, **facts},
        )

    def _pause(self, task: Task) -> Obstacle | None:
        """Return the pause that holds a task back, if there is one."""
        if (found := self.pauses.of(task)) is None:
            return None
        what, pause = found
        facts: dict[str, int | float | str] = {"asked_by": pause.asked_by, "since": pause.since}
        return WaitReason.PAUSED, f"{what} is paused by {pause.asked_by}", facts

    def _delay(self, task: Task, now: float) -> Obstacle:
        if self.publish_retries.paused(now):
            return self._outage(now)
        limits = self.find_limits()
        if limits is not None and (found := limits.explain(task, now)) is not None:
            return WaitReason.LIMIT, *found
        return self._obstacle(task)

    def _outage(self, now: float) -> Obstacle:
        seconds_left = round(self.publish_retries.resume_at - now, 3)
        return (
            WaitReason.BROKER,
            f"the broker is unavailable, next try in {seconds_left:.1f} s",
            {"seconds": seconds_left},
        )

    def _obstacle(self, task: Task) -> Obstacle:
        """Return the first reason, in the order of the dispatcher's checks, why a task is not sent."""
        queue, slots = task.queue, self.slots
        if slots.is_at_limit(task):
            limit = slots.limits[queue]
            return WaitReason.LIMIT, f"queue {queue!r} is at its limit of {limit}", {"limit": limit}
        if not slots.is_served(queue):
            return WaitReason.WORKERS, f"no live worker serves queue {queue!r}", {}
        if not slots.queue_has_room(task):
            in_flight = slots.tasks_in_flight(queue)
            if not slots.workers_are_known:
                return WaitReason.WORKERS, "the live workers are not known yet", {}
            tasks = "1 task" if in_flight == 1 else f"{in_flight:,} tasks"
            why = f"the workers of queue {queue!r} have as many tasks as they can take: {tasks}"
            return WaitReason.ROOM, why, {"out": in_flight}
        if task.slots > slots.open:
            facts: dict[str, int | float | str] = {"parallelism": slots.parallelism, "in_use": slots.in_use}
            if slots.open <= 0:
                return WaitReason.SLOTS, f"all {slots.parallelism:,} slots are in use", facts
            why = f"it needs {task.slots:,} slots, and {slots.open:,} of {slots.parallelism:,} are open"
            return WaitReason.SLOTS, why, {**facts, "slots": task.slots}
        room = Room(slots.open, slots.resources)
        if not room.fits(task):
            return self._shortage(task, room)
        if (others := self._turn_of_others(task)) is not None:
            return others
        if self.start_gate is not None and (hold := self.start_gate.waits) is not None:
            return hold.reason, hold.words, hold.facts
        return WaitReason.HEARTBEAT, "sent by one of the next heartbeats", {}

    def _shortage(self, task: Task, room: Room) -> Obstacle:
        """Return that too little of a resource is free."""
        if not self.slots.resources.workers_are_known:
            return WaitReason.WORKERS, "the live workers are not known yet", {}
        shortage = room.shortage(task)
        if shortage is None:
            why = f"no live worker of queue {task.queue!r} has {' and '.join(needs_texts(task))}"
            return WaitReason.WORKERS, why, {}
        resource, free = shortage
        needed = getattr(amounts_of(task), resource)
        wanted, left = shortage_text(resource, needed, free)
        unit = MILLI if resource == "milli_cpus" else 1
        facts = {"resource": FIELD_OF[resource], "needs": needed / unit, "free": free / unit}
        return WaitReason.RESOURCES, f"it waits for {wanted}; free: {left}", facts

    def _turn_of_others(self, task: Task) -> Obstacle | None:
        """Return what a more urgent task waits for, so that this one is not sent."""
        room, skipped = Room(self.slots.open, self.slots.resources), set[Group](self.pauses.queues)
        found: Obstacle | None = None
        while (first := self.queue.head(besides=skipped)) is not None and first.key != task.key:
            if not self.slots.queue_has_room(first):
                skipped.add(first.queue)
            elif first.slots > self.slots.open:
                why = f"a more urgent task needs {first.slots:,} slots, and {self.slots.open:,} are open"
                return WaitReason.OTHERS, why, {"slots": first.slots, "open": self.slots.open}
            elif room.fits(first):
                return None
            else:
                if found is None and (shortage := room.shortage(first)) is not None:
                    wanted = amount_text(shortage[0], getattr(amounts_of(first), shortage[0]))
                    found = WaitReason.OTHERS, f"a more urgent task waits for {wanted}", {"first": str(first.key)}
                room.keep_for(first)
                skipped.add(self.queue.group_of_head(first))
        return None if first is not None and room.fits(first) and room.slots >= first.slots else found

    # — in flight —

    def _in_flight(self, tracked: Tracked, history: TaskHistory | None, now: float) -> CurrentStatus:
        key, seconds_in_state = tracked.task.key, max(0.0, now - tracked.moved_at)
        match tracked.state:
            case State.RUNNING if tracked.revoking:
                words = "cancelling: its processes are being ended"
                return CurrentStatus(waits_for=WaitReason.TERMINATION, words=words)
            case State.RUNNING:
                return running(history, seconds_in_state)
            case _ if tracked.is_overdue and not tracked.revoking:
                words = "its deadline has passed: waiting for confirmation that it will not start"
                return CurrentStatus(waits_for=WaitReason.REVOCATION, words=words)
            case _ if tracked.revoking or key in self.unstarted_cancels:
                words = "cancelling: waiting for confirmation that it will not start"
                return CurrentStatus(waits_for=WaitReason.REVOCATION, words=words)
            case State.PUBLISHING:
                resend_at = max(tracked.resend_at, self.publish_retries.resume_at) if key in self.unconfirmed else now
                return waiting_until(WaitReason.CONFIRMATION, "publish not confirmed; retrying", resend_at - now)
        return self._at_the_broker(tracked, seconds_in_state)

    def _at_the_broker(self, tracked: Tracked, seconds_in_state: float) -> CurrentStatus:
        task, ahead = tracked.task, self._ahead_of(tracked)
        words = f"queued: at the broker for {seconds_in_state:.1f} s, {ahead:,} of this executor's tasks before it"
        served = self.slots.is_served(task.queue)
        if not served:
            words += f"; no live worker serves queue {task.queue!r}"
        elif self.capacity is not None and (why := self.capacity.why_held(task.queue)) is not None:
            words += f"; {why}"
        return CurrentStatus(
            waits_for=WaitReason.START if served else WaitReason.WORKERS,
            words=words,
            facts={"seconds": round(seconds_in_state, 3), "ahead": ahead, "queue": task.queue, "level": task.urgency},
        )

    def _ahead_of(self, tracked: Tracked) -> int:
        """Count the tasks that workers receive before this one: more urgent ones of its queue, or sent earlier."""
        task, rank = tracked.task, (-tracked.task.urgency, tracked.moved_at)
        return sum(
            other.state is State.QUEUED
            and other.task.queue == task.queue
            and (-other.task.urgency, other.moved_at) < rank
            for other in self.tracker
        )


def waiting_for_needs(needs: list[TaskKey]) -> CurrentStatus:
    """Return the status of a task that depends on unfinished tasks."""
    shown, more = ", ".join(map(repr, needs[:MAX_NEEDS_SHOWN])), len(needs) - MAX_NEEDS_SHOWN
    names = f"{shown} and {more:,} more" if more > 0 else shown
    facts: dict[str, int | float | str] = {"needs": len(needs), "first": str(needs[0])}
    return CurrentStatus(waits_for=WaitReason.NEEDS, words=f"waiting: it needs {names} to end", facts=facts)


def waiting_until(waits_for: WaitReason, words: str, seconds: float) -> CurrentStatus:
    """Return the status of a task that waits for some seconds."""
    seconds_left = max(0.0, round(seconds, 3))
    return CurrentStatus(waits_for=waits_for, words=f"{words} in {seconds_left:.1f} s", facts={"seconds": seconds_left})


def waiting_until_moment(not_before: float) -> CurrentStatus:
    """Return the status of a task that waits for its `not_before`."""
    from celeriac.task.moment import show_moment  # late: most tasks have none

    words = f"waiting: it may not start before {show_moment(not_before)}"
    return CurrentStatus(waits_for=WaitReason.TIME, words=words, facts={"not_before": not_before})


def running(history: TaskHistory | None, seconds_in_state: float) -> CurrentStatus:
    """Return the status of a running task. `seconds_in_state` counts from when the executor learned of its start."""
    last = last_event(history)
    facts: dict[str, int | float | str] = {"seconds": round(seconds_in_state, 3)}
    location = ""
    if last is not None and last.execution is not None:
        facts["host"], location = last.execution.host, f" on {last.execution.host}"
    return CurrentStatus(waits_for=WaitReason.END, words=f"running{location} for {seconds_in_state:.1f} s", facts=facts)


def explanation(entry: Entry, state: State, history: TaskHistory | None, now: CurrentStatus) -> Explanation:
    """Return the explanation of a task that has not ended."""
    task = entry.task
    return Explanation(
        key=task.key,
        state=state,
        id=task.message_id,
        attempt=task.attempt,
        queue=task.queue,
        priority=task.priority,
        arrived=entry.arrived,
        moves=history.events if history is not None else (),
        left_out=history.left_out if history is not None else 0,
        now=now,
    )


def explanation_of_ended(key: TaskKey, history: TaskHistory) -> Explanation:
    """Return the explanation of a task that has ended."""
    last = history.events[-1]
    why = f": {last.detail}" if last.detail else ""
    return Explanation(
        key=key,
        state=last.state,
        id=last.id,
        attempt=last.attempt,
        queue=history.queue,
        priority=history.priority,
        arrived=history.arrived,
        moves=history.events,
        left_out=history.left_out,
        now=CurrentStatus(waits_for=WaitReason.NOTHING, words=f"ended: {last.state.value}{why}"),
    )
