"""The command line: options in, text or JSON and an exit status out.

`run COMMAND` is in `celeriac.cli.COMMAND`. Other modules hold what several commands share:

    options, ledger_options, control_options   options, and errors as one line with an exit status
    help_sections                              commands and options in sections
    json_errors                                errors as JSON; `celeriac.json_types` has the types of all output
    messages, warning_printer                  lines on standard error, and warnings of the log as such lines
    formatting, tables, listing                values as text
    run_output, progress, events_file, summary the progress and the end of a run
    job_problems, cluster                      the problems of a job file; the workers behind a run
    watch, overview_tables, overview_options   the overview that is drawn again and again
    top_view                                   the application of `top`
    standard_streams                           streams that may be closed, full or gone
    exit_status                                the exit statuses
    completion, path_completion                completion in the shell
    waiting                                    the wait for a server that refuses for now

A command is imported when it is called, and imports Celery and SQLAlchemy only if it needs them: see `lazy_command`.
This folder may import everything but `celeriac.airflow`. Nothing imports this folder.
"""

from __future__ import annotations

import itertools
import os
import shlex
import sys
from typing import Any

import click

from celeriac import __version__
from celeriac.cli.bug_report import report_bug
from celeriac.cli.exit_status import BAD_INPUT, INTERRUPTED
from celeriac.cli.help_sections import SectionedGroup, narrow_width
from celeriac.cli.json_errors import JSON_OPTION, echo_error
from celeriac.cli.lazy_command import LazyCommand
from celeriac.cli.messages import escaped_usage_errors, print_message
from celeriac.cli.standard_streams import StandardOutputLost, surviving_streams

OUTPUT_LOST = 1  # exit status

COMMAND_SECTIONS = {
    "Run jobs": {
        "run": "Run a file of commands, or one command.",
        "retry": "Run unsuccessful tasks of a run again.",
    },
    "Inspect": {
        "runs": "List the runs in the ledger.",
        "show": "Show a run and its tasks.",
        "logs": "Show the output of a task.",
        "report": "Write a page about a run.",
        "explain": "Show the history of one task and why it waits.",
        "status": "Show queues, workers and submitted runs.",
        "top": "Watch and act: queues, workers, runs, tasks.",
        "config": "Show each setting and its source.",
        "doctor": "Find what is wrong here and with the servers.",
        "schema": "Print the JSON Schema of a command's output.",
    },
    "Act": {
        "cancel": "Cancel tasks that are waiting or in flight.",
        "pause": "Start nothing more of a run or of a queue.",
        "resume": "End a pause.",
        "set": "Change the limits of a run, or the priority of a task.",
        "prune": "Remove runs from the ledger.",
    },
    "Use many machines": {
        "broker": "Start a private Valkey as broker and result backend.",
        "worker": "Run commands from a broker on this machine.",
        "autoscale": "Start workers on a Slurm or PBS cluster as tasks need them.",
        "check": "Check that a worker lives, for the probe of a container.",
        "drain": "Let workers finish what they run, then stop them.",
    },
    "Run a service": {
        "serve": "Run submitted files until stopped.",
        "schedules": "List the schedules of a service, with their next times.",
        "submit": "Submit a file of commands to `celeriac serve`.",
        "web": "Serve a web page, a REST interface and probes.",
    },
}
COMMANDS = {name: text for commands in COMMAND_SECTIONS.values() for name, text in commands.items()}


def check_working_folder(*, wants_json: bool) -> None:
    """End the program if the working folder was removed: no path that is relative to it has a meaning."""
    try:
        os.getcwd()  # noqa: PTH109 - pathlib is not imported yet
    except OSError as error:
        line = f"the working folder cannot be used: {error.strerror}; change to another one"
        print_message(line)
        if wants_json:
            echo_error(line)
        sys.exit(BAD_INPUT)


class Program(SectionedGroup):
    """The group of all commands. Its standard streams may be closed, or fail at any moment."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        with surviving_streams():
            try:
                return super().main(*args, **kwargs)
            except StandardOutputLost as error:  # click itself ends the program quietly if the reader has gone
                print_message(str(error.line))
                sys.exit(OUTPUT_LOST)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with escaped_usage_errors():
            return super().make_context(*args, **{"terminal_width": narrow_width(), **kwargs})

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            if os.path.isfile(args[0]):  # noqa: PTH113 - pathlib is not imported yet
                hint = f"to run this file, write celeriac run {shlex.quote(args[0])}"
                raise click.UsageError(f"{error.format_message().rstrip('.')}; {hint}", ctx) from None
            raise

    def invoke(self, ctx: click.Context) -> Any:
        options = itertools.takewhile(lambda argument: argument != "--", ctx.args)
        wants_json = JSON_OPTION in options  # of the command, which may be refused before it is parsed
        check_working_folder(wants_json=wants_json)
        try:
            with escaped_usage_errors():
                return super().invoke(ctx)
        except click.UsageError as error:
            if wants_json:
                echo_error(error.format_message())
            raise
        except KeyboardInterrupt:  # without a message: it is the usual way to stop watching
            sys.exit(INTERRUPTED)


@click.group(
    cls=Program,
    command_sections=COMMAND_SECTIONS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, package_name="celeriac", message="%(prog)s %(version)s")
def main() -> None:
    """Run thousands of prioritised commands, here or on many machines, and know how each one ended."""
    sys.excepthook = report_bug


for name, short_help in COMMANDS.items():
    main.add_command(LazyCommand(name, short_help))
