"""`celeriac cancel`: cancel tasks through their executors, through workers, or through the ledger.

KEY, --queue ─► executors on the broker, or on this machine ─┬─► CancelResult for each task
--id, and KEYs that no executor has ─► claims and workers ───┤
--run ─► ledger ─► the owner of the run ─────────────────────┘
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from celeriac.cli.completion import complete_key, complete_run
from celeriac.cli.control_options import BrokerAccess, exit_on_error, local_option, open_control_client, wait_option
from celeriac.cli.exit_status import FAILED
from celeriac.cli.formatting import count, format_seconds, on_one_line
from celeriac.cli.help_sections import SectionedCommand
from celeriac.cli.ledger_options import open_ledger
from celeriac.cli.messages import print_message
from celeriac.cli.options import check_local, check_text, connection_options, json_option
from celeriac.cli.url_options import url_option
from celeriac.config.settings import Settings, read_settings
from celeriac.control.wire import ReplyMessage
from celeriac.errors import InvalidConfig
from celeriac.executor.requests import CancelOutcome, CancelReply, CancelRequest, CancelResult
from celeriac.task.state import State

if TYPE_CHECKING:
    from celeriac.ledger.run_store import RunStore
    from celeriac.runs.cancellation import AskOwner


@click.command(cls=SectionedCommand)
@click.argument("keys", nargs=-1, metavar="[KEY]...", shell_complete=complete_key)
@click.option("--queue", "queues", multiple=True, metavar="NAME", help="Cancel all tasks of this queue. Repeatable.")
@click.option("--id", "ids", multiple=True, metavar="ID", help="Cancel the task with this Celery id. Repeatable.")
@click.option(
    "--run",
    "run",
    metavar="NAME",
    shell_complete=complete_run,
    help="Cancel these KEYs of a run in the ledger; without a KEY, the whole run.",
)
@url_option("ledger", metavar="PATH|URL", help="The ledger of --run. [default: the user's own]")
@connection_options
@local_option
@wait_option
@json_option
@exit_on_error
def cancel(
    keys: tuple[str, ...],
    queues: tuple[str, ...],
    ids: tuple[str, ...],
    run: str | None,
    ledger: str | None,
    config: str | None,
    local: bool,
    wait: float,
    as_json: bool,
    **options: Any,
) -> None:
    """Cancel tasks of another process: of a `celeriac run`, or of your own scheduler.

    A waiting task leaves its queue at once. A task at the broker never starts, even on a worker that starts later. A
    running task gets TERM, and KILL after its grace. With --wait the command returns when the tasks have ended.

    If a broker is given here or in the configuration, its executors are asked; otherwise the runs of this user on this
    machine. Keys that no executor knows are looked for at the workers.

    With --run the request goes through the ledger. The service that owns the run acts on it within two seconds. A
    `celeriac run` that owns it is asked itself. If no process owns the run, waiting tasks are revoked at once, and the
    next owner cancels those in flight.

    Exit status: 0; 1 if a task was not found, had already ended, or did not end in time; 2 bad input.
    """
    if not keys and not queues and not ids and run is None:
        raise click.UsageError("name a KEY, a --queue or an --id, or a --run")
    check_text("KEY, --queue, --id", *keys, *queues, *ids)
    check_text("--run", run or "")
    check_local(options, local=local)
    settings = read_settings({**options, "ledger": ledger}, config=config)
    if run is not None:
        if queues or ids or local or options["broker"]:
            raise click.UsageError("--run takes KEYs, but not --queue, --id, --local or --broker")
        sys.exit(cancel_through_ledger(settings, run, keys, wait=wait, as_json=as_json))
    if ledger is not None:
        raise click.UsageError("--ledger needs --run")
    if ids and (local or settings.values["broker"].value is None):
        raise InvalidConfig("--id", "needs a broker", "give --broker, or the KEY instead")
    cancellation = Cancellation(keys=keys, queues=queues, ids=ids, wait=wait)
    cancellation.send(settings, local=local)
    status = report(cancellation, as_json=as_json)
    is_known = any(result.outcome is not CancelOutcome.UNKNOWN for result, _ in cancellation.results)
    if status == FAILED and not is_known and (local or settings.values["broker"].value is None):
        print_message("only the runs on this machine were asked; for those on a broker, give --broker-file")
    sys.exit(status)


@dataclass(slots=True, kw_only=True)
class Cancellation:
    """A request to cancel tasks, and the results so far."""

    keys: tuple[str, ...]
    queues: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    wait: float
    results: list[tuple[CancelResult, str]] = field(default_factory=list)
    """Each result with the executor that sent it; "" for a result without an executor."""

    emptied: Counter[str] = field(default_factory=Counter)
    """How many tasks of each queue were revoked while they waited."""

    errors: list[str] = field(default_factory=list)

    def send(self, settings: Settings, *, local: bool) -> None:
        """Ask all executors, then cancel by id. Raises `BrokerUnavailable` and `BackendUnavailable`."""
        with open_control_client(settings, local=local) as (client, broker):
            request = CancelRequest(names=tuple(dict.fromkeys(self.keys)), queues=self.queues, wait=self.wait)
            last_replies: dict[str, ReplyMessage] = {}
            for reply in client.send_request(request) if self.keys or self.queues else ():
                if reply.cancelled or reply.channel not in last_replies:
                    last_replies[reply.channel] = reply
                if reply.error is not None:
                    self.errors.append(f"executor {reply.executor} {reply.error}")
            for reply in last_replies.values():
                if reply.cancelled is not None:
                    self._add(reply.cancelled, reply.executor)
            unknown = [key for key in request.names if all(result.name != key for result, _ in self.results)]
            self._cancel_by_id(unknown, broker)

    def _add(self, reply: CancelReply, executor: str) -> None:
        self.emptied.update(reply.emptied)
        results = (result for result in reply.fates if result.outcome is not CancelOutcome.UNKNOWN)
        self.results += [(result, executor) for result in results]

    def _cancel_by_id(self, unknown: list[str], broker: BrokerAccess | None) -> None:
        """Cancel the given ids, and the ids of unknown keys that workers hold."""
        ids = {task_id: task_id for task_id in self.ids}
        if broker is not None and (unknown or ids):
            from celeriac.cluster.orphans import OrphanRevoker, held_by_workers  # imports Celery

            if unknown:
                held = held_by_workers(broker.app, broker.connection)
                ids |= {task.id: task.key for task in held if task.key in unknown}
            if ids:
                with OrphanRevoker(broker.app, connection=broker.connection, timeout=broker.timeout) as revoker:
                    self.results += [(result, "") for result in revoker.cancel(ids, wait=self.wait)]
        missing = (key for key in unknown if key not in ids.values())
        self.results += [(CancelResult(name=key, outcome=CancelOutcome.UNKNOWN), "") for key in missing]

    @property
    def empty_queues(self) -> list[str]:
        """The queues in which no task was cancelled."""
        queues_in_flight = {result.queue for result, _ in self.results}
        return [
            queue for queue in dict.fromkeys(self.queues) if not self.emptied[queue] and queue not in queues_in_flight
        ]

    @property
    def has_failed(self) -> bool:
        return bool(self.errors or self.empty_queues or any(self._is_failure(result) for result, _ in self.results))

    def _is_failure(self, result: CancelResult) -> bool:
        match result.outcome:
            case CancelOutcome.REVOKED:
                return False
            case CancelOutcome.CALLED_BACK:
                return self.wait > 0 and not has_ended(result)
        return True


def has_ended(result: CancelResult) -> bool:
    return result.state is not None and result.state.is_final


# — report —


def report(cancellation: Cancellation, *, as_json: bool) -> int:
    """Print the results. Return the exit status."""
    for error in cancellation.errors:
        print_message(error)
    if as_json:
        click.echo(json.dumps(as_fields(cancellation)))
    else:
        print_results(cancellation)
    return FAILED if cancellation.has_failed else 0


def print_results(cancellation: Cancellation) -> None:
    for queue in dict.fromkeys(cancellation.queues):
        if queue in cancellation.empty_queues:
            print_message(f"no task of queue {queue!r} is waiting or in flight")
        elif revoked := cancellation.emptied[queue]:
            click.echo(on_one_line(f"queue {queue!r}: {count(revoked, 'task')} revoked while waiting"))
    for result, _ in cancellation.results:
        if result.outcome in (CancelOutcome.REVOKED, CancelOutcome.CALLED_BACK):
            click.echo(on_one_line(f"{result.name}: {describe_cancelled(result, cancellation.wait)}"))
        else:
            print_message(describe_failure(result))


def describe_cancelled(result: CancelResult, wait: float) -> str:
    if result.outcome is CancelOutcome.REVOKED:
        return result.detail or "revoked"
    if has_ended(result):
        return describe_end(result)
    match result.state:
        case State.RUNNING:
            default = "its processes are being ended"
        case State.QUEUED:
            default = "it will not start"
        case _:
            default = "it will not start; if it runs, it is ended"
    text = f"cancelling: {result.detail or default}"
    return f"{text}; not ended after {format_seconds(wait)}" if wait > 0 else text


def describe_end(result: CancelResult) -> str:
    state = result.state.value if result.state is not None else "ended"
    return f"{state}: {result.detail}" if result.detail else state


def describe_failure(result: CancelResult) -> str:
    match result.outcome:
        case CancelOutcome.HAD_ENDED:
            return f"task {result.name!r} had already ended: {describe_end(result)}"
        case CancelOutcome.AMBIGUOUS:
            return f"task {result.name!r} was not cancelled: {result.detail}"
    return f"no task {result.name!r} is waiting or in flight"


def as_fields(cancellation: Cancellation) -> dict[str, Any]:
    emptied = cancellation.emptied
    return {
        "tasks": [
            {
                "name": result.name,
                "outcome": result.outcome.value,
                "state": result.state.value if result.state is not None else None,
                "detail": result.detail,
                "executor": executor or None,
            }
            for result, executor in cancellation.results
        ],
        "queues": [{"queue": queue, "revoked": emptied[queue]} for queue in dict.fromkeys(cancellation.queues)],
        "errors": cancellation.errors,
    }


# — through the ledger —


def cancel_through_ledger(settings: Settings, name: str, keys: tuple[str, ...], *, wait: float, as_json: bool) -> int:
    """Cancel tasks of a run. Return the exit status. Raises `InvalidConfig` and `LedgerError`."""
    with open_ledger(settings, must_exist=True) as ledger:
        run = ledger.find_run(name)
        if run is None:
            raise InvalidConfig("--run", f"there is no run {name!r}", "use the name that celeriac submit printed")
        if keys:
            return cancel_keys(settings, ledger, run, name, tuple(dict.fromkeys(keys)), wait=wait, as_json=as_json)
        return cancel_whole_run(settings, ledger, run, name, wait=wait, as_json=as_json)


def cancel_keys(
    settings: Settings, ledger: RunStore, run: int, name: str, keys: tuple[str, ...], *, wait: float, as_json: bool
) -> int:
    from celeriac.runs.cancellation import cancel_tasks  # imports SQLAlchemy

    results, owner = cancel_tasks(ledger, run, name, keys, wait=wait, ask_owner=asker(settings, name))
    cancellation = Cancellation(keys=keys, wait=wait, results=[(result, owner or "") for result in results])
    return report(cancellation, as_json=as_json)


def cancel_whole_run(settings: Settings, ledger: RunStore, run: int, name: str, *, wait: float, as_json: bool) -> int:
    from celeriac.runs.cancellation import cancel_run  # imports SQLAlchemy

    result = cancel_run(ledger, run, name, wait=wait, ask_owner=asker(settings, name))
    if as_json:
        click.echo(json.dumps(result.fields()))
    elif result.had_ended:
        print_message(f"run {name!r} had already ended")
    else:
        text = f"run {name!r}: {count(result.revoked, 'task')} revoked"
        click.echo(on_one_line(text + (describe_left(result.left, result.owner, wait) if result.left else "")))
    return FAILED if result.had_ended or (wait and result.left) else 0


def asker(settings: Settings, name: str) -> AskOwner:
    """Return how to ask the owner of a run that takes no requests through the ledger: a `celeriac run`."""
    from celeriac.cli.owner_options import asked_by, live_owner  # imports SQLAlchemy

    return lambda label, keys: live_owner(settings, run=name, label=label, asked_by=asked_by("cancel")).cancel(keys)


def describe_left(left: int, owner: str | None, wait: float) -> str:
    """Return the second half of a sentence: how many tasks have not ended, and which owner will cancel them."""
    late = f"; not ended after {format_seconds(wait)}" if wait else ""
    if owner is None:
        return f", {left:,} more to cancel{late}; no service owns this run, so its next owner will cancel them"
    return f", {left:,} more being cancelled by {owner}{late}"
