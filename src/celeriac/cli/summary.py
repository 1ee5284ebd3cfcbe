"""The summary of a run, as text and as JSON."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator

from celeriac.cli.formatting import count, failure_line, format_seconds, on_one_line
from celeriac.runs.record import RunRecord
from celeriac.runs.run import Totals
from celeriac.runs.summary import summary_fields
from celeriac.worker.output import OutputPolicy

MAX_FAILURES_LISTED = 20


def summary_lines(totals: Totals, policy: OutputPolicy, place: str = "") -> Iterator[str]:
    """Yield the lines of a summary. `place` has the options with which the run found its workers."""
    yield from result_lines(totals)
    yield from failed_lines(totals)
    yield from warning_lines(totals, policy)
    if totals.name is not None:
        yield from name_lines(totals, place)


def start_line(record: RunRecord) -> str:
    """Return the first line of a recorded run, with its name."""
    line = f"run {record.name}"
    if record.resumes:
        line += " resumes"
    elif record.tasks:  # standard input has none yet
        line += f": {count(len(record.tasks), 'task')}"
    return on_one_line(line)


def name_lines(totals: Totals, place: str) -> Iterator[str]:
    """Yield the name of a recorded run, with the commands that show more of it and run the rest of it."""
    name = shlex.quote(str(totals.name))
    see = f"celeriac show {name}"
    if totals.failed:
        see = f"celeriac logs {name} {shlex.quote(str(totals.failed[0].key))}"
    yield f"run {totals.name}: see {see}"
    if totals.succeeded < totals.done or totals.had_failed:
        again = "celeriac run FILE --resume" if totals.unrecorded else f"celeriac retry {name}"
        yield f"to run again what did not succeed: {again}{place}"


def result_lines(totals: Totals) -> Iterator[str]:
    counts = [f"{totals.succeeded:,} succeeded", f"{len(totals.failed):,} failed"]
    if totals.revoked:
        counts.append(f"{totals.revoked:,} {'ended by interrupt' if totals.interrupted else 'cancelled'}")
    if totals.never_ran:
        counts.append(f"{totals.never_ran:,} never ran")
    if totals.skipped:
        counts.append(f"{totals.skipped:,} skipped")
    line = f"{count(totals.queued, 'task')}: {', '.join(counts)}"
    if totals.had_succeeded:
        line += f"; {totals.had_succeeded:,} had succeeded before"
    if totals.had_failed:
        line += f"; {totals.had_failed:,} had failed before: --resume-failed runs them again"
    yield line
    rate = totals.ran / totals.wall_time if totals.wall_time > 0 else 0.0
    line = f"{format_seconds(totals.wall_time)}, {rate:,.1f} tasks per second"
    yield line + (f", {count(totals.retried, 'retry', 'retries')}" if totals.retried else "")
    if totals.ran > 1:
        slowest = sorted(totals.slowest, key=lambda slow: -slow[0])
        times = (f"{on_one_line(str(key))} {format_seconds(duration)}" for duration, key in slowest)
        yield f"slowest: {', '.join(times)}"


def failed_lines(totals: Totals) -> Iterator[str]:
    if totals.failed:
        yield "failed:"
    for event in totals.failed[:MAX_FAILURES_LISTED]:
        yield f"  {failure_line(event, totals.failed_commands.get(event.key))}"
        if event.execution is not None:
            for stream in (event.execution.stderr, event.execution.stdout):
                if stream.size and stream.path:
                    yield f"      {stream.path}"
    if len(totals.failed) > MAX_FAILURES_LISTED:
        yield f"  and {len(totals.failed) - MAX_FAILURES_LISTED:,} more"


def warning_lines(totals: Totals, policy: OutputPolicy) -> Iterator[str]:
    if totals.output_lost:
        yield f"output of {count(totals.output_lost, 'task')} was not kept: {policy.directory} is not writable"
    if totals.problems:
        yield f"{count(len(totals.problems), 'line')} of the input could not be used and did not run"
    if totals.stopped_early:
        yield "stopped early: too many failures"
    if totals.interrupted:
        yield "interrupted"


def summary_as_json(totals: Totals) -> str:
    return json.dumps(summary_fields(totals))
