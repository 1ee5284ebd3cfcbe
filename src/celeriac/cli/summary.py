"""The end of a run, for a person and for a script."""

from __future__ import annotations

import json
from typing import Any

from celeriac.cli.formatting import failure, many, on_one_line, seconds
from celeriac.runs.run import Totals
from celeriac.task.event import Event
from celeriac.worker.output import OutputPolicy

FAILURES_LISTED = 20


def summary_in_words(totals: Totals, policy: OutputPolicy) -> str:
    rate = totals.ran / totals.wall_time if totals.wall_time > 0 else 0.0
    counts = [f"{totals.succeeded:,} succeeded", f"{len(totals.failed):,} failed"]
    counts += (
        [f"{totals.revoked:,} {'ended by interrupt' if totals.interrupted else 'called back'}"]
        if totals.revoked
        else []
    )
    counts += [f"{totals.never_ran:,} never ran"] if totals.never_ran else []
    counts += [f"{totals.skipped:,} skipped"] if totals.skipped else []
    lines = [
        f"{many(totals.queued, 'task')}: {', '.join(counts)}",
        f"{seconds(totals.wall_time)}, {rate:,.1f} tasks a second"
        + (f", {many(totals.retried, 'retry').replace('retrys', 'retries')}" if totals.retried else ""),
    ]
    if totals.had_succeeded:
        lines[0] += f"; {totals.had_succeeded:,} had succeeded before"
    if totals.had_failed:
        lines[0] += f"; {totals.had_failed:,} had failed before: --resume-failed runs them again"
    if totals.ran > 1:
        slowest = sorted(totals.slowest, key=lambda slow: -slow[0])
        lines.append("slowest: " + ", ".join(f"{on_one_line(str(key))} {seconds(took)}" for took, key in slowest))
    if totals.failed:
        lines.append("failed:")
        lines += [f"  {line}" for event in totals.failed[:FAILURES_LISTED] for line in failed_task(event)]
        if len(totals.failed) > FAILURES_LISTED:
            lines.append(f"  and {len(totals.failed) - FAILURES_LISTED:,} more")
    if totals.output_lost:
        lines.append(f"output of {many(totals.output_lost, 'task')} was not kept: {policy.directory} cannot be written")
    if totals.problems:
        lines.append(f"{many(len(totals.problems), 'line')} of the input could not be used, and did not run")
    if totals.stopped_early:
        lines.append("stopped early: too many failures")
    if totals.interrupted:
        lines.append("interrupted")
    return "\n".join(lines)


def failed_task(event: Event) -> list[str]:
    lines = [failure(event)]
    if event.execution is not None:
        paths = [stream.path for stream in (event.execution.stderr, event.execution.stdout) if stream.size]
        lines += [f"    {path}" for path in paths if path]
    return lines


def summary_as_json(totals: Totals) -> str:
    slowest = sorted(totals.slowest, key=lambda slow: -slow[0])
    return json.dumps(
        {
            "run": totals.name,
            "tasks": totals.queued,
            "succeeded": totals.succeeded,
            "failed": len(totals.failed),
            "revoked": totals.revoked,
            "never_ran": totals.never_ran,
            "skipped": totals.skipped,
            "had_succeeded": totals.had_succeeded,
            "had_failed": totals.had_failed,
            "retried": totals.retried,
            "refused_lines": len(totals.problems),
            "output_lost": totals.output_lost,
            "interrupted": totals.interrupted,
            "stopped_early": totals.stopped_early,
            "wall_time": round(totals.wall_time, 3),
            "tasks_per_second": round(totals.ran / totals.wall_time, 3) if totals.wall_time > 0 else None,
            "slowest": [{"key": key, "duration": round(took, 3)} for took, key in slowest],
            "failures": [failure_as_json(event) for event in totals.failed],
            "exit_status": totals.exit_status,
        }
    )


def failure_as_json(event: Event) -> dict[str, Any]:
    execution = event.execution
    fields = {
        "key": event.key,
        "attempt": event.attempt,
        "reason": event.reason.value if event.reason else None,
        "detail": event.detail,
        "exit_code": execution.exit_code if execution else None,
        "signal": execution.signal if execution else None,
        "duration": execution.duration if execution else None,
        "stdout": execution.stdout.path if execution else None,
        "stderr": execution.stderr.path if execution else None,
    }
    return {name: value for name, value in fields.items() if value is not None}
