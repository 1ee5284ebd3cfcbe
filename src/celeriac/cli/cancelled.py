"""Cancelling, once the options are known: who is asked, what all the answers come to, and in what words."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import click

from celeriac.cli.control_options import FAILED, OnBroker, complain, executors_of
from celeriac.cli.formatting import many, on_one_line, seconds
from celeriac.config.settings import Settings
from celeriac.control.wire import ReplyMessage
from celeriac.executor.requests import CancelOutcome, CancelReply, CancelRequest, CancelResult
from celeriac.task.state import State


@dataclass(slots=True, kw_only=True)
class Cancelling:
    keys: tuple[str, ...]
    queues: tuple[str, ...]
    ids: tuple[str, ...]
    wait: float
    fates: list[tuple[CancelResult, str]] = field(default_factory=list)
    """Each with who said so: an executor, or nobody if its id was all that was needed."""

    emptied: Counter[str] = field(default_factory=Counter)
    """By queue, how many were revoked while they waited."""

    errors: list[str] = field(default_factory=list)

    def carry_out(self, settings: Settings, *, local: bool) -> None:
        with executors_of(settings, local=local) as (calls, broker):
            order = CancelRequest(names=tuple(dict.fromkeys(self.keys)), queues=self.queues, wait=self.wait)
            said: dict[str, ReplyMessage] = {}
            for answer in calls.send_request(order) if self.keys or self.queues else ():
                said[answer.channel] = (
                    answer if answer.cancelled or answer.channel not in said else said[answer.channel]
                )
                if answer.error is not None:
                    self.errors.append(f"executor {answer.executor} {answer.error}")
            for answer in said.values():
                if answer.cancelled is not None:
                    self._take(answer.cancelled, answer.executor)
            unknown = [key for key in order.names if all(fate.name != key for fate, _ in self.fates)]
            self._go_without_executor(unknown, broker)

    def _take(self, cancelled: CancelReply, executor: str) -> None:
        self.emptied.update(cancelled.emptied)
        self.fates += [(fate, executor) for fate in cancelled.fates if fate.outcome is not CancelOutcome.UNKNOWN]

    def _go_without_executor(self, unknown: list[str], broker: OnBroker | None) -> None:
        """By id: those that were given, and those under which workers hold what no executor has."""
        ids = {task_id: task_id for task_id in self.ids}
        if broker is not None and (unknown or ids):
            from celeriac.cluster.orphans import OrphanRevoker, held_by_workers

            if unknown:
                held = held_by_workers(broker.app, broker.connection)
                ids |= {one.id: one.key for one in held if one.key in unknown}
            if ids:
                with OrphanRevoker(broker.app, broker.connection, timeout=broker.timeout) as recall:
                    self.fates += [(fate, "") for fate in recall.cancel(ids, wait=self.wait)]
        found = set(ids.values())
        self.fates += [
            (CancelResult(name=key, outcome=CancelOutcome.UNKNOWN), "") for key in unknown if key not in found
        ]

    @property
    def empty_queues(self) -> list[str]:
        """Those of which nothing was called back."""
        out = {fate.queue for fate, _ in self.fates}
        return [queue for queue in dict.fromkeys(self.queues) if not self.emptied[queue] and queue not in out]

    def has_failed(self, fate: CancelResult) -> bool:
        match fate.outcome:
            case CancelOutcome.REVOKED:
                return False
            case CancelOutcome.CALLED_BACK:
                return self.wait > 0 and not is_over(fate)
        return True


def is_over(fate: CancelResult) -> bool:
    return fate.state is not None and fate.state.is_final


def tell(found: Cancelling, *, as_json: bool) -> int:
    """Answers the exit status."""
    for error in found.errors:
        complain(error)
    if as_json:
        click.echo(json.dumps(as_plain(found)))
    else:
        tell_in_words(found)
    failed = found.errors or found.empty_queues or any(found.has_failed(fate) for fate, _ in found.fates)
    return FAILED if failed else 0


def tell_in_words(found: Cancelling) -> None:
    for queue in dict.fromkeys(found.queues):
        if queue in found.empty_queues:
            complain(f"no task of queue {queue!r} waits or is out")
        elif revoked := found.emptied[queue]:
            click.echo(on_one_line(f"queue {queue!r}: {many(revoked, 'task')} revoked while waiting"))
    for fate, _ in found.fates:
        if fate.outcome in (CancelOutcome.REVOKED, CancelOutcome.CALLED_BACK):
            click.echo(on_one_line(f"{fate.name}: {in_words(fate, found.wait)}"))
        else:
            complain(not_cancelled(fate))


def in_words(fate: CancelResult, wait: float) -> str:
    if fate.outcome is CancelOutcome.REVOKED:
        return fate.detail or "revoked"
    if is_over(fate):
        return ended(fate)
    where = {State.RUNNING: "it is being ended", State.QUEUED: "it does not start"}.get(fate.state or State.WAITING)
    said = f"called back: {fate.detail or where or 'it does not start, and is ended if it runs'}"
    return f"{said}; it has not ended in {seconds(wait)}" if wait > 0 else said


def ended(fate: CancelResult) -> str:
    state = fate.state.value if fate.state is not None else "ended"
    return f"{state}: {fate.detail}" if fate.detail else state


def not_cancelled(fate: CancelResult) -> str:
    match fate.outcome:
        case CancelOutcome.HAD_ENDED:
            return f"task {fate.name!r} had ended: {ended(fate)}"
        case CancelOutcome.AMBIGUOUS:
            return f"task {fate.name!r} was not cancelled: {fate.detail}"
    return f"no task {fate.name!r} waits or is out"


def as_plain(found: Cancelling) -> dict[str, Any]:
    return {
        "tasks": [
            {
                "name": fate.name,
                "outcome": fate.outcome.value,
                "state": fate.state.value if fate.state is not None else None,
                "detail": fate.detail,
                "executor": executor or None,
            }
            for fate, executor in found.fates
        ],
        "queues": [{"queue": queue, "revoked": found.emptied[queue]} for queue in dict.fromkeys(found.queues)],
        "errors": found.errors,
    }
