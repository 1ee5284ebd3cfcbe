"""The summary of a run as JSON: what `--json` prints, and what a notice of its end holds."""

from __future__ import annotations

from typing import Any

from celeriac.runs.run import Totals
from celeriac.task.event import Event


def summary_fields(totals: Totals) -> dict[str, Any]:
    """Return the summary of a run, so far or in the end."""
    slowest = sorted(totals.slowest, key=lambda slow: -slow[0])
    return {
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
        "slowest": [{"key": key, "duration": round(duration, 3)} for duration, key in slowest],
        "failures": [failure_fields(event) for event in totals.failed],
        "exit_status": totals.exit_status,
    }


def failure_fields(event: Event) -> dict[str, Any]:
    """Return why a task failed, without what is unknown."""
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
