"""`celeriac doctor`. The checks are in `celeriac.doctor`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from celeriac.cli.control_options import silence_logs
from celeriac.cli.exit_status import FAILED
from celeriac.cli.formatting import count, on_one_line
from celeriac.cli.help_sections import SectionedCommand
from celeriac.cli.options import connection_options, exit_on_bad_input, exit_on_signal, json_option
from celeriac.cli.tables import fill, output_width
from celeriac.cli.url_options import url_option
from celeriac.config.settings import from_options, read_settings
from celeriac.config.settings_file import read_file
from celeriac.errors import InvalidConfig, InvalidInput

if TYPE_CHECKING:
    from celeriac.doctor.check import Finding
    from celeriac.doctor.files import Given

COLOURS = {"ok": "green", "warning": "yellow", "error": "red", "skipped": "bright_black"}
LEVEL_WIDTH = max(map(len, COLOURS))
ID_WIDTH = 26  # columns of the longest id of a check, and a gap
MIN_WIDE = 72  # columns of a terminal on which the sentence stands beside the id
TIMEOUT = 15.0  # seconds for all checks


@click.command(cls=SectionedCommand)
@connection_options
@url_option("ledger", metavar="PATH|URL", help="The ledger to check. [default: the user's own]")
@click.option("--queues", metavar="NAMES", help='Queues to check, separated by commas. [default: the queue "default"]')
@click.option(
    "-c", "--concurrency", metavar="N", help="How many commands a worker of this machine is to run. [default: CPUs]"
)
@click.option("-q", "--quiet", is_flag=True, help="Print problems only.")
@json_option
@exit_on_signal
@exit_on_bad_input
def doctor(config: str | None, quiet: bool, as_json: bool, **options: Any) -> None:
    """Check this machine, the settings, the servers and the workers: one line a check, with the remedy.

    All of it takes some seconds. Nothing is changed, except that tables are created that a worker would create.

    Exit status: 0, also after warnings; 1 after an error; 2 bad input.
    """
    given = given_settings(options, config)
    # These import Celery and SQLAlchemy.
    from celeriac.doctor.check import Level, examine
    from celeriac.doctor.subjects import subjects_of
    from celeriac.doctor.text import count_of

    silence_logs()
    findings = examine(subjects_of(given), timeout=TIMEOUT)
    errors, warnings = count_of(findings, Level.ERROR), count_of(findings, Level.WARNING)
    if as_json:
        click.echo(json.dumps({"findings": [*map(asdict, findings)], "errors": errors, "warnings": warnings}))
    else:
        shown = [each for each in findings if not quiet or each.level in (Level.ERROR, Level.WARNING)]
        for line in lines_of(shown, output_width()):
            click.echo(line)
        click.echo(f"{count(len(findings), 'check')}: {count(errors, 'error')}, {count(warnings, 'warning')}")
    if errors:
        sys.exit(FAILED)


def given_settings(options: dict[str, Any], config: str | None) -> Given:
    """Return the settings. One that is wrong in a file or a variable is a finding, and not bad input.

    Raises `InvalidConfig` for a wrong option.
    """
    from celeriac.doctor.files import Given

    from_options(options)
    if config is not None:
        read_file(Path(config))
    try:
        return Given(read_settings(options, config=config), schedules=problem_of_schedules(config))
    except InvalidConfig as problem:
        return Given(None, problem)


def problem_of_schedules(config: str | None) -> InvalidInput | None:
    """Return the error of the schedules of a service, or of their jobs."""
    from celeriac.runs.schedule import read_schedules

    try:
        for schedule in read_schedules(config):
            schedule.read_tasks()
    except InvalidInput as problem:
        return problem
    return None


def lines_of(findings: Sequence[Finding], width: int | None) -> Iterator[str]:
    """Yield the lines of all findings, below the names of their subjects."""
    for subject, group in groupby(findings, lambda finding: finding.subject):
        yield from fill(on_one_line(subject).split(), width, gap=" ", indent="  ")
        for finding in group:
            yield from finding_lines(finding, width)
        yield ""


def finding_lines(finding: Finding, width: int | None) -> Iterator[str]:
    """Yield the lines of a finding: its sentence, and then its remedy. Without a width, all is one line."""
    level = coloured(finding.level.ljust(LEVEL_WIDTH), COLOURS[finding.level])
    sentences = [on_one_line(finding.text)]
    if finding.remedy is not None:
        sentences.append(f"→ {on_one_line(finding.remedy)}")
    if width is None:
        yield f"  {level}  {finding.check:<{ID_WIDTH}} {' '.join(sentences)}"
        return
    is_wide = width >= MIN_WIDE
    indent = 2 + LEVEL_WIDTH + 2 + ID_WIDTH + 1 if is_wide else 4
    lines = [line for each in sentences for line in fill(each.split(), width - indent, gap=" ")]
    if not is_wide:
        yield f"  {level}  {finding.check}"
    for number, line in enumerate(lines):
        begin = f"  {level}  {finding.check:<{ID_WIDTH}} " if is_wide and not number else " " * indent
        yield begin + line


def coloured(text: str, colour: str) -> str:
    is_plain = "NO_COLOR" in os.environ or not sys.stdout.isatty()
    return text if is_plain else click.style(text, fg=colour)
