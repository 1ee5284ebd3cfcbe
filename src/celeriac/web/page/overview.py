"""The first page: throughput, failures, queues, workers and the latest runs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import QueryParams

from celeriac.cluster.status_parts import QueueStatus, Status, WorkerStatus
from celeriac.errors import BackendUnavailable, BrokerUnavailable
from celeriac.ledger.views import RunState, RunView
from celeriac.task.state import State
from celeriac.web.page.charts import Chart, chart_of
from celeriac.web.reads import Reads
from celeriac.web.statistics import RunStatistics
from celeriac.web.task_pages import TaskFilter

RUNS_SHOWN = 12
WINDOW = 3600.0  # seconds of the graph, at most
RATE_SPAN = 60.0  # seconds
SMALL_RUN = 20_000  # tasks: such a run is counted while a page is made
TASKS_SHOWN = 6  # for each worker
IN_FLIGHT = TaskFilter(states=(State.PUBLISHING, State.QUEUED, State.RUNNING))
MAX_IN_FLIGHT = 1_000  # tasks of a run that are looked up for the workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """The sums over the runs of the page."""

    active: int = 0
    waiting: int = 0
    in_flight: int = 0
    failed: int = 0
    rate: float = 0.0
    rate_span: float = RATE_SPAN


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownQueue:
    """A queue as the ledger and the broker know it."""

    name: str
    waiting: int | None
    """Tasks that wait in the runs of the page; None if they are not counted yet."""

    broker: QueueStatus | None
    """None without a broker, or if the broker does not know it."""

    @property
    def is_unserved(self) -> bool:
        """Whether tasks wait that no worker takes."""
        return self.broker is not None and bool(self.broker.waiting) and not self.broker.slots


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningTask:
    run: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Slots:
    used: int
    all: int


@dataclass(slots=True)
class ShownWorker:
    """A worker and some of its tasks."""

    status: WorkerStatus
    tasks: Sequence[RunningTask] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.status.name

    @property
    def state(self) -> str:
        return self.status.state

    @property
    def queues(self) -> Sequence[str]:
        return self.status.queues

    @property
    def running(self) -> int | None:
        return self.status.running

    @property
    def concurrency(self) -> int | None:
        return self.status.concurrency

    @property
    def heartbeat_age(self) -> float | None:
        return self.status.heartbeat_age

    @property
    def more_tasks(self) -> int:
        return max(0, (self.status.running or 0) - len(self.tasks))


def overview_values(reads: Reads, _: QueryParams, *, is_live: bool) -> dict[str, Any]:
    """Return the values of the page. A live one may take longer, because no viewer waits for it."""
    runs = None if reads.sources.ledger is None else reads.runs(limit=RUNS_SHOWN, wait=is_live)
    statistics = [] if runs is None else [statistics_of(reads, run, wait=is_live) for run in recent(runs)]
    known = [each for each in statistics if each is not None]
    is_counting = len(known) < len(statistics)
    chart = throughput(runs or (), known)
    broker, problem = broker_of(reads)
    waiting = waiting_of(reads, runs or (), wait=is_live)
    failures: Counter[str] = Counter()
    for each in known:
        failures.update(each.failures)
    return {
        "runs": runs,
        "totals": totals_of(runs or (), chart),
        "chart": chart,
        "is_counting": is_counting,
        "failures": None if is_counting and not failures else failures.most_common(),
        "broker": broker,
        "broker_problem": problem,
        "queues": queues_of(broker, waiting),
        "is_counting_queues": waiting is None,
        "workers": [] if broker is None else workers_of(broker, tasks_in_flight(reads, runs or ())),
        "slots": slots_of(broker),
    }


def recent(runs: Sequence[RunView]) -> list[RunView]:
    """Return the runs whose tasks end now or have ended in the window of the graph."""
    since = time.time() - WINDOW
    return [run for run in runs if run.ended is None or run.ended > since or run is runs[0]]


def statistics_of(reads: Reads, run: RunView, *, wait: bool) -> RunStatistics | None:
    """Return the statistics of a run. A large run is counted only where no viewer waits."""
    return reads.statistics(run.name, wait=wait or run.counts.tasks <= SMALL_RUN)


def throughput(runs: Sequence[RunView], statistics: Sequence[RunStatistics]) -> Chart | None:
    """Return the graph of the last hour; while nothing runs, that of the last run."""
    if not runs or not statistics:
        return None
    shown, now = recent(runs), time.time()
    is_active = any(run.state is RunState.RUNNING for run in shown)
    ends = [end_of(run) for run in shown]
    end = now if is_active else max(ends)
    begin = max(end - WINDOW, min(run.created for run in shown))
    return chart_of(statistics, begin, end)


def end_of(run: RunView) -> float:
    return run.ended or run.counts.last_change or run.created


def totals_of(runs: Sequence[RunView], chart: Chart | None) -> Totals:
    active = [run for run in runs if run.state is RunState.RUNNING]
    unfinished = [run for run in runs if run.state is not RunState.ENDED]
    is_current = chart is not None and time.time() - chart.times[-1] < 2 * RATE_SPAN
    return Totals(
        active=len(active),
        waiting=sum(run.counts.waiting for run in unfinished),
        in_flight=sum(run.counts.in_flight for run in unfinished),
        failed=sum(run.counts.failed for run in runs),
        rate=chart.last_rate(RATE_SPAN) if chart is not None and is_current else 0.0,
    )


def broker_of(reads: Reads) -> tuple[Status | None, str | None]:
    """Return the queues and workers, or a sentence that says why they are unknown; neither without a broker."""
    if reads.sources.connection is None:
        return None, None
    try:
        return reads.broker(), None
    except (BrokerUnavailable, BackendUnavailable) as error:
        return None, str(error)


def waiting_of(reads: Reads, runs: Sequence[RunView], *, wait: bool) -> Counter[str] | None:
    """Return the waiting tasks of the unfinished runs by queue; None if they are not counted yet. Large runs are read
    where no viewer waits."""
    waiting: Counter[str] = Counter()
    for run in runs:
        if run.state is not RunState.ENDED and run.counts.waiting > run.unrecorded:
            counted = reads.waiting(run, wait=wait or run.counts.tasks <= SMALL_RUN)
            if counted is None:
                return None
            waiting.update(counted)
    return waiting


def queues_of(broker: Status | None, waiting: Counter[str] | None) -> list[ShownQueue]:
    """Return the queues of the broker, then those in which only the ledger has tasks."""
    at_broker = {queue.name: queue for queue in broker.queues} if broker is not None else {}
    names = [*at_broker, *(name for name, _ in (waiting or Counter()).most_common() if name not in at_broker)]
    return [
        ShownQueue(name=name, waiting=None if waiting is None else waiting[name], broker=at_broker.get(name))
        for name in names
    ]


def tasks_in_flight(reads: Reads, runs: Sequence[RunView]) -> dict[str, RunningTask]:
    """Return tasks in flight by the ids that workers know them by. A worker may know before the ledger that it runs
    one."""
    return {
        view.task.message_id: RunningTask(run=run.name, key=str(view.task.key))
        for run in runs
        if run.state is not RunState.ENDED and run.counts.in_flight
        for view in reads.tasks(run.name, IN_FLIGHT, after=None, limit=MAX_IN_FLIGHT).tasks
    }


def workers_of(broker: Status, tasks: Mapping[str, RunningTask]) -> list[ShownWorker]:
    """Return the workers with some of the tasks that each runs."""
    return [
        ShownWorker(worker, [tasks[task] for task in worker.tasks or () if task in tasks][:TASKS_SHOWN])
        for worker in broker.workers
    ]


def slots_of(broker: Status | None) -> Slots | None:
    """Return how many slots of the live workers are in use."""
    if broker is None or not broker.workers:
        return None
    live = [worker for worker in broker.workers if not worker.is_suspected]
    return Slots(used=sum(w.running or 0 for w in live), all=sum(w.concurrency or 0 for w in live))
