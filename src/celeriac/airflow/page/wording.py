"""Why a task instance waits, and what became of it: one sentence from facts. It imports neither Airflow nor Celery."""

from __future__ import annotations

from dataclasses import dataclass

ENDED = ("success", "failed", "skipped", "upstream_failed", "removed")
MINUTE, HOUR, DAY = 60, 3600, 86400


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the broker and the result backend have a task that was sent."""

    problem: str | None = None
    """One line if the broker or the result backend is unavailable."""

    cancelled: bool = False
    fenced: bool = False
    worker: str | None = None
    """The worker that has claimed the task."""

    worker_age: float | None = None
    """Seconds since the last heartbeat of that worker."""

    worker_is_lost: bool = False
    """Whether that worker is suspected, was declared dead, or has gone."""

    held_by: str | None = None
    """The worker that has received the message, and waits for a free process."""

    waiting: int | None = None
    """How many messages wait in the queue; None if that is unknown."""

    slots: int = 0
    """How many tasks the live workers of the queue run at once."""

    workers: int = 0
    """How many live workers serve the queue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFacts:
    """The latest try of a task instance, according to Airflow's database."""

    state: str | None
    try_number: int = 0
    queue: str = "default"
    pool: str = "default_pool"
    pool_open: int | None = None
    """Open slots of the pool."""

    celery_id: str | None = None
    age: float | None = None
    """Seconds since the state began, as far as the database says."""

    duration: float | None = None
    host: str | None = None
    pid: int | None = None
    heartbeat_age: float | None = None
    """Seconds since Airflow's supervisor sent a heartbeat."""


def sentence(task: TaskFacts, place: Place | None) -> str:
    """Return what the task waits for, or how it ended. `place` is known for queued and running tasks only."""
    match task.state:
        case None | "":
            return "It waits for other tasks of its run, or for the scheduler to look at the run."
        case "scheduled":
            return f"It is scheduled{since(task)}, and waits until the scheduler queues it{pool_limit(task)}."
        case "queued":
            return queued(task, place or Place())
        case "running" | "restarting":
            return running(task, place or Place())
        case "deferred":
            return "It is deferred: a trigger waits for its event, and no worker is busy with it."
        case "up_for_retry":
            return f"Try {task.try_number} failed{at_host(task)}. The next try follows after the retry delay."
        case "up_for_reschedule":
            return "It is a sensor that asks again later: the scheduler queues it again at its next time."
        case state if state in ENDED:
            took = f" after {spoken(task.duration)}" if task.duration is not None else ""
            return f"It has ended: {state}{took}{at_host(task)}."
        case state:
            return f"Its state is {state}."


def queued(task: TaskFacts, place: Place) -> str:
    begin = f"It is queued{since(task)}"
    if task.celery_id is None:
        return f"{begin}. The scheduler's executor has not sent it to the broker yet."
    if place.problem is not None:
        return f"{begin}. Where it is cannot be read now: {place.problem}."
    if place.cancelled:
        return f"{begin}, and was revoked under this id: it cannot start."
    if place.fenced:
        return f"{begin}. Its worker was lost before the task started; the scheduler's executor sends it again."
    if place.worker is not None:
        return f"{begin}. {claimed(place)}"
    if place.held_by is not None:
        return f"{begin}. Worker {place.held_by} has received it, and starts it when one of its processes is free."
    return f"{begin}. {at_the_broker(task, place)}"


def claimed(place: Place) -> str:
    if place.worker_is_lost:
        silent = f"Worker {place.worker} had claimed it and is silent{heard(place)}"
        return f"{silent}; the scheduler's executor sends it again."
    return f"Worker {place.worker} has claimed it{heard(place)}, and is starting it."


def at_the_broker(task: TaskFacts, place: Place) -> str:
    if not place.workers:
        remedy = "start one that does, or change the queue of the task"
        return f"No worker with a lease serves the queue {task.queue!r}{in_queue(place)}: {remedy}."
    workers = number(place.workers, "worker")
    if place.waiting == 0:
        taker = "its worker" if place.workers == 1 else f"one of {workers}"
        return f"Its message has left the queue {task.queue!r}, and {taker} is about to claim it."
    return (
        f"Its message is in the queue {task.queue!r}{in_queue(place)}. The queue has"
        f" {workers} with {number(place.slots, 'slot')}: it starts when one of them is free."
    )


def running(task: TaskFacts, place: Place) -> str:
    where = f" on {task.host}" if task.host else ""
    where += f" (pid {task.pid})" if where and task.pid else ""
    begin = f"It runs{where}{since(task)}"
    heartbeat = (
        f" Its supervisor sent the last heartbeat {spoken(task.heartbeat_age)} ago."
        if task.heartbeat_age is not None
        else ""
    )
    if place.worker is None:
        return f"{begin}.{heartbeat}"
    if place.worker_is_lost:
        silent = f"{begin}. Worker {place.worker} is silent{heard(place)}"
        return f"{silent}: the task fails as lost, so that its retries apply.{heartbeat}"
    return f"{begin}, in worker {place.worker}{heard(place)}.{heartbeat}"


def since(task: TaskFacts) -> str:
    return f" for {spoken(task.age)}" if task.age is not None else ""


def pool_limit(task: TaskFacts) -> str:
    if task.pool_open is None:
        return ""
    if task.pool_open <= 0:
        return f": the pool {task.pool!r} has no open slot"
    return f": the pool {task.pool!r} has {number(task.pool_open, 'open slot')}, and the limits of the DAG also count"


def at_host(task: TaskFacts) -> str:
    return f" on {task.host}" if task.host else ""


def heard(place: Place) -> str:
    return f" (last heartbeat {spoken(place.worker_age)} ago)" if place.worker_age is not None else ""


def in_queue(place: Place) -> str:
    wait = "waits" if place.waiting == 1 else "wait"
    return f", in which {number(place.waiting, 'message')} {wait}" if place.waiting else ""


def number(count: int | None, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count or 0:,} {what}s"


def spoken(seconds: float | None) -> str:
    """Return a duration in one or two units."""
    if seconds is None:
        return "?"
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    if whole < 2 * MINUTE:
        return f"{whole} s"
    if whole < 2 * HOUR:
        return f"{whole // MINUTE} min"
    if whole < 2 * DAY:
        return f"{whole // HOUR} h {whole % HOUR // MINUTE} min"
    return f"{whole // DAY} days"
