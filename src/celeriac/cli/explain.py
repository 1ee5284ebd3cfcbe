"""`celeriac explain`: the history of one task and what it waits for.

executors on the broker, or on this machine ─┐
the file that `run --events` wrote ──────────┼─► Findings ─► text or JSON
the ledger (--run) ──────────────────────────┘
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from celeriac.cli.completion import complete_key, complete_run
from celeriac.cli.control_options import exit_on_error, local_option, open_control_client
from celeriac.cli.exit_status import FAILED
from celeriac.cli.formatting import format_seconds, on_one_line
from celeriac.cli.help_sections import SectionedCommand
from celeriac.cli.ledger_options import find_named_run, ledger_option, ledger_to_read, open_ledger
from celeriac.cli.messages import print_message
from celeriac.cli.options import check_local, check_text, connection_options, json_option
from celeriac.cli.path_completion import complete_file
from celeriac.cli.rich_tables import new_console, new_table
from celeriac.config.settings import Settings, read_settings
from celeriac.control.wire import decode_event, encode_explanation
from celeriac.errors import InvalidConfig, LedgerError
from celeriac.executor.requests import CurrentStatus, ExplainRequest, Explanation, WaitReason
from celeriac.executor.stored_status import WAITS_FOR, ended_status, in_milliseconds
from celeriac.task.event import Event
from celeriac.task.state import State

if TYPE_CHECKING:
    from celeriac.cluster.orphans import HeldTask
    from celeriac.ledger.database import Database
    from celeriac.ledger.views import RunView

PIPE_WIDTH = 160  # columns


@click.command(cls=SectionedCommand)
@click.argument("key", shell_complete=complete_key)
@click.option(
    "--events", metavar="FILE", shell_complete=complete_file, help="Read FILE, which `celeriac run --events` wrote."
)
@click.option("--run", "run", metavar="RUN", shell_complete=complete_run, help="Read this run in the ledger.")
@ledger_option
@connection_options
@local_option
@json_option
@exit_on_error
def explain(
    key: str,
    events: str | None,
    run: str | None,
    ledger: str | None,
    config: str | None,
    local: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Show the history of the task KEY: each event with its time, place and reason, and what the task waits for now.

    If a broker is given here or in the configuration, its executors are asked; otherwise the runs of this user on this
    machine. An executor knows its waiting tasks, its tasks in flight, and the last 10,000 tasks that ended. The ledger
    (--run) knows all tasks of a run, however old: each attempt, without the events in between. If no executor knows
    the task, the latest run in the ledger is read.

    Exit status: 0; 1 if the task is not known; 2 bad input.
    """
    check_text("KEY", key, *filter(None, [run]))
    check_local(options, local=local)
    if events is not None and run is not None:
        raise click.UsageError("give either --events or --run")
    if run is not None or ledger is not None:
        with ledger_to_read(ledger, config) as opened:
            findings = find_in_ledger(opened.database, find_named_run(opened.database, run, counted=False), key)
    elif events is not None:
        findings = find_in_file(events, key)
    else:
        settings = read_settings(options, config=config)
        findings = ask_executors(settings, key, local=local)
        if not findings:
            findings.add_latest_run(settings, key)
    for error in findings.errors:
        print_message(error)
    print_findings(findings, as_json=as_json)
    if not findings:
        print_message(f"no task {key!r} is known")
        sys.exit(FAILED)


@dataclass(slots=True)
class Findings:
    """All known facts about a task."""

    histories: list[tuple[Explanation, str]] = field(default_factory=list)
    """Each history with the executor that sent it; "" for a file or a ledger."""

    held: list[HeldTask] = field(default_factory=list)
    """The workers that have the task, if no executor knows it."""

    errors: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.histories or self.held)

    def add_latest_run(self, settings: Settings, key: str) -> None:
        """Add the attempts of a task in the latest run, if there is a ledger, a run and such a task."""
        try:
            with open_ledger(settings, read_only=True) as opened:
                run = find_named_run(opened.database, None, counted=False)
                self.histories += find_in_ledger(opened.database, run, key).histories
        except InvalidConfig:
            return
        except LedgerError as error:
            self.errors.append(str(error))
            return
        print_message(f"no run that is active has {key!r}; this is what the latest run, {run.name!r}, recorded")


