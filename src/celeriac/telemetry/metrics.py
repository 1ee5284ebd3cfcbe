"""The table of all metrics: names, labels, meanings. `docs/metrics.md` is generated from it.

No label has a task's key: the number of label values is bounded. See `Telemetry` for queues without number.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct

SECONDS = (0.005, 0.02, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)
SHORT_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


class Kind(StrEnum):
    """The kind of a metric, in the words of Prometheus."""

    COUNTER = "counter"
    """A number that only grows."""

    GAUGE = "gauge"
    """The number of this moment."""

    HISTOGRAM = "histogram"
    """How many observations were at most as large as each of some bounds."""


class Metric(Struct, frozen=True, eq=False):
    """One metric. Sinks add the prefix "celeriac" to its name, each in its own form."""

    name: str
    """In the form of Prometheus, such as `tasks_waiting`."""

    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    """The upper bounds of the buckets of a histogram, in seconds."""


def counter(name: str, help: str, *labels: str) -> Metric:
    return Metric(name, Kind.COUNTER, help, labels)


def gauge(name: str, help: str, *labels: str) -> Metric:
    return Metric(name, Kind.GAUGE, help, labels)


def histogram(name: str, help: str, *labels: str, bounds: tuple[float, ...] = SECONDS) -> Metric:
    return Metric(name, Kind.HISTOGRAM, help, labels, bounds)


# — an executor: the tasks of this moment —

TASKS_WAITING = gauge("tasks_waiting", "Tasks in the executor's queue, blocked ones included.", "queue")
TASKS_BLOCKED = gauge("tasks_blocked", "Waiting tasks whose dependencies have not all ended.")
OLDEST_WAITING = gauge("oldest_waiting_seconds", "Time since the arrival of the task that is first in the queue.")
TASKS_IN_FLIGHT = gauge("tasks_in_flight", "Tasks handed to the broker that have not ended.", "queue")
OLDEST_QUEUED = gauge(
    "oldest_queued_seconds", "The longest time that a task has been at the broker without a start.", "queue"
)
TASKS_RUNNING = gauge("tasks_running", "Tasks in flight that a worker has started, as far as is known.", "queue")
TASKS_UNCONFIRMED = gauge("tasks_unconfirmed", "Tasks in flight that the broker may or may not have.")
SLOTS_IN_USE = gauge("slots_in_use", "Slots of the tasks in flight.")
SLOTS_OPEN = gauge("slots_open", "Slots that are free for more tasks.")
QUEUE_UNSERVED = gauge(
    "queue_unserved", "1 while tasks of the queue wait and no live worker serves it, else 0.", "queue"
)
LIMIT_PLACES = gauge(
    "limit_places", "The number of a limit of a key or a rate, by the key or the queue that it names.", "limit"
)
LIMIT_PLACES_HELD = gauge(
    "limit_places_held", "Places of the limit that the tasks in flight of this executor hold.", "limit"
)

# — an executor: what it sees of its surroundings —

WORKERS = gauge("workers", 'Workers by their leases; state is "live", "draining", "paused" or "suspected".', "state")
WORKERS_DIED = counter("workers_died_total", "Workers that this executor declared dead, because their lease expired.")
QUEUE_SLOTS = gauge("queue_slots", "Tasks that the live workers of a queue run at once.", "queue")
BROKER_AVAILABLE = gauge("broker_available", "1 if the last batch could be sent to the broker, else 0.")
BACKEND_AVAILABLE = gauge("backend_available", "1 if the result backend answered the last read, else 0.")
LEDGER_AVAILABLE = gauge("ledger_available", "1 if the last write to the ledger succeeded, else 0.")
HEARTBEAT_AGE = gauge("heartbeat_age_seconds", "Time since the executor last applied results.")

# — an executor: what happened —

TASKS_QUEUED = counter(
    "tasks_queued_total", "Tasks accepted by the executor, with those that it took over from an earlier one.", "queue"
)
PUBLISHES = counter("publishes_total", "Tasks that the broker confirmed.", "queue")
PUBLISH_RETRIES = counter(
    "publish_retries_total", "Failed attempts to send a task that were followed by another.", "queue"
)
PUBLISH_UNCONFIRMED = counter("publish_unconfirmed_total", "Tasks sent without a confirmation of the broker.", "queue")
TASK_ENDS = counter("task_ends_total", "Tasks that ended.", "queue", "state", "reason")
TASK_RETRIES = counter("task_retries_total", "Attempts that failed and were followed by another.", "queue", "reason")
TASKS_LOST = counter("tasks_lost_total", "Attempts whose worker died, or whose message was nowhere.", "queue")
LATE_RESULTS = counter("late_results_total", "Results of lost attempts that came late and were ignored.")

WAIT_SECONDS = histogram("task_wait_seconds", "From the arrival of a task until the broker took it.", "queue")
START_SECONDS = histogram(
    "task_start_seconds", "From the broker's confirmation until a worker started the task.", "queue"
)
RUN_SECONDS = histogram("task_run_seconds", "From the start of a command to its end.", "queue", "state")
RESULT_DELAY = histogram(
    "result_delay_seconds",
    "From the end of a command to its event: the lag of the change feed. The clocks of two machines are compared.",
    bounds=SHORT_SECONDS,
)
PUBLISH_SECONDS = histogram("publish_seconds", "Sending one batch of tasks.", bounds=SHORT_SECONDS)
HEARTBEAT_SECONDS = histogram(
    "heartbeat_seconds", "One heartbeat: sending tasks and applying results.", bounds=SHORT_SECONDS
)
SYNC_SECONDS = histogram("sync_seconds", "The part of a heartbeat that applies results.", bounds=SHORT_SECONDS)

# — a worker —

WORKER_CONCURRENCY = gauge("worker_concurrency", "Tasks that this worker runs at once.")
WORKER_RUNNING = gauge("worker_running", "Tasks that this worker runs.")
WORKER_DRAINING = gauge("worker_draining", "1 if this worker takes no more tasks, and will stop, else 0.")
WORKER_PAUSED = gauge("worker_paused", "1 if this worker takes no more tasks until it is resumed, else 0.")
WORKER_LEASE_AGE = gauge("worker_lease_age_seconds", "Time since the lease of this worker was renewed.")
WORKER_STARTED = counter("worker_started_total", "Tasks that took a slot of this worker.")
WORKER_ENDS = counter(
    "worker_ends_total", 'Tasks that ended on this worker; the reason of a success is "success".', "reason"
)
WORKER_DROPPED = counter(
    "worker_dropped_total", "Copies of messages, and messages of tasks that were cancelled or run under another id."
)
WORKER_RETURNED = counter(
    "worker_returned_total", "Messages that this worker handed back to the broker, because it shuts down or is paused."
)
WORKER_REFUSED = counter("worker_refused_total", "Malformed, unsigned or modified messages that were refused.")
WORKER_RUN_SECONDS = histogram("worker_run_seconds", "From the time a task took a slot until it left it.", "reason")

# — a web server —

WEB_REQUESTS = counter(
    "web_requests_total",
    'Answers by route and class of status, such as "2xx"; what no route answers is "other".',
    "route",
    "status",
)
WEB_REQUEST_SECONDS = histogram(
    "web_request_seconds", "From the head of a request to that of its answer.", "route", bounds=SHORT_SECONDS
)
WEB_VIEWERS = gauge("web_viewers", "Event streams that are open: viewers of a page, and of `changes`.")
WEB_TOPICS = gauge("web_topics", "Different things that they watch. Each is read once for all of its viewers.")
WEB_POLL_SECONDS = gauge("web_poll_seconds", "Duration of the last read of what is watched.")
WEB_POLL_AGE = gauge("web_poll_age_seconds", "Time since that read. It grows while there is no viewer.")

METRICS = tuple(each for each in list(globals().values()) if isinstance(each, Metric))
"""All metrics, in the order of this page."""
