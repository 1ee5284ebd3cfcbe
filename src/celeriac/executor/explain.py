"""Where a task stands: what it has been through, what it waits for, and in what words to say so.

waiting  ─► needs others? held back? the broker away? its queue full, or unserved? no slot? ─► the first that holds
out      ─► nobody knows, with the broker, running, called back
ended    ─► how
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import isinf

from celeriac.errors import UnknownTask
from celeriac.executor.dependencies import Dependencies
from celeriac.executor.history import History, TaskHistory
from celeriac.executor.priority_queue import Entry, PriorityQueue
from celeriac.executor.publish_retries import PublishRetries
from celeriac.executor.requests import CurrentStatus, Explanation, WaitReason
from celeriac.executor.slots import Slots
from celeriac.executor.tracker import Tracked, Tracker
from celeriac.task.result import Reason
from celeriac.task.state import State
from celeriac.task.task import Task, TaskKey

NEEDS_NAMED = 3  # of what a task still waits for


@dataclass(slots=True, kw_only=True)
class Explainer:
    """Looks at what the executor holds, and changes nothing."""

    queue: PriorityQueue
    dependencies: Dependencies
    slots: Slots
    tracker: Tracker
    publish_retries: PublishRetries
    history: History
    unconfirmed: Mapping[TaskKey, Tracked]
    unstarted_cancels: Mapping[TaskKey, Tracked]
    all_keys_are_text: bool = True

    def note_key(self, key: TaskKey) -> None:
        if type(key) is not str:
            self.all_keys_are_text = False

    def find_keys(self, names: Collection[str]) -> dict[str, list[TaskKey]]:
        """What each name, a key as text, stands for. Looks at every key only if some were no text."""
        found: dict[str, list[TaskKey]] = {name: [] for name in names}
        if self.all_keys_are_text:
            return {name: [name] if self._knows(name) else [] for name in found}
        keys = dict.fromkeys(task.key for task in self.queue.tasks())
        keys |= dict.fromkeys(task.key for task in self.dependencies.tasks())
        keys |= dict.fromkeys(tracked.task.key for tracked in self.tracker)
        keys |= dict.fromkeys(self.history)
        for key in keys:
            if (name := str(key)) in found:
                found[name].append(key)
        return found

    def _knows(self, key: TaskKey) -> bool:
        return key in self.queue or key in self.dependencies or self.history.of(key) is not None

    def explain(self, key: TaskKey, now: float, *, draining: bool) -> Explanation:
        """Raises `UnknownTask`."""
        if (entry := self.queue.get(key) or self.dependencies.get(key)) is not None:
            life = self.history.of_active(key)
            return explanation(entry, State.WAITING, life, self._waiting(entry, life, now, draining=draining))
        if (tracked := self.tracker.get(key)) is not None:
            life = self.history.of_active(key)
            return explanation(tracked.entry, tracked.state, life, self._out(tracked, life, now))
        life = self.history.of(key)
        if life is None or not life.has_ended:
            raise UnknownTask(key)
        return explanation_of_ended(key, life)

    # — waiting —

    def _waiting(self, entry: Entry, life: TaskHistory | None, now: float, *, draining: bool) -> CurrentStatus:
        task = entry.task
        if draining:
            return CurrentStatus(waits_for=WaitReason.NOTHING_MORE, words="waiting: the executor starts nothing more")
        if task.key in self.dependencies:
            return waiting_for(self.dependencies.unmet_needs(task.key))
        if (due := self.queue.due(task.key)) is not None and due > now:
            failed_to_send = life is not None and bool(life.events) and life.events[-1].reason is Reason.PUBLISH_ERROR
            return moment(WaitReason.RETRY, "it is sent again" if failed_to_send else "retry", due - now)
        place = self.queue.place_in_line(task.key)
        if self.publish_retries.paused(now):
            waits, why, facts = self._pause(now)
        else:
            waits, why, facts = self._holding_back(task)
        return CurrentStatus(
            waits_for=waits,
            words=f"waiting: place {place:,} of queue {task.queue!r} (priority {task.priority}); {why}",
            facts={"place": place, "queue": task.queue, "priority": task.priority, **facts},
        )

    def _pause(self, now: float) -> tuple[WaitReason, str, dict[str, int | float | str]]:
        left = round(self.publish_retries.resume_at - now, 3)
        return WaitReason.BROKER, f"the broker is away, next try in {left:.1f} s", {"seconds": left}

    def _holding_back(self, task: Task) -> tuple[WaitReason, str, dict[str, int | float | str]]:
        queue, slots = task.queue, self.slots
        if slots.is_at_limit(task):
            limit = slots.limit_of(queue) or 0
            return WaitReason.LIMIT, f"queue {queue!r} is at its limit of {limit}", {"limit": limit}
        if not slots.is_served(queue):
            return WaitReason.WORKERS, f"no live worker serves queue {queue!r}", {}
        if not slots.queue_has_room(task):
            out = slots.tasks_in_flight(queue)
            if not slots.workers_are_known:
                return WaitReason.WORKERS, "which workers live is not known yet", {}
            tasks = "1 task" if out == 1 else f"{out:,} tasks"
            why = f"the workers of queue {queue!r} have all they can take for now: {tasks}"
            return WaitReason.ROOM, why, {"out": out}
        if task.slots > slots.open:
            facts: dict[str, int | float | str] = {"parallelism": slots.parallelism, "in_use": slots.in_use}
            if slots.open <= 0:
                return WaitReason.SLOTS, f"all {slots.parallelism:,} slots are in use", facts
            why = f"it needs {task.slots:,} slots, and {slots.open:,} of {slots.parallelism:,} are open"
            return WaitReason.SLOTS, why, {**facts, "slots": task.slots}
        first = self._first_in_line()
        if first is not None and first.key != task.key and first.slots > slots.open:
            why = f"a more urgent task needs {first.slots:,} slots, and {slots.open:,} are open"
            return WaitReason.OTHERS, why, {"slots": first.slots, "open": slots.open}
        return WaitReason.HEARTBEAT, "its turn comes with the executor's next heartbeats", {}

    def _first_in_line(self) -> Task | None:
        full: set[str] = set()
        while (task := self.queue.head(besides=full)) is not None and not self.slots.queue_has_room(task):
            full.add(task.queue)
        return task

    # — out —

    def _out(self, tracked: Tracked, life: TaskHistory | None, now: float) -> CurrentStatus:
        key, spent = tracked.task.key, 0.0 if isinf(tracked.moved_at) else max(0.0, now - tracked.moved_at)
        match tracked.state:
            case State.RUNNING if tracked.revoking:
                return CurrentStatus(
                    waits_for=WaitReason.TERMINATION, words="called back, its processes are being ended"
                )
            case State.RUNNING:
                return running(life, spent)
            case _ if tracked.revoking or key in self.unstarted_cancels:
                words = "called back: revoked once it is certain that it does not start"
                return CurrentStatus(waits_for=WaitReason.REVOCATION, words=words)
            case State.PUBLISHING:
                again = max(tracked.resend_at, self.publish_retries.resume_at) - now if key in self.unconfirmed else 0.0
                return moment(WaitReason.CONFIRMATION, "nobody knows whether the broker has it: sent again", again)
        return self._with_the_broker(tracked, spent)

    def _with_the_broker(self, tracked: Tracked, spent: float) -> CurrentStatus:
        task, ahead = tracked.task, self._ahead_of(tracked)
        words = f"queued: with the broker for {spent:.1f} s, {ahead:,} of this executor's tasks before it"
        served = self.slots.is_served(task.queue)
        return CurrentStatus(
            waits_for=WaitReason.START if served else WaitReason.WORKERS,
            words=words if served else f"{words}; no live worker serves queue {task.queue!r}",
            facts={"seconds": round(spent, 3), "ahead": ahead, "queue": task.queue, "level": task.urgency},
        )

    def _ahead_of(self, tracked: Tracked) -> int:
        """Those of its queue that a worker is given sooner: more urgent inside the broker, or sent before."""
        task, place = tracked.task, (-tracked.task.urgency, tracked.moved_at)
        return sum(
            other.state is State.QUEUED
            and other.task.queue == task.queue
            and (-other.task.urgency, other.moved_at) < place
            for other in self.tracker
        )


def waiting_for(needs: list[TaskKey]) -> CurrentStatus:
    named, more = ", ".join(map(repr, needs[:NEEDS_NAMED])), len(needs) - NEEDS_NAMED
    names = f"{named} and {more:,} more" if more > 0 else named
    facts: dict[str, int | float | str] = {"needs": len(needs), "first": str(needs[0])}
    return CurrentStatus(waits_for=WaitReason.NEEDS, words=f"waiting: it needs {names} to end", facts=facts)


def moment(waits_for: WaitReason, words: str, seconds: float) -> CurrentStatus:
    left = max(0.0, round(seconds, 3))
    return CurrentStatus(waits_for=waits_for, words=f"{words} in {left:.1f} s", facts={"seconds": left})


def running(life: TaskHistory | None, spent: float) -> CurrentStatus:
    """For how long is counted from when its start was seen."""
    execution = life.events[-1].execution if life is not None and life.events else None
    facts: dict[str, int | float | str] = {"seconds": round(spent, 3)}
    place = ""
    if execution is not None:
        facts["host"], place = execution.host, f" on {execution.host}"
    return CurrentStatus(waits_for=WaitReason.END, words=f"running{place} for {spent:.1f} s", facts=facts)


def explanation(entry: Entry, state: State, life: TaskHistory | None, now: CurrentStatus) -> Explanation:
    task = entry.task
    return Explanation(
        key=task.key,
        state=state,
        id=task.message_id,
        attempt=task.attempt,
        queue=task.queue,
        priority=task.priority,
        arrived=entry.arrived,
        moves=tuple(life.events) if life is not None else (),
        left_out=life.left_out if life is not None else 0,
        now=now,
    )


def explanation_of_ended(key: TaskKey, life: TaskHistory) -> Explanation:
    last = life.events[-1]
    why = f": {last.detail}" if last.detail else ""
    return Explanation(
        key=key,
        state=last.state,
        id=last.id,
        attempt=last.attempt,
        queue=life.queue,
        priority=life.priority,
        arrived=life.arrived,
        moves=tuple(life.events),
        left_out=life.left_out,
        now=CurrentStatus(waits_for=WaitReason.NOTHING, words=f"ended: {last.state.value}{why}"),
    )