def ask_executors(settings: Settings, key: str, *, local: bool) -> Findings:
    findings = Findings()
    with open_control_client(settings, local=local) as (client, broker):
        for reply in client.send_request(ExplainRequest(name=key)):
            findings.histories += [(history, reply.executor) for history in reply.explanations()]
            if reply.error is not None:
                findings.errors.append(f"executor {reply.executor} {reply.error}")
        if not findings.histories and broker is not None:
            from celeriac.cluster.orphans import held_by_workers  # imports Celery

            findings.held = [task for task in held_by_workers(broker.app, broker.connection) if task.key == key]
    return findings


# — a file of events —


def find_in_file(path: str, key: str) -> Findings:
    """Read the events of a task. Raises `InvalidConfig`."""
    try:
        with Path(path).open("rb") as file:
            events = [event for event in events_in(file, path) if str(event.key) == key]
    except OSError as error:
        raise InvalidConfig("--events", f"{path}: {error.strerror}", "name a file that can be read") from None
    if not events:
        return Findings()
    last = events[-1]
    history = Explanation(
        key=key, state=last.state, id=last.id, attempt=last.attempt, moves=tuple(events), now=status_in_file(last)
    )
    return Findings([(history, "")])


def events_in(file: Iterator[bytes], path: str) -> Iterator[Event]:
    """Yield complete lines. The last line may still be being written."""
    decoder = msgspec.json.Decoder(dict[str, Any])
    for number, line in enumerate(file, start=1):
        if line.endswith(b"\n") and not line.isspace():
            try:
                yield decode_event(decoder.decode(line))
            except msgspec.MsgspecError as error:
                remedy = "name a file that celeriac run --events wrote"
                raise InvalidConfig("--events", f"{path}:{number}: {error}", remedy) from None


def status_in_file(last: Event) -> CurrentStatus:
    """Return the status after the last event. A file does not show whether its run has ended."""
    if last.state.is_final:
        return ended_status(last.state, last.detail)
    retry = last.state is State.WAITING and last.retry_in is not None
    words = f"{last.state.value} since {in_milliseconds(last.when)}, according to the file"
    return CurrentStatus(waits_for=WaitReason.RETRY if retry else WAITS_FOR[last.state], words=words)


# — the ledger —


def find_in_ledger(database: Database, run: RunView, key: str) -> Findings:
    """Read the attempts of a task of a run. Raises `InvalidConfig` for an unknown task, and `LedgerError`."""
    from celeriac.ledger.explanation import explain_from_ledger  # imports SQLAlchemy

    return Findings([(explain_from_ledger(database, run, key), "")])


# — text and JSON —


def print_findings(findings: Findings, *, as_json: bool) -> None:
    if as_json:
        lives = [
            {**encode_explanation(history), "executor": executor or None} for history, executor in findings.histories
        ]
        click.echo(msgspec.json.encode({"lives": lives, "workers": findings.held}))
        return
    for n, (history, executor) in enumerate(findings.histories):
        if n:
            click.echo()
        print_history(history, executor)
    for task in findings.held:
        verb = "runs it" if task.runs else "has received it"
        click.echo(on_one_line(f"{task.key}: no executor knows it; worker {task.worker} {verb}, id {task.id}"))


def print_history(history: Explanation, executor: str) -> None:
    facts = [str(history.key), f"id {history.id}"]
    facts += [f"queue {history.queue!r}, priority {history.priority}"] if history.queue is not None else []
    facts += [f"executor {executor}"] if executor else []
    table = new_table("time", "attempt", "state", "place", "reason")
    if history.arrived is not None:
        table.add_row(in_milliseconds(history.arrived), "", "arrived", "", "")
    for n, event in enumerate(history.moves):
        table.add_row(in_milliseconds(event.when), str(event.attempt), event.state.value, place(event), reason(event))
        if n == 0 and history.left_out:
            table.add_row("…", "", "", "", f"{history.left_out:,} more events")
    console = new_console(pipe_width=PIPE_WIDTH)
    console.print(on_one_line("  ".join(facts)), soft_wrap=True)
    console.print(table)
    console.print(on_one_line(f"now: {history.now.words}"), soft_wrap=True)


def place(event: Event) -> str:
    execution = event.execution
    if execution is None:
        return ""
    return on_one_line(execution.host if execution.pid is None else f"{execution.host}, pid {execution.pid}")


def reason(event: Event) -> str:
    parts = [event.detail or (event.reason.value if event.reason is not None else "")]
    if event.execution is not None and event.execution.duration is not None:
        parts.append(f"after {format_seconds(event.execution.duration)}")
    if event.retry_in is not None:
        parts.append(f"next attempt in {format_seconds(event.retry_in)}")
    return on_one_line(", ".join(filter(None, parts)))
