"""`celeriac retry`."""

from __future__ import annotations

import sys
from typing import Any

import click

from celeriac.cli.completion import complete_key, complete_run
from celeriac.cli.events_file import check_events_file
from celeriac.cli.help_sections import SectionedCommand
from celeriac.cli.job_problems import exit_on_bad_jobs
from celeriac.cli.ledger_options import ledger_option, open_existing_ledger
from celeriac.cli.options import (
    check_local,
    check_text,
    course_options,
    exit_on_bad_input,
    exit_on_signal,
    notice_options,
    place_options,
    take_settings,
    where_option,
)
from celeriac.cli.output_options import take_style
from celeriac.cli.run_output import RunOutput
from celeriac.cli.url_options import place_of
from celeriac.ledger.retry import RetryFilter
from celeriac.ledger.where.condition import parse_condition
from celeriac.runs.launch import retry_run
from celeriac.runs.options import RunOptions


@click.command(cls=SectionedCommand)
@click.argument("run", required=False, shell_complete=complete_run)
@click.option("--failed", is_flag=True, help="Only tasks that failed.")
@click.option(
    "--key",
    "keys",
    multiple=True,
    metavar="KEY",
    shell_complete=complete_key,
    help="Only this task, however it ended. Repeatable.",
)
@where_option
@place_options
@course_options
@notice_options
@ledger_option
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on standard output.")
@exit_on_signal
@exit_on_bad_input
def retry(
    run: str | None, failed: bool, keys: tuple[str, ...], where: str | None, as_json: bool, quiet: bool, **rest: Any
) -> None:
    """Run the tasks of RUN again that failed, were cancelled or have not ended; without RUN, those of the latest run.

    The ledger has all that is needed: the job file is not read.
    The run keeps its name. Tasks that have ended are queued again, with all their retries. Tasks that have not ended
    are resumed. With --failed, --key or --where, all other tasks stay as they are. --where
    takes what `celeriac show --where` takes, and of these tasks those run again that have ended without success.

    Exit status: 0 if all of them succeeded; 1 if some failed; 2 bad input; 130 interrupted.
    """
    check_text("RUN or --key", *filter(None, [run]), *keys)
    if keys and (failed or where is not None):
        raise click.UsageError(f"give either {'--failed' if failed else '--where'} or --key")
    condition = None if where is None else parse_condition(where)
    settings, events = take_settings(rest), rest.pop("events")
    check_events_file(events, writes_output=as_json)
    check_local(settings, local=rest["local"])
    style = take_style(rest, events=events, as_json=as_json, quiet=quiet, is_one=False)
    options = RunOptions(settings=settings, shows_output=style is not None, **rest)
    output = RunOutput(
        json=as_json, quiet=quiet, events=events, appends_events=True, place=place_of(settings), style=style
    )
    with exit_on_bad_jobs():
        wanted = RetryFilter(failed=failed, keys=frozenset(keys), where=condition)
        result = retry_run(options, run, wanted, output.hooks(open_existing_ledger))
    sys.exit(output.conclude(result))
