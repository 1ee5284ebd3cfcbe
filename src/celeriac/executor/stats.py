"""Describe an executor in numbers, and as text for a person."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from msgspec import Struct

from celeriac.executor.lifecycle import TaskLifecycle
from celeriac.executor.parts import ExecutorParts
from celeriac.executor.thread_health import ThreadHealth
from celeriac.task.state import State
from celeriac.task.task import TaskKey


class ExecutorStats(Struct, frozen=True, kw_only=True):
    """The counts of one moment. The cost of counting grows with the tasks in flight."""

    tasks_waiting: int
    tasks_blocked: int
    """Waiting tasks whose dependencies have not all ended."""

    tasks_in_flight: int
    tasks_unconfirmed: int
    """Tasks in flight that the broker may or may not have: no receipt confirmed them."""

    tasks_running: int
    """Tasks in flight that a worker has started, as far as is known."""

    slots_in_use: int
    parallelism: int
    draining: bool
    """Whether no more tasks are started."""

    results_ignored: int
    """Late results of attempts that had been given up as lost."""

    queues_without_workers: frozenset[str]
    """The queues whose tasks wait because no live worker serves them. Known with late binding only."""

    task_publish_retries: Mapping[TaskKey, int]
    """Failed attempts to send, by task, of the tasks that are not yet sent."""

    threads: Collection[ThreadHealth] = ()
    """The threads of this process that carry things to servers and back."""


def collect_stats(parts: ExecutorParts, threads: Collection[ThreadHealth]) -> ExecutorStats:
    """Count the tasks and slots of an executor."""
    lifecycle = parts.lifecycle
    return ExecutorStats(
        tasks_waiting=lifecycle.number_waiting,
        tasks_blocked=len(lifecycle.dependencies),
        tasks_in_flight=len(lifecycle.tracker),
        tasks_unconfirmed=len(lifecycle.unconfirmed),
        tasks_running=sum(tracked.state is State.RUNNING for tracked in lifecycle.tracker),
        slots_in_use=lifecycle.slots.in_use,
        parallelism=lifecycle.slots.parallelism,
        draining=lifecycle.draining,
        results_ignored=parts.result_handler.results_ignored,
        queues_without_workers=frozenset(parts.dispatcher.queues_without_workers),
        task_publish_retries=dict(lifecycle.publish_retries.counts),
        threads=threads,
    )


def format_dump(stats: ExecutorStats, lifecycle: TaskLifecycle) -> str:
    """Return the numbers, and a line for each task in flight: its key, id and state, no command and no values."""
    lines = [
        f"slots: {stats.slots_in_use} of {stats.parallelism} in use",
        f"waiting: {stats.tasks_waiting}, of them blocked by dependencies: {stats.tasks_blocked}",
        f"in flight: {stats.tasks_in_flight}, of them not confirmed by the broker: {stats.tasks_unconfirmed}",
        f"late results of lost attempts ignored: {stats.results_ignored}",
    ]
    lines += [
        f"  {tracked.task.key!r} {tracked.state.value} id={tracked.task.message_id} queue={tracked.task.queue!r}"
        f" attempt={tracked.task.attempt}" + (" revoking" if tracked.revoking else "")
        for tracked in lifecycle.tracker
    ]
    lines += [f"  {key!r} could not be sent {tries} times" for key, tries in stats.task_publish_retries.items()]
    lines += [format_thread(thread) for thread in stats.threads]
    return "\n".join(lines)


def format_thread(thread: ThreadHealth) -> str:
    """Return a line about a thread."""
    line = f"thread {thread.name}: " + (f"round of {thread.round_age:.1f} s" if thread.is_alive else "not running")
    if thread.unexpected_errors:
        line += f", unexpected errors: {thread.unexpected_errors}, the last one: {thread.last_error}"
    return line
