"""Compose the parts of an executor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from msgspec import Struct

from celeriac.config.executor_config import Config
from celeriac.executor.adjustments import Adjustments
from celeriac.executor.backoff import MAX_JITTER
from celeriac.executor.capacity import Capacity
from celeriac.executor.dispatcher import CAPACITY_POLL_INTERVAL, Dispatcher
from celeriac.executor.event_reader import EventReader
from celeriac.executor.explain import Explainer
from celeriac.executor.intake import Intake
from celeriac.executor.interfaces import (
    Ledger,
    LostTaskDetector,
    OpenPlaces,
    Publisher,
    ResultReader,
    Revoker,
)
from celeriac.executor.lifecycle import TaskLifecycle
from celeriac.executor.lost_task_schedule import LostTaskSchedule
from celeriac.executor.measures import read_all
from celeriac.executor.recovery import Recovery
from celeriac.executor.result_handler import ResultHandler
from celeriac.executor.revocation import Revocation
from celeriac.telemetry.telemetry import Telemetry

if TYPE_CHECKING:
    from celeriac.executor.start_gate import Readings, StartGate


class ExecutorParts(Struct, frozen=True, kw_only=True):
    """The parts of one executor. They share one `TaskLifecycle`."""

    lifecycle: TaskLifecycle
    intake: Intake
    dispatcher: Dispatcher
    result_handler: ResultHandler
    revocation: Revocation
    explainer: Explainer
    recovery: Recovery
    event_reader: EventReader
    adjustments: Adjustments
    lost_task_schedule: LostTaskSchedule | None
    watches_workers: bool
    """Whether the executor has a `Capacity`."""

    def due_times(self, now: float) -> Iterator[float]:
        """Yield the times at which a heartbeat has something to do, as far as they are known."""
        lifecycle = self.lifecycle
        if (next_look := lifecycle.tracker.next_look()) is not None:
            yield next_look
        if not lifecycle.draining and lifecycle.accepted.is_needed(lifecycle.queue.number_ready):
            yield now
        if (next_send := self.dispatcher.next_send(now)) is not None:
            yield next_send
        if self.lost_task_schedule is not None and lifecycle.tracker:
            yield self.lost_task_schedule.due
        if lifecycle.limits is not None and (renew_due := lifecycle.limits.renew_due) is not None:
            yield renew_due
        if self.watches_workers and lifecycle.unstarted_cancels:
            yield now + CAPACITY_POLL_INTERVAL
        if not lifecycle.draining and (deadline := lifecycle.deadlines.first) is not None:
            yield now + max(0.0, deadline - lifecycle.wall_clock())
        if (write_due := lifecycle.ledger_writer.due) is not None:
            yield write_due

    def end_unstarted(self, now: float) -> None:
        """End the tasks whose deadlines have passed, the lost ones that are not sent again, and the cancelled ones that
        no worker can report. Cancel again what has not ended."""
        self.revocation.end_overdue()
        self.revocation.end_lost()
        self.revocation.end_unserved(now)
        self.revocation.repeat(now)


def compose(
    config: Config,
    *,
    publisher: Publisher,
    results: ResultReader,
    revoker: Revoker,
    capacity: Capacity | None,
    lost_task_detector: LostTaskDetector | None,
    ledger: Ledger | None,
    open_places: OpenPlaces | None,
    outbox: bool,
    clock: Callable[[], float],
    wall_clock: Callable[[], float],
    random: Random,
    telemetry: Telemetry,
    readings: Callable[[], Readings] | None,
) -> ExecutorParts:
    """Build the parts of an executor from its interfaces. The arguments are those of `CeleryExecutor`."""
    schedule = None if lost_task_detector is None else LostTaskSchedule(lost_task_detector, config.search_interval)
    lifecycle = TaskLifecycle(
        config=config,
        ledger=ledger,
        open_places=open_places,
        clock=clock,
        wall_clock=wall_clock,
        random=random,
        telemetry=telemetry,
    )
    start_gate = start_gate_for(config, readings)
    explainer = Explainer(
        queue=lifecycle.queue,
        dependencies=lifecycle.dependencies,
        accepted=lifecycle.accepted,
        slots=lifecycle.slots,
        find_limits=lambda: lifecycle.limits,
        pauses=lifecycle.pauses,
        start_gate=start_gate,
        capacity=capacity,
        tracker=lifecycle.tracker,
        publish_retries=lifecycle.publish_retries,
        history=lifecycle.history,
        unconfirmed=lifecycle.unconfirmed,
        unstarted_cancels=lifecycle.unstarted_cancels,
    )
    result_handler = ResultHandler(
        lifecycle=lifecycle,
        config=config,
        results=results,
        lost_task_schedule=schedule,
        outputs=getattr(results, "outputs", None),
    )
    revocation = Revocation(
        lifecycle=lifecycle,
        result_handler=result_handler,
        revoker=revoker,
        repeat_interval=config.search_interval,
    )
    dispatcher = Dispatcher(
        lifecycle=lifecycle,
        config=config,
        publisher=publisher,
        revoker=revoker,
        revocation=revocation,
        capacity=capacity,
        lost_task_schedule=schedule,
        start_gate=start_gate,
        outbox=outbox,
    )
    recovery = Recovery(
        lifecycle=lifecycle,
        result_handler=result_handler,
        revocation=revocation,
        explainer=explainer,
        lost_task_schedule=schedule,
        ledger=ledger,
        outbox=outbox,
        max_retry_delay=config.retry_delay_max * MAX_JITTER,
    )
    parts = ExecutorParts(
        lifecycle=lifecycle,
        intake=Intake(lifecycle=lifecycle, explainer=explainer),
        dispatcher=dispatcher,
        result_handler=result_handler,
        revocation=revocation,
        explainer=explainer,
        recovery=recovery,
        event_reader=EventReader(lifecycle=lifecycle, config=config, result_handler=result_handler),
        adjustments=Adjustments(lifecycle=lifecycle, dispatcher=dispatcher, start_gate=start_gate),
        lost_task_schedule=schedule,
        watches_workers=capacity is not None,
    )
    telemetry.set_source("executor", partial(read_all, parts, lambda: results.answered))
    return parts


def start_gate_for(config: Config, readings: Callable[[], Readings] | None) -> StartGate | None:
    """Return the gate of an executor; None if it holds no start back. `readings` is None if the tasks run elsewhere."""
    if config.delay == 0 and (readings is None or not config.limits_machine):
        return None
    from celeriac.executor.start_gate import StartGate  # late: few executors have one

    return StartGate(readings, max_load=config.max_load, min_free_memory=config.min_free_memory, delay=config.delay)
