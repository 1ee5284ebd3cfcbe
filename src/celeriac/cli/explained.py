"""Explaining, once the options are known: who is asked, or what a file says, and how it looks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from celeriac.cli.control_options import executors_of
from celeriac.cli.formatting import on_one_line, seconds
from celeriac.config.settings import Settings
from celeriac.control.wire import decode_event, encode_explanation
from celeriac.errors import InvalidConfig
from celeriac.executor.requests import CurrentStatus, ExplainRequest, Explanation, WaitReason
from celeriac.task.event import Event
from celeriac.task.result import Execution
from celeriac.task.state import State

if TYPE_CHECKING:
    from celeriac.cluster.orphans import HeldTask
    from celeriac.ledger.database import Database
    from celeriac.ledger.views import RunView, TaskView

WIDE = 160  # columns, where there is no terminal
WAITS_FOR = {
    State.WAITING: WaitReason.HEARTBEAT,
    State.PUBLISHING: WaitReason.CONFIRMATION,
    State.QUEUED: WaitReason.START,
    State.RUNNING: WaitReason.END,
}


@dataclass(slots=True)
class Found:
    tales: list[tuple[Explanation, str]] = field(default_factory=list)
    """Each with the executor that told it; nobody for a file."""

    held: list[HeldTask] = field(default_factory=list)
    """What workers have of it, if no executor knows it."""

    errors: list[str] = field(default_factory=list)


def ask(settings: Settings, key: str, *, local: bool) -> Found:
    found = Found()
    with executors_of(settings, local=local) as (calls, broker):
        for answer in calls.send_request(ExplainRequest(name=key)):
            found.tales += [(tale, answer.executor) for tale in answer.explanations()]
            if answer.error is not None:
                found.errors.append(f"executor {answer.executor} {answer.error}")
        if not found.tales and broker is not None:
            from celeriac.cluster.orphans import held_by_workers

            found.held = [one for one in held_by_workers(broker.app, broker.connection) if one.key == key]
    return found


# — a file of events —


def read(path: str, key: str) -> Found:
    """Raises `InvalidConfig`."""
    try:
        with Path(path).open("rb") as file:
            moves = [move for move in moves_in(file, path) if str(move.key) == key]
    except OSError as error:
        raise InvalidConfig("--events", f"{path}: {error.strerror}", "name a file that can be read") from None
    if not moves:
        return Found()
    last = moves[-1]
    told = Explanation(
        key=key, state=last.state, id=last.id, attempt=last.attempt, moves=tuple(moves), now=as_the_file_has_it(last)
    )
    return Found([(told, "")])


def moves_in(file: Iterator[bytes], path: str) -> Iterator[Event]:
    """A last line that is still being written is left out."""
    decoder = msgspec.json.Decoder(dict[str, Any])
    for number, line in enumerate(file, start=1):
        if line.endswith(b"\n") and not line.isspace():
            try:
                yield decode_event(decoder.decode(line))
            except msgspec.MsgspecError as error:
                remedy = "name a file that celeriac run --events wrote"
                raise InvalidConfig("--events", f"{path}:{number}: {error}", remedy) from None


def as_the_file_has_it(last: Event) -> CurrentStatus:
    """Whether the run goes on, the file does not say."""
    if last.state.is_final:
        why = f": {last.detail}" if last.detail else ""
        return CurrentStatus(waits_for=WaitReason.NOTHING, words=f"ended: {last.state.value}{why}")
    retry = last.state is State.WAITING and last.retry_in is not None
    words = f"{last.state.value} since {time_of(last.when)}, as far as the file says"
    return CurrentStatus(waits_for=WaitReason.RETRY if retry else WAITS_FOR[last.state], words=words)


# — the ledger —


def remembered(store: Database, run: str, key: str) -> Found:
    """Raises `InvalidConfig` for a run or a task that it does not know, and `LedgerError`."""
    from celeriac.ledger.views import earlier_events, find_run, find_task

    its_run = find_run(store, run, counted=False)
    seen = find_task(store, its_run, key)
    task = seen.task
    moves = [part for event in earlier_events(store, its_run.id, key) for part in with_its_start(event)]
    if seen.state is not State.WAITING:
        last = Event(
            key=key,
            state=seen.state,
            when=seen.changed_at,
            id=task.message_id,
            attempt=task.attempt,
            reason=seen.reason,
            detail=seen.detail,
            execution=seen.execution,
        )
        moves += with_its_start(last)
    told = Explanation(
        key=key,
        state=seen.state,
        id=task.message_id,
        attempt=task.attempt,
        queue=task.queue,
        priority=task.priority,
        arrived=seen.arrived,
        moves=tuple(moves),
        now=as_the_ledger_has_it(seen, its_run),
    )
    return Found([(told, "")])


def with_its_start(end: Event) -> list[Event]:
    """What ended an attempt tells when that began, too."""
    execution = end.execution
    if execution is None or execution.started is None or end.state is State.RUNNING:
        return [end]
    start = Event(
        key=end.key,
        state=State.RUNNING,
        when=execution.started,
        attempt=end.attempt,
        id=end.id,
        execution=Execution(host=execution.host, pid=execution.pid),
    )
    return [start, end]


def as_the_ledger_has_it(seen: TaskView, run: RunView) -> CurrentStatus:
    if seen.state.is_final:
        why = f": {seen.detail}" if seen.detail else ""
        return CurrentStatus(waits_for=WaitReason.NOTHING, words=f"ended: {seen.state.value}{why}")
    retry = seen.state is State.WAITING and seen.not_before is not None
    words = f"{seen.state.value} since {time_of(seen.changed_at)}"
    words += f", again at {time_of(seen.not_before)}" if seen.not_before is not None and retry else ""
    words += (
        f"; {run.owner} runs it" if run.owner is not None else "; nobody runs it now: celeriac retry goes on with it"
    )
    return CurrentStatus(waits_for=WaitReason.RETRY if retry else WAITS_FOR[seen.state], words=words)


# — how it looks —


def tell(found: Found, *, as_json: bool) -> None:
    if as_json:
        lives = [{**encode_explanation(tale), "executor": executor or None} for tale, executor in found.tales]
        click.echo(msgspec.json.encode({"lives": lives, "workers": found.held}))
        return
    for n, (tale, executor) in enumerate(found.tales):
        if n:
            click.echo()
        tell_one(tale, executor)
    for held in found.held:
        has = "runs it" if held.runs else "has received it"
        click.echo(on_one_line(f"{held.key}: no executor knows it; worker {held.worker} {has}, id {held.id}"))


def tell_one(tale: Explanation, executor: str) -> None:
    from rich.console import Console
    from rich.table import Table

    facts = [str(tale.key), f"id {tale.id}"]
    facts += [f"queue {tale.queue!r}, priority {tale.priority}"] if tale.queue is not None else []
    facts += [f"executor {executor}"] if executor else []
    table = Table("time", "attempt", "state", "where", "why", box=None, pad_edge=False)
    if tale.arrived is not None:
        table.add_row(time_of(tale.arrived), "", "arrived", "", "")
    for n, move in enumerate(tale.moves):
        table.add_row(time_of(move.when), str(move.attempt), move.state.value, place(move), why(move))
        if n == 0 and tale.left_out:
            table.add_row("…", "", "", "", f"{tale.left_out:,} more moves")
    console = Console(markup=False, highlight=False)
    console.width = console.width if console.is_terminal else WIDE
    console.print(on_one_line("  ".join(facts)), soft_wrap=True)
    console.print(table)
    console.print(on_one_line(f"now: {tale.now.words}"), soft_wrap=True)


def time_of(when: float) -> str:
    return datetime.fromtimestamp(when, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def place(move: Event) -> str:
    execution = move.execution
    if execution is None:
        return ""
    return on_one_line(execution.host if execution.pid is None else f"{execution.host}, pid {execution.pid}")


def why(move: Event) -> str:
    parts = [move.detail or (move.reason.value if move.reason is not None else "")]
    if move.execution is not None and move.execution.duration is not None:
        parts.append(f"after {seconds(move.execution.duration)}")
    if move.retry_in is not None:
        parts.append(f"again in {seconds(move.retry_in)}")
    return on_one_line(", ".join(filter(None, parts)))
