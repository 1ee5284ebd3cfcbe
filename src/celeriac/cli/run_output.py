"""The output of `run` and `retry`: progress, failures, the file of events, the summary."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
from msgspec import Struct

from celeriac.cli.cluster import cluster_for, wait_for_servers
from celeriac.cli.command_output import CommandEnd, CommandOutput
from celeriac.cli.ledger_options import Ledger, open_ledger_to_record, show_progress
from celeriac.cli.messages import print_line, print_message, report_wait
from celeriac.cli.progress import progress_for
from celeriac.cli.sinks import make_sinks
from celeriac.cli.standard_streams import StandardOutputLost
from celeriac.cli.status_line import show_reading
from celeriac.cli.summary import start_line, summary_as_json, summary_lines
from celeriac.runs.cluster import Cluster
from celeriac.runs.job_file import Problem
from celeriac.runs.launch import Notices, RunContext, RunHooks, RunResult
from celeriac.runs.record import RunRecord
from celeriac.runs.run import Watcher
from celeriac.worker.output import OutputPolicy

if TYPE_CHECKING:
    from celeriac.cli.shown_output import OutputStyle
    from celeriac.config.notice_targets import NoticeTargets
    from celeriac.config.settings import Settings
    from celeriac.ledger.run_store import RunStore
SUMMARY_LOST = 1  # exit status of a run that succeeded otherwise


class RunOutput(Struct, frozen=True, kw_only=True):
    """The options for what is shown."""

    json: bool
    quiet: bool
    events: str | None
    appends_events: bool
    """Whether events, and lines of the log of jobs, are added to the files of an earlier run."""

    job_log: str | None = None
    """The file for a line of each task, as GNU parallel writes it."""

    shows_command: bool = False
    """Whether the output of the only command is shown in place of progress and summary."""

    place: str = ""
    """The options with which the run finds its workers, for a command that the summary names."""

    style: OutputStyle | None = None
    """How the output of the commands is shown; None if it is not."""

    command_end: CommandEnd | None = None
    """For `run -- COMMAND`, whose exit status is that of the command."""

    def hooks(self, open_ledger: Callable[[Settings], RunStore | None]) -> RunHooks:
        return RunHooks(
            open_cluster=open_cluster,
            check_servers=wait_for_servers,
            make_sinks=make_sinks,
            open_watchers=self._open_watchers,
            open_ledger=lambda settings: self._with_progress(open_ledger(settings)),
            open_recorder=lambda settings: self._with_progress(open_ledger_to_record(settings)),
            report_problem=report_problem,
            show_reading=partial(show_reading, quiet=self.quiet),
            warn=print_message,
            report_wait=self.report_wait,
            report_start=self._report_start,
            open_notices=open_notices,
        )

    def report_wait(self, file: str) -> None:
        if not self.quiet:
            report_wait(file)

    def _report_start(self, record: RunRecord) -> None:
        if record.name is not None and not self.quiet:
            print_line(start_line(record))

    def _with_progress(self, store: Ledger | None) -> Ledger | None:
        if store is not None and not self.quiet:
            show_progress(store)
        return store

    @contextmanager
    def _open_watchers(self, policy: OutputPolicy) -> Iterator[Sequence[Watcher]]:
        progress = CommandOutput() if self.shows_command else progress_for(quiet=self.quiet)
        watchers: list[Watcher] = [progress] if self.command_end is None else [progress, self.command_end]
        if self.style is not None:
            from celeriac.cli.shown_output import ShownOutput  # late: not every run shows output

            progress.is_output_shown = policy.directory is not None
            watchers.insert(0, ShownOutput(self.style, policy, progress.clear))
        with ExitStack() as stack:
            if self.job_log is not None:
                from celeriac.cli.job_log import JobLog  # late: few runs need it

                watchers.append(stack.enter_context(JobLog(self.job_log, appends=self.appends_events)))
            if self.events is not None:
                from celeriac.cli.events_file import EventsFile  # late: few runs need it

                watchers.append(stack.enter_context(EventsFile(self.events, appends=self.appends_events)))
            yield watchers

    def conclude(self, result: RunResult) -> int:
        """Print the summary. Return the exit status."""
        totals = result.totals
        status = totals.exit_status if self.command_end is None else self.command_end.exit_status(totals)
        if result.notices is not None:
            result.notices.on_end(status)
        if self.json:
            return status if print_summary(summary_as_json(result.totals)) else status or SUMMARY_LOST
        if not self.quiet and not self.shows_command:
            for line in summary_lines(result.totals, result.output, self.place):
                print_line(line)
        return status


def open_notices(targets: NoticeTargets) -> Notices:
    """Return what is told of the run. Its end is told when this command has printed everything."""
    from celeriac.runs.notices import RunNotices  # imports clients of HTTP

    notices = RunNotices(targets, print_message)
    click.get_current_context().call_on_close(notices.finish)
    return notices


def print_summary(text: str) -> bool:
    """Print on standard output. Return whether that worked, or the reader has closed the pipe."""
    try:
        click.echo(text)
    except StandardOutputLost as error:
        if error.line is not None:
            print_message(f"{error.line}: the summary is missing")
            return False
    return True


@contextmanager
def open_cluster(context: RunContext, policy: OutputPolicy, journal: Path | None) -> Iterator[Cluster]:
    with (
        without_celery_logs(),
        cluster_for(context.connection, context.config, policy, journal, context.folder) as cluster,
    ):
        yield cluster


@contextmanager
def without_celery_logs() -> Iterator[None]:
    """Keep Celery's log off the terminal: our events report all that users need."""
    loggers = [logging.getLogger(name) for name in ("celery", "kombu", "amqp")]
    handler = logging.NullHandler()
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def report_problem(problem: Problem) -> None:
    print_line(str(problem))
