"""`celeriac logs RUN --failed`: the last words of each attempt that failed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence

import click

from celeriac.cli.formatting import format_seconds, on_one_line
from celeriac.cli.messages import print_message
from celeriac.cli.run_view import print_lines
from celeriac.ledger.attempts import Attempt, failed_attempts
from celeriac.ledger.database import Database
from celeriac.ledger.views import RunView
from celeriac.task.result import Output

FACTS = ("host", "started", "duration", "exit_code", "signal")


def show_failed(database: Database, run: RunView, streams: Sequence[str], *, as_json: bool) -> None:
    attempts = failed_attempts(database, run.id)
    if as_json:
        print_lines(json.dumps(fields_of(attempt, streams)) for attempt in attempts)
        return
    found = False
    for attempt in attempts:
        found = True
        for text in words_of(attempt, streams):
            click.echo(text, nl=False)
    sys.stdout.flush()
    if not found:
        print_message(f"no attempt of run {run.name!r} has failed")


def words_of(attempt: Attempt, streams: Sequence[str]) -> Iterator[str]:
    """Yield a line about the attempt, then the last lines of each stream, without the rest of them."""
    yield f"==> {heading(attempt)} <==\n"
    for name in streams:
        output = output_of(attempt, name)
        if output.tail:
            yield output.tail if output.tail.endswith("\n") else f"{output.tail}\n"
    if all(not output_of(attempt, name).size for name in streams):
        yield "(it wrote nothing)\n"


def heading(attempt: Attempt) -> str:
    """Return the key, the number and why the attempt failed, on one line."""
    reason = attempt.detail or attempt.reason or "failed"
    parts = [reason if attempt.reason is None or attempt.detail is None else f"{attempt.reason}: {attempt.detail}"]
    execution = attempt.execution
    if execution is not None:
        parts += [] if execution.duration is None else [f"after {format_seconds(execution.duration)}"]
        parts += [f"on {execution.host}"]
    return on_one_line(f"{attempt.key}, attempt {attempt.number}: {', '.join(parts)}")


def fields_of(attempt: Attempt, streams: Sequence[str]) -> dict[str, object]:
    """Return the fields of one line of JSON. Those without a value are left out."""
    execution = attempt.execution
    facts = {} if execution is None else {name: getattr(execution, name) for name in FACTS}
    fields: dict[str, object] = {
        "key": attempt.key,
        "attempt": attempt.number,
        "ended": attempt.changed_at,
        "reason": attempt.reason,
        "detail": attempt.detail,
        **facts,
        **{name: output_of(attempt, name).tail for name in streams},
        **{f"{name}_size": output_of(attempt, name).size for name in streams},
    }
    return {name: value for name, value in fields.items() if value is not None}


def output_of(attempt: Attempt, stream: str) -> Output:
    if attempt.execution is None:
        return Output()
    output: Output = getattr(attempt.execution, stream)
    return output
