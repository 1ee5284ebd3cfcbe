"""`celeriac schedules`."""

from __future__ import annotations

import json
import time
from datetime import datetime
from zoneinfo import ZoneInfo

import click

from celeriac.cli.formatting import on_one_line
from celeriac.cli.messages import print_line
from celeriac.cli.options import config_option, exit_on_bad_input, json_option
from celeriac.cli.run_view import print_lines
from celeriac.cli.tables import output_width, table_lines
from celeriac.runs.schedule import Schedule, read_schedules


@click.command
@config_option
@click.option(
    "-n", "--times", type=click.IntRange(1, 1000), default=3, show_default=True, metavar="N", help="So many next times."
)
@json_option
@exit_on_bad_input
def schedules(config: str | None, times: int, as_json: bool) -> None:
    """List the schedules in celeriac.toml, with their next times.

    A table [schedules.NAME] has cron = "15 4 * * mon-fri" or every = "10m", and jobs = "FILE"; also timezone, missed
    (skip, once or all), overlap (skip, wait or allow), format, template and key. `celeriac serve` makes a run of the
    file at each time. Times are those of the time zone of the schedule; in JSON they are seconds since the epoch.

    Exit status: 0; 2 if a schedule is wrong.
    """
    found, now = read_schedules(config), time.time()
    if as_json:
        click.echo(json.dumps([schedule_fields(schedule, now, times) for schedule in found]))
        return
    if not found:
        print_line("no schedules: write a table [schedules.NAME] in celeriac.toml")
        return
    rows = [
        (
            schedule.name,
            schedule.cron or f"every {schedule.every:g} s",
            schedule.timezone,
            ", ".join(local_time(schedule, due) for due in schedule.next_times(now, times)),
            on_one_line(schedule.jobs),
        )
        for schedule in found
    ]
    headings = ("schedule", "when", "time zone", "next", "jobs")
    compact = (" ".join(row) for row in rows)
    print_lines(table_lines(headings, rows, width=output_width(), foldable=("next", "jobs"), otherwise=compact))


def schedule_fields(schedule: Schedule, now: float, times: int) -> dict[str, object]:
    """Return the fields of `json_types.Schedule`."""
    return {
        "schedule": schedule.name,
        "cron": schedule.cron,
        "every": schedule.every,
        "timezone": schedule.timezone,
        "jobs": schedule.jobs,
        "missed": schedule.missed,
        "overlap": schedule.overlap,
        "next": schedule.next_times(now, times),
    }


def local_time(schedule: Schedule, due: float) -> str:
    return datetime.fromtimestamp(due, tz=ZoneInfo(schedule.timezone)).isoformat(" ", "seconds")
