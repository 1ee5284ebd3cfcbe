"""`celeriac run` and `retry`, once their options are known.

Opens what they name, runs, closes, and answers with the exit status.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from celeriac.cli.events_file import EventsFile
from celeriac.cli.listing import list_tasks
from celeriac.cli.one_command import OneCommand
from celeriac.cli.options import BAD_INPUT, DEFAULT_NAMES, or_bad_input
from celeriac.cli.progress import progress_for
from celeriac.cli.standard_input import StandardInput
from celeriac.cli.summary import summary_as_json, summary_in_words
from celeriac.config.executor_config import Config
from celeriac.config.settings import DEFAULT, Connection, Settings, read_settings
from celeriac.errors import InvalidConfig, InvalidTask
from celeriac.executor.executor import CeleryExecutor
from celeriac.executor.interfaces import Ledger
from celeriac.executor.slots import Slots
from celeriac.runs.job_file import BadJobs, Problem, read_jobs, stream_jobs
from celeriac.runs.record import Record, record_of, record_to_retry
from celeriac.runs.run import Run, Stream, Totals, Watcher
from celeriac.task.task import Task
from celeriac.worker.output import DEFAULT_OUTPUT_CAP, OutputPolicy
from celeriac.worker.signals import signals_to

if TYPE_CHECKING:
    from celeriac.ledger.retry import RetryFilter

MANY = 100_000  # slots; how many tasks are sent, the live workers say
LONGEST_KEY = 60  # characters of a command that is its own key


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What `run` and `retry` have in common."""

    settings: Mapping[str, Any]
    """Those of the options that `celeriac.config.settings` knows too."""

    config: str | None
    local: bool
    queue_limits: Sequence[str]
    keep_going: bool
    max_failures: int | None
    output: str | None
    output_limit: int | None
    events: str | None
    json: bool
    quiet: bool

    @property
    def resumes(self) -> bool:
        """Whether it goes on with what was recorded before."""
        return True

    @property
    def shows_output(self) -> bool:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(RunOptions):
    file: str | None
    command: tuple[str, ...] | None
    format: str
    timeout: float | None
    grace: float | None
    retries: int | None
    retry_delay: float | None
    name: str | None
    resume: bool
    resume_failed: bool
    dry_run: bool

    @property
    def streams(self) -> bool:
        return self.file == "-" and not self.dry_run

    @property
    def is_of_file(self) -> bool:
        return self.file is not None and self.file != "-"

    @property
    def resumes(self) -> bool:
        return self.resume or self.resume_failed

    @property
    def defaults(self) -> dict[str, Any]:
        """What the options say for tasks that do not say it themselves."""
        given = {name: getattr(self, name) for name in DEFAULT_NAMES}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def shows_output(self) -> bool:
        """One command's output is shown, unless it is kept, or standard output is for JSON."""
        return self.command is not None and self.output is None and not self.json


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """What the settings make of it."""

    settings: Settings
    config: Config
    connection: Connection | None
    """To workers elsewhere; without one they are in this process."""

    @property
    def outlives(self) -> bool:
        """Whether what is out outlives this process."""
        return self.connection is not None


@or_bad_input
def run_jobs(options: Options) -> int:
    return or_problems(lambda: run_all(options))


@or_bad_input
def retry_failed(options: RunOptions, name: str, retry: RetryFilter) -> int:
    return or_problems(lambda: retry_run(options, name, retry))


def or_problems(work: Callable[[], int]) -> int:
    """Its exit status, or a line for each thing that is wrong with the tasks."""
    try:
        return work()
    except BadJobs as bad:
        for problem in bad.problems:
            complain(problem)
    return BAD_INPUT


