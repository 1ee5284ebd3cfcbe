"""`celeriac show`. `celeriac.cli.run_view` formats the run."""

from __future__ import annotations

import sys
import time

import click

from celeriac.cli.completion import complete_run
from celeriac.cli.exit_status import FAILED
from celeriac.cli.help_sections import SectionedCommand
from celeriac.cli.job_log import check_job_log, write_job_log
from celeriac.cli.ledger_options import find_named_run, ledger_option, ledger_to_read
from celeriac.cli.options import check_text, config_option, exit_on_bad_input, where_option
from celeriac.cli.path_completion import complete_file
from celeriac.cli.run_view import TaskSelection, follow_run, show_run
from celeriac.ledger.where.condition import parse_condition
from celeriac.task.state import State

SLOWEST, DEFAULT_SLOWEST = "--slowest", "10"


class ShowCommand(SectionedCommand):
    """A command with an option whose number may be left out, also before the name of a run."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        numbered = [
            f"{SLOWEST}={DEFAULT_SLOWEST}" if word == SLOWEST and not after.isdecimal() else word
            for word, after in zip(args, [*args[1:], ""], strict=False)
        ]
        return super().parse_args(ctx, numbered)


@click.command(cls=ShowCommand)
@click.argument("run", required=False, shell_complete=complete_run)
@click.option("--failed", is_flag=True, help="Only tasks that failed.")
@click.option(
    "--state",
    "states",
    multiple=True,
    type=click.Choice([state.value for state in State]),
    metavar="STATE",
    help=f"Only tasks in this state: {', '.join(state.value for state in State)}. Repeatable.",
)
@where_option
@click.option(
    SLOWEST, type=click.IntRange(min=1), metavar="[N]", help="Only the N tasks that took longest, with those that run."
)
@click.option("--limit", type=click.IntRange(min=0), metavar="N", help="Only the first N tasks.")
@click.option(
    "--joblog",
    "job_log",
    metavar="FILE",
    shell_complete=complete_file,
    help="Write the tasks that have ended to FILE, as GNU parallel does, instead of showing them.",
)
@click.option("-f", "--follow", is_flag=True, help="First show the progress of the run until it ends.")
@ledger_option
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print the tasks, one JSON object per line.")
@exit_on_bad_input
def show(
    run: str | None,
    failed: bool,
    states: tuple[str, ...],
    where: str | None,
    slowest: int | None,
    limit: int | None,
    job_log: str | None,
    follow: bool,
    ledger: str | None,
    config: str | None,
    as_json: bool,
) -> None:
    """Show a run in the ledger and its tasks. Without RUN, show the latest run.

    EXPR compares fields: 'queue=gpu and took>5m', 'not (tag=nightly or exit_code=3)'. A text takes =, !=, ~ (contains)
    and !~; a number, a duration (90s, 5m, 1h30m) and a size (500M) take =, !=, <, <=, > and >=. The fields are key,
    command, queue, tag, state, reason, detail, exit_code, signal, attempt, lost, priority, slots, took, waited, memory
    and host. What took, waited and host say is of the last attempt; a task without a value meets only != and !~.

    With --json each line has the whole task, with its command; secret values are masked.

    Exit status: 0; 2 bad input. With --follow also 1 if some tasks did not succeed.
    """
    check_text("RUN", *filter(None, [run]))
    if slowest is not None and limit is not None:
        raise click.UsageError("give either --slowest N or --limit N")
    if job_log is not None:
        if as_json:
            raise click.UsageError("give either --joblog FILE or --json")
        check_text("--joblog", job_log)
        check_job_log(job_log)
    wanted = TaskSelection(
        states=[State(state) for state in states] + [State.FAILED] * failed,
        where=None if where is None else parse_condition(where),
        slowest=slowest,
        limit=limit,
    )
    with ledger_to_read(ledger, config) as opened:
        view = find_named_run(opened.database, run)
        if follow:
            view = follow_run(opened.database, view)
        if job_log is None:
            show_run(opened.database, view, wanted, as_json=as_json)
        else:
            write_job_log(job_log, wanted.tasks(opened.database, view, time.time()))
    sys.exit(FAILED if follow and not view.all_succeeded else 0)
