"""`celeriac schedules`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import click

from celeriac.cli.formatting import on_one_line
from celeriac.cli.ledger_options import ledger_option, open_ledger
from celeriac.cli.messages import print_line
from celeriac.cli.options import config_option, exit_on_bad_input, json_option
from celeriac.cli.run_view import describe_counts, print_lines, run_state
from celeriac.cli.tables import output_width, table_lines
from celeriac.config.settings import Settings, read_settings
from celeriac.ledger.fields import run_fields
from celeriac.runs.schedule import Schedule, read_schedules

if TYPE_CHECKING:
    from celeriac.ledger.views import RunView


@click.command
@ledger_option
@config_option
@click.option(
    "-n", "--times", type=click.IntRange(1, 1000), default=3, show_default=True, metavar="N", help="So many next times."
)
@json_option
@exit_on_bad_input
def schedules(ledger: str | None, config: str | None, times: int, as_json: bool) -> None:
    """List the schedules in celeriac.toml, with their last runs and next times.

    A table [schedules.NAME] has cron = "15 4 * * mon-fri" or every = "10m", and jobs = "FILE"; also timezone, missed
    (skip, once or all), overlap (skip, wait or allow), format, template and key. `celeriac serve` makes a run of the
    file at each time. Times are those of the time zone of the schedule; in JSON they are seconds since the epoch.

    Exit status: 0; 2 if a schedule is wrong.
    """
    found, now = read_schedules(config), time.time()
    last = last_runs_of(read_settings({"ledger": ledger}, config=config)) if found or ledger is not None else {}
    if as_json:
        fields = [schedule_fields(schedule, now, times, last.get(schedule.name)) for schedule in found]
        click.echo(json.dumps(fields))
        return
    if not found:
        print_line("no schedules: write a table [schedules.NAME] in celeriac.toml")
        return
    rows = [
        (
            schedule.name,
            schedule.cron or f"every {schedule.every:g} s",
            schedule.timezone,
            last_text(last.get(schedule.name)),
            ", ".join(local_time(schedule, due) for due in schedule.next_times(now, times)),
            on_one_line(schedule.jobs),
        )
        for schedule in found
    ]
    headings = ("schedule", "when", "time zone", "last", "next", "jobs")
    compact = (" ".join(row) for row in rows)
    foldable = ("last", "next", "jobs")
    print_lines(table_lines(headings, rows, width=output_width(), foldable=foldable, otherwise=compact))


def last_runs_of(settings: Settings) -> Mapping[str, RunView]:
    """Return the last runs by the names of their schedules. Raises `InvalidConfig` and `LedgerError`."""
    if settings.ledger is None:
        return {}
    with open_ledger(settings, read_only=True) as ledger:
        from celeriac.ledger.schedules import last_runs  # imports SQLAlchemy

        return last_runs(ledger.database)


def last_text(run: RunView | None) -> str:
    return "" if run is None else on_one_line(f"{run.name} {run_state(run)}, {describe_counts(run.counts)}")


def schedule_fields(schedule: Schedule, now: float, times: int, last: RunView | None) -> dict[str, object]:
    """Return the fields of `json_types.Schedule`."""
    return {
        "schedule": schedule.name,
        "cron": schedule.cron,
        "every": schedule.every,
        "timezone": schedule.timezone,
        "jobs": schedule.jobs,
        "missed": schedule.missed,
        "overlap": schedule.overlap,
        "last": None if last is None else run_fields(last),
        "next": schedule.next_times(now, times),
    }


def local_time(schedule: Schedule, due: float) -> str:
    return datetime.fromtimestamp(due, tz=ZoneInfo(schedule.timezone)).isoformat(" ", "seconds")