def run_all(options: Options) -> int:
    wiring = wiring_of(options)

    def read() -> list[Task]:
        tasks = [] if options.streams else tasks_of(options)
        check_slots(tasks, wiring.config, options.file or "command")
        return tasks

    if options.dry_run:
        list_tasks(read(), as_json=options.json)
        return 0
    tasks = [] if options.resumes else read()

    def record(policy: OutputPolicy) -> AbstractContextManager[Record]:
        return record_of(options, wiring.settings, tasks, read, policy, outlives=wiring.outlives)

    def stream(wake: Callable[[], None]) -> AbstractContextManager[Stream]:
        return standard_input(options, wiring.config, wake)

    return execute(options, wiring, record, stream if options.streams else None)


def retry_run(options: RunOptions, name: str, retry: RetryFilter) -> int:
    wiring = wiring_of(options)

    @contextmanager
    def record(policy: OutputPolicy) -> Iterator[Record]:
        with record_to_retry(name, retry, wiring.settings, policy, outlives=wiring.outlives) as record:
            check_slots(record.tasks, wiring.config, name)
            yield record

    return execute(options, wiring, record)


def execute(
    options: RunOptions,
    wiring: RunContext,
    record_with: Callable[[OutputPolicy], AbstractContextManager[Record]],
    stream_with: Callable[[Callable[[], None]], AbstractContextManager[Stream]] | None = None,
) -> int:
    """Run what is recorded, and what comes over a stream. Answers with the exit status."""
    with ExitStack() as stack:
        policy = stack.enter_context(kept_output(options, wiring.connection))
        record = stack.enter_context(record_with(policy))
        watchers: list[Watcher] = [OneCommand() if options.shows_output else progress_for(options.quiet)]
        if options.events is not None:
            watchers.append(stack.enter_context(EventsFile(options.events, goes_on=options.resumes)))
        stack.enter_context(quiet_celery())
        workers = stack.enter_context(workers_for(wiring.connection, wiring.config, policy, record.journal))
        executor = workers.executor(ledger=record.book)
        record.recover(executor)
        run = Run(executor, watchers=watchers, wake=workers.wake, max_failures=failures_allowed(options))
        stack.enter_context(signals_to(run.interrupt))
        stream = stack.enter_context(stream_with(workers.wake)) if stream_with is not None else None
        totals = run.drive(record.tasks, stream, recovered=record.recovered)
        record.put_into(totals)
    return conclude(totals, options, policy)


def wiring_of(options: RunOptions) -> RunContext:
    settings = read_settings(options.settings, config=options.config)
    connection = None if options.local or settings.values["broker"].value is None else settings.connection
    return RunContext(
        settings=settings, config=config_of(settings, options.queue_limits, connection), connection=connection
    )


class Workers(AbstractContextManager["Workers"], Protocol):
    def executor(self, *, ledger: Ledger | None = None) -> CeleryExecutor: ...
    def wake(self) -> None: ...


def workers_for(connection: Connection | None, config: Config, policy: OutputPolicy, journal: Path | None) -> Workers:
    """Workers elsewhere, or one in this process."""
    if connection is None:
        from celeriac.cluster.local import (
            LocalCluster,  # which brings Celery: bad input is said before that has been loaded
        )

        return LocalCluster(config=config, output_policy=policy, control_channel=True, journal=journal)
    from celeriac.broker.app import app_for
    from celeriac.cluster.cluster import Cluster  # which a run in this process need not wait for

    return Cluster.from_app(app_for(connection), config=config, signing_key=connection.signing_key)


def config_of(settings: Settings, queue_limits: Sequence[str], connection: Connection | None) -> Config:
    config = settings.executor
    if queue_limits:
        config = replace(config, queue_limits=limits_of(queue_limits))
    if connection is not None and settings.values["parallelism"].origin == DEFAULT:
        config = replace(config, parallelism=MANY)
    return config


def limits_of(queue_limits: Sequence[str]) -> dict[str, int]:
    limits = {}
    for given in queue_limits:
        queue, _, number = given.rpartition("=")
        if not queue or not number.isdecimal() or int(number) < 1:
            raise InvalidConfig("--queue-limit", f"{given!r} is no limit", "write QUEUE=N, for example gpu=1")
        limits[queue] = int(number)
    return limits


