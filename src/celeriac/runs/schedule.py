"""The schedules of a service, as celeriac.toml has them, and their due times.

    [schedules.nightly]
    cron = "15 4 * * mon-fri"       or every = "10m"
    timezone = "Europe/Berlin"
    jobs = "nightly.jsonl"

A cron line means local time of its time zone. A time that a change of the clock leaves out is due right after it, and
one that it repeats is due once, unless the hour or the minute is a `*`: then real time counts. An interval is real
time, counted from the begin of 1970 in UTC.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from msgspec import Struct

from celeriac.config.settings import OF_SERVICES as TABLE
from celeriac.config.settings_file import settings_file
from celeriac.errors import InvalidConfig
from celeriac.task.moment import delay_of

if TYPE_CHECKING:
    from celeriac.task.task import Task

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
CHOICES = {"missed": ("skip", "once", "all"), "overlap": ("skip", "wait", "allow")}
"""The values of these fields. The first one is the default."""

FIELDS = ("cron", "every", "timezone", "jobs", "format", "template", "key", *CHOICES)
MIN_INTERVAL = 1.0  # seconds
MAX_PENDING = 1_000  # due times that are looked at together: of more, the latest


class Schedule(Struct, frozen=True, kw_only=True):
    """When a run of a file of jobs is made, again and again."""

    name: str
    jobs: str
    """The path of the file."""

    cron: str | None = None
    every: float | None = None
    """Seconds. Exactly one of the two is set."""

    timezone: str = "UTC"
    format: str = "auto"
    template: str | None = None
    key: str | None = None
    missed: str = "skip"
    """What follows from times at which no service made their run: see `schedule_step`."""

    overlap: str = "skip"
    """What follows if the run before has not ended."""

    def times_after(self, when: float) -> Iterator[float]:
        """Yield the due times after a time, in seconds since the epoch."""
        if self.every is not None:
            number = int(when // self.every) + 1
            while True:
                yield number * self.every
                number += 1
        from cronsim import CronSim  # late: an extra, and few services have cron lines

        for due in CronSim(str(self.cron).upper(), datetime.fromtimestamp(when, tz=ZoneInfo(self.timezone))):
            if (seconds := due.timestamp()) > when:
                yield seconds

    def pending(self, after: float, until: float) -> list[float]:
        """Return the due times after a time and up to another one: the latest `MAX_PENDING`."""
        if self.every is not None:
            after = max(after, until - MAX_PENDING * self.every)
        times: deque[float] = deque(maxlen=MAX_PENDING)
        for due in self.times_after(after):
            if due > until:
                break
            times.append(due)
        return list(times)

    def next_times(self, when: float, number: int) -> list[float]:
        """Return the next due times."""
        return list(islice(self.times_after(when), number))

    def run_name(self, due: float) -> str:
        """Return the name of the run of a due time."""
        return f"{self.name}-{datetime.fromtimestamp(due, tz=UTC):%Y%m%dT%H%M%SZ}"

    def read_tasks(self) -> list[Task]:
        """Read the jobs. Raise `BadJobs` and `InvalidConfig`."""
        from celeriac.runs.job_file import read_jobs
        from celeriac.runs.job_file.template import JobTemplate

        template = None if self.template is None else JobTemplate(command=self.template, key=self.key)
        return read_jobs(self.jobs, self.format, template=template)


def read_schedules(config: str | None) -> tuple[Schedule, ...]:
    """Return the schedules of the file of settings that `config` names, or of the nearest. Raise `InvalidConfig`."""
    found = settings_file(config)
    return () if found is None else schedules_in(found[1], found[0])


def schedules_in(table: Mapping[str, Any], path: Path) -> tuple[Schedule, ...]:
    """Return the schedules of a file of settings. Raise `InvalidConfig`, which names the file and the field."""
    tables = table.get(TABLE, {})
    if not isinstance(tables, dict):
        raise InvalidConfig(f"{path}: {TABLE}", "is not a table", f"write [{TABLE}.NAME]")
    return tuple(schedule_of(name, fields, path) for name, fields in tables.items())


def schedule_of(name: str, fields: Any, path: Path) -> Schedule:
    """Return the schedule of a table. Raise `InvalidConfig`."""
    place = f"{path}: {TABLE}.{name}"
    if not NAME.fullmatch(name):
        raise InvalidConfig(place, "is not a name of a schedule", "write letters, digits, -, _ and .")
    if not isinstance(fields, dict):
        raise InvalidConfig(place, "is not a table", f"write [{TABLE}.{name}]")
    for field, value in fields.items():
        check_field(f"{place}.{field}", field, value)
    if ("cron" in fields) == ("every" in fields):
        raise InvalidConfig(place, "needs either cron or every", 'write for example cron = "15 4 * * *"')
    if "jobs" not in fields:
        raise InvalidConfig(place, "has no jobs", 'name a file of jobs: jobs = "nightly.jsonl"')
    if "key" in fields and "template" not in fields:
        raise InvalidConfig(f"{place}.key", "needs a template", "remove it, or give a template")
    values = {**fields, "name": name, "jobs": str((path.parent / fields["jobs"]).absolute())}
    if "every" in fields:
        values["every"] = interval_of(fields["every"], f"{place}.every")
    schedule = Schedule(**values)
    if schedule.cron is not None:
        check_cron(schedule, f"{place}.cron")
    return schedule


def check_field(place: str, field: str, value: Any) -> None:
    if field not in FIELDS:
        raise InvalidConfig(place, "there is no such field", f"the fields are {', '.join(FIELDS)}")
    if not isinstance(value, str) or not value:
        raise InvalidConfig(place, f"{value!r} is not a text", "write a text in quotes")
    if field in CHOICES and value not in CHOICES[field]:
        raise InvalidConfig(place, f"{value!r} is not known", f"write one of {', '.join(CHOICES[field])}")
    if field == "format":
        from celeriac.runs.job_file.formats import FORMATS

        if value not in FORMATS:
            raise InvalidConfig(place, f"{value!r} is not known", f"write one of {', '.join(FORMATS)}")
    if field == "timezone":
        check_timezone(place, value)


def check_timezone(place: str, value: str) -> None:
    try:
        ZoneInfo(value)
    except (OSError, ValueError, KeyError):
        problem = f"{value!r} is not a time zone of this machine"
        raise InvalidConfig(place, problem, "write for example Europe/Berlin") from None


def interval_of(text: str, place: str) -> float:
    seconds = delay_of(text)
    if seconds is None or seconds < MIN_INTERVAL:
        raise InvalidConfig(place, f"{text!r} is not an interval of a second or more", "write for example 10m or 1h30m")
    return seconds


def check_cron(schedule: Schedule, place: str) -> None:
    try:
        from cronsim import CronSimError  # an extra
    except ImportError:
        remedy = "install celeriac[schedules], or give every"
        raise InvalidConfig(place, "needs the module cronsim, which is not installed", remedy) from None
    fields = len(str(schedule.cron).split())
    try:
        if fields != 5:
            raise CronSimError(f"it has {fields} fields, not 5")
        times = schedule.next_times(0.0, 1)
    except (CronSimError, StopIteration) as error:
        problem = f"{schedule.cron!r} is not a cron line: {str(error) or 'it is never due'}"
        raise InvalidConfig(place, problem, 'write five fields, for example "15 4 * * mon-fri"') from None
    if not times:
        raise InvalidConfig(place, f"{schedule.cron!r} is never due", "write a day that exists")
