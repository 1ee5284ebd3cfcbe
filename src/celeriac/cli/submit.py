"""`celeriac submit`: put a job file in a ledger for `celeriac serve`, and wait for its end if asked."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from celeriac.cli.exit_status import INTERRUPTED
from celeriac.cli.formatting import count, on_one_line
from celeriac.cli.job_problems import exit_on_bad_jobs
from celeriac.cli.ledger_options import open_ledger, show_progress
from celeriac.cli.messages import print_line, print_message, report_wait
from celeriac.cli.options import (
    NOTICE_NAMES,
    check_text,
    config_option,
    exit_on_bad_input,
    job_options,
    notice_options,
    tags_option,
    take_defaults,
    take_tags,
)
from celeriac.cli.path_completion import complete_file
from celeriac.cli.status_line import PLAIN_INTERVAL, show_reading
from celeriac.cli.template_options import TemplateCommand, take_template, template_options
from celeriac.cli.url_options import url_option
from celeriac.config.settings import read_settings
from celeriac.errors import LedgerUnavailable
from celeriac.executor.traced import with_variables
from celeriac.runs.inputs import inputs_of_submission
from celeriac.runs.job_file import Jobs, read_arguments, read_jobs
from celeriac.runs.record import default_name
from celeriac.task.state import State
from celeriac.task.task import Task, as_unicode
from celeriac.telemetry.trace_context import variables_in
from celeriac.worker.signals import signals_to

if TYPE_CHECKING:
    from celeriac.ledger.run_store import RunStore
    from celeriac.runs.job_file.template import JobTemplate

POLL_INTERVAL = 0.5  # seconds between two reads of a run
ENDS = {"succeeded": State.SUCCESS, "failed": State.FAILED, "revoked": State.REVOKED, "skipped": State.SKIPPED}


@click.command(cls=TemplateCommand)
@click.argument("file", required=False, shell_complete=complete_file)
@template_options
@job_options
@url_option("ledger", metavar="PATH|URL", help="The ledger of `celeriac serve`. [default: the user's own]")
@config_option
@notice_options
@click.option("--name", metavar="NAME", help="Name of the run. [default: FILE's name, numbered if taken]")
@tags_option
@click.option("--wait", is_flag=True, help="Return when the run has ended, with the exit status of `celeriac run`.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
@exit_on_bad_input
def submit(
    ctx: click.Context,
    /,
    file: str | None,
    format_: str,
    ledger: str | None,
    config: str | None,
    name: str | None,
    tags: tuple[str, ...],
    wait: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Submit the commands of FILE ("-" for standard input) to `celeriac serve`, and print the name of the run.

    FILE has the same format as for `celeriac run`. The whole file is checked first. `celeriac serve` does not have to
    run yet.

    Exit status: 0; 2 bad input, or the ledger is unavailable. With --wait also 1 if some tasks did not succeed, and 130
    if the waiting was interrupted; the run then goes on.
    """
    if name is not None:
        check_text("--name", name)
    run_tags = take_tags(tags)
    told = {name: options.pop(name) for name in NOTICE_NAMES}
    template = take_template(ctx, options, file)
    if (file is None) != (template is not None and bool(template.lists)):
        raise click.UsageError("give a FILE, with - for standard input")
    settings = read_settings({"ledger": ledger, **told}, config=config)
    tasks: list[Task] = read_tasks(file, format_, take_defaults(options), template)
    if settings.sinks.opentelemetry:  # the service continues the trace in which this process runs
        around = variables_in(os.environ)
        tasks = [with_variables(task, around) for task in tasks]
    with open_ledger(settings) as opened:
        show_progress(opened)
        inputs = inputs_of_submission(settings.notices, run_tags)
        wanted = (default_name(file, template), False) if name is None else (name, True)
        sys.exit(submit_tasks(opened, file, wanted, tasks, inputs, wait=wait, as_json=as_json))


def read_tasks(file: str | None, format: str, defaults: dict[str, Any], template: JobTemplate | None) -> Jobs:
    """Return the tasks of a file or of a template. Exits with status 2 for bad ones."""
    what = "the arguments" if file is None else "standard input" if file == "-" else file
    with exit_on_bad_jobs(), show_reading(what) as on_read:
        if file is None and template is not None:
            return read_arguments(template, defaults, on_read)
        name = str(file)
        return read_jobs(name, format, defaults, on_read, on_wait=partial(report_wait, name), template=template)


def submit_tasks(
    ledger: RunStore,
    file: str | None,
    name: tuple[str, bool],
    tasks: list[Task],
    inputs: Mapping[str, Any] | None = None,
    *,
    wait: bool,
    as_json: bool,
) -> int:
    """Submit, and wait if asked. Return the exit status. Raises `InvalidInput` and `LedgerError`.

    `name` is that of the run, with whether the user has given it: then no number is added if it is taken.
    """
    source = None if file is None or file == "-" else as_unicode(str(Path(file).absolute()))
    run_name = ledger.submit(name[0], source, tasks, is_given=name[1], inputs=inputs)
    try:
        if not as_json:
            click.echo(on_one_line(run_name))
        if wait:
            interrupts: list[None] = []
            with signals_to(lambda: interrupts.append(None)):
                states = wait_for_end(ledger, run_name, interrupts)
            return report_end(run_name, states, as_json=as_json)
        if as_json:
            click.echo(json.dumps({"run": run_name, "tasks": len(tasks)}))
    except KeyboardInterrupt:
        print_message(f"no longer waiting; run {run_name} goes on")
        return INTERRUPTED
    return 0


def wait_for_end(ledger: RunStore, name: str, interrupts: Collection[None]) -> Counter[State]:
    """Return the number of tasks in each state at the end.

    Raises `KeyboardInterrupt` between two polls only, because a library might swallow it during a read.
    """
    run = ledger.find_run(name)
    assert run is not None  # noqa: S101 - it has just been made
    next_line, is_available = time.monotonic() + PLAIN_INTERVAL, True
    while not interrupts:
        try:
            if ledger.has_ended(run):
                return ledger.count_states(run)
            if time.monotonic() >= next_line:
                print_line(progress_line(ledger.count_states(run)))
                next_line = time.monotonic() + PLAIN_INTERVAL
            is_available = True
        except LedgerUnavailable as error:
            if is_available:
                print_message(f"{error}; waiting for it")
            is_available = False
        time.sleep(POLL_INTERVAL)  # a ledger reports neither changes nor that it is available again
    raise KeyboardInterrupt


def report_end(name: str, states: Counter[State], *, as_json: bool) -> int:
    """Print the summary. Return the exit status."""
    status = 0 if states[State.SUCCESS] == states.total() else 1
    counts = {label: states[state] for label, state in ENDS.items()}
    if as_json:
        click.echo(json.dumps({"run": name, "tasks": states.total(), **counts, "exit_status": status}))
    else:
        shown = {label: number for label, number in counts.items() if number or label in ("succeeded", "failed")}
        text = ", ".join(f"{number:,} {label}" for label, number in shown.items())
        print_line(f"{count(states.total(), 'task')}: {text}")
    return status


def progress_line(states: Counter[State]) -> str:
    done = sum(number for state, number in states.items() if state.is_final)
    in_flight = states.total() - done - states[State.WAITING]
    text = f"{done:,}/{states.total():,} done, {in_flight:,} in flight, {states[State.WAITING]:,} waiting"
    return f"{text}, {states[State.FAILED]:,} failed"