def tasks_of(options: Options) -> list[Task]:
    if options.command is not None:
        return [Task(key=" ".join(options.command)[:LONGEST_KEY], command=options.command, **defaults_of(options))]
    return read_jobs(options.file or "-", options.format, defaults_of(options))


def defaults_of(options: Options) -> dict[str, Any]:
    """What the options say for tasks that do not say it themselves. Raises `InvalidTask`."""
    Task(key="", command="true", **options.defaults)
    return options.defaults


def check_slots(tasks: Collection[Task], config: Config, file: str) -> None:
    """Refuse what could never start before anything starts."""
    slots = Slots(config.parallelism, config.queue_limits)
    checked = (fitting(task, slots, file) for task in tasks)
    if problems := [found for found in checked if isinstance(found, Problem)]:
        raise BadJobs(problems)


def fitting(task: Task, slots: Slots, file: str) -> Task | Problem:
    try:
        slots.check(task)
    except InvalidTask as wrong:
        return Problem(file, None, wrong.field, f"task {task.key!r} {wrong.problem}", wrong.remedy)
    return task


def failures_allowed(options: RunOptions) -> int | None:
    return options.max_failures if options.keep_going else 1


@contextmanager
def kept_output(options: RunOptions, connection: Connection | None) -> Iterator[OutputPolicy]:
    """Where output goes: the folder that was asked for, or one of our own, gone again unless something failed."""
    if connection is not None:
        if options.output is not None:
            raise InvalidConfig("--output", "output is kept by the workers", "give it to celeriac worker instead")
        yield OutputPolicy()
        return
    cap = DEFAULT_OUTPUT_CAP if options.output_limit is None else options.output_limit
    if options.output is not None:
        folder = Path(options.output)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidConfig(
                "--output", f"{options.output}: {error.strerror}", "name a folder to write in"
            ) from None
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InvalidConfig("--output", f"{options.output} cannot be written in", "name another folder")
        yield OutputPolicy(directory=folder.absolute(), cap=cap)
        return
    folder = Path(tempfile.mkdtemp(prefix="celeriac-"))
    try:
        yield OutputPolicy(directory=folder, cap=cap, keep=options.shows_output)
    finally:
        if options.shows_output or not any(folder.iterdir()):
            shutil.rmtree(folder)


@contextmanager
def quiet_celery() -> Iterator[None]:
    """Nothing of Celery's on the terminal: what concerns the user, an event says."""
    loggers = [logging.getLogger(name) for name in ("celery", "kombu", "amqp")]
    silence = logging.NullHandler()
    for logger in loggers:
        logger.addHandler(silence)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(silence)


@contextmanager
def standard_input(options: Options, config: Config, wake: Callable[[], None]) -> Iterator[Stream]:
    """Standard input, read line by line by a thread of its own."""
    stream = Stream(complain)
    source = StandardInput()
    slots = Slots(config.parallelism, config.queue_limits)

    def read() -> None:
        for item in stream_jobs(source, "-", options.format, defaults_of(options)):
            found = item if isinstance(item, Problem) else fitting(item, slots, "<stdin>")
            if isinstance(found, Problem):
                complain(found)
            stream.put(found)
            wake()
        stream.put(None)
        wake()

    reader = threading.Thread(target=read, name="celeriac-stdin")
    reader.start()
    try:
        yield stream
    finally:
        source.close()
        reader.join()


def complain(problem: Problem) -> None:
    click.echo(str(problem), err=True)


def conclude(totals: Totals, options: RunOptions, policy: OutputPolicy) -> int:
    if options.json:
        click.echo(summary_as_json(totals))
    elif not options.quiet and not options.shows_output:
        click.echo(summary_in_words(totals, policy), err=True)
    return totals.exit_status
