"""Launch a run, for `celeriac run` and `celeriac retry`. The command line adds the parts that a user sees.

    RunOptions ─► RunContext ─► job file ─► RunRecord (ledger) ─► cluster ─► Run.drive ─► RunResult

Bad input is reported before the cluster is opened, and so before Celery is loaded. The caller's `RunHooks` open the
cluster and show the run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct
from msgspec.structs import replace

from celeriac.config.executor_config import Config
from celeriac.config.notice_targets import NoticeTargets
from celeriac.config.settings import DEFAULT, Connection, Settings, read_settings
from celeriac.errors import InvalidConfig, LedgerNotWritable, LedgerUnavailable
from celeriac.runs.cluster import Cluster
from celeriac.runs.job_file import Jobs, PlainJobs, Problem, line_numbers, read_arguments, read_whole
from celeriac.runs.job_limits import TaskCheck, amounts_here, check_limits
from celeriac.runs.kept_output import (
    check_artifacts_have_place,
    check_output_can_come,
    check_output_spares_file,
    kept_output,
)
from celeriac.runs.options import JobRunOptions, RunOptions
from celeriac.runs.record import Recording, RunRecord, record_jobs, record_resumed, record_retry
from celeriac.runs.run import Run, Stream, Totals, Watcher
from celeriac.runs.standard_input import check_standard_input, stream_standard_input
from celeriac.runs.suspension import Suspension
from celeriac.sink_thread import Sink, sending
from celeriac.task.task import DEFAULT_QUEUE, Task, as_unicode
from celeriac.worker.output import OutputPolicy
from celeriac.worker.signals import hangups_survived, signals_to

if TYPE_CHECKING:
    from celeriac.ledger.retry import RetryFilter
    from celeriac.ledger.run_recorder import RunRecorder
    from celeriac.ledger.run_store import RunStore

REMOTE_PARALLELISM = 100_000  # slots; on a broker the live workers limit how many tasks are sent
JOURNAL = "journal"  # the setting that an error of a journal names
MAX_DERIVED_KEY = 60  # characters of a command that becomes the key of its task


class RunContext(Struct, frozen=True, kw_only=True):
    """The settings, and values that are derived from them."""

    settings: Settings
    config: Config
    connection: Connection | None
    """How to reach workers elsewhere; None if commands run in this process."""

    folder: Path | None = None
    """The folder in which a worker in this process runs the commands; None for that of this process."""

    @property
    def tasks_outlive_process(self) -> bool:
        """Whether tasks in flight outlive this process."""
        return self.connection is not None


class Notices(Watcher, Protocol):
    """The notices of a run: see `celeriac.runs.notices`."""

    def on_start(self, totals: Totals) -> None:
        """Take note that the run begins. Its numbers change until its end."""
        ...

    def on_error(self, error: Exception) -> None:
        """Take note of what has ended the run early."""
        ...

    def on_end(self, status: int) -> None:
        """Take note of the exit status."""
        ...


class RunResult(Struct, frozen=True):
    totals: Totals
    output: OutputPolicy
    """Where the output of the commands was kept."""

    notices: Notices | None
    """What is told of the end; None if nothing is. The caller says the exit status."""


class RunHooks(Struct, frozen=True, kw_only=True):
    """The caller's part of a run: it opens the cluster and shows the run."""

    open_cluster: Callable[[RunContext, OutputPolicy, Path | None], AbstractContextManager[Cluster]]
    """Opens the cluster. The path is a folder for the journal of a worker in this process."""

    check_servers: Callable[[Connection, Collection[str]], None]
    """Checks that tasks of these queues can run, before anything is queued. Waits while a server refuses for now.
    Raises an error that waiting cannot end."""

    open_watchers: Callable[[OutputPolicy], AbstractContextManager[Sequence[Watcher]]]
    """Opens the watchers, which show and record the run. Called once the input has been checked, with the place where
    the output of the commands is kept."""

    make_sinks: Callable[[Settings], Sequence[Sink]]
    """Makes the sinks of metrics and traces. Raises `InvalidConfig`."""

    open_ledger: Callable[[Settings], RunStore | None]
    """Opens the ledger of the settings, with its earlier runs; None if there is none."""

    open_recorder: Callable[[Settings], RunRecorder | None]
    """Opens the ledger of the settings for a new run; None if the run is not recorded."""

    report_problem: Callable[[Problem], None]
    """Reports one bad line of standard input."""

    warn: Callable[[str], None]
    """Prints a warning."""

    show_reading: Callable[[str], AbstractContextManager[Callable[[int], None]]]
    """Shows the progress of reading a file: yields a function that takes the number of jobs so far."""

    report_wait: Callable[[str], None]
    """Reports that this FIFO is still empty."""

    report_start: Callable[[RunRecord], None]
    """Shows the name of the run before its first task starts."""

    open_notices: Callable[[NoticeTargets], Notices]
    """Prepares what is told of the run. Its end is told after all output."""


def run_jobs(options: JobRunOptions, hooks: RunHooks) -> RunResult:
    """Run a job file, standard input or one command.

    Raises `InvalidInput` (`BadJobs` for the job file) and `LedgerError`.
    """
    context = context_of(options)
    streams = options.file == "-" or options.pipe is not None
    if options.file == "-":
        check_standard_input()
    blocks = None
    if options.pipe is not None:
        from celeriac.runs.pipe import blocks_of  # late: few runs need it

        blocks = blocks_of(options, context)

    def read(complete: JobRunOptions) -> Jobs | PlainJobs:
        if streams:
            return Jobs()
        check = check_for(context if complete is options else context_of(complete))
        with hooks.show_reading(complete.file or "the command") as on_read:
            on_wait = None if complete.file is None else partial(hooks.report_wait, complete.file)
            return read_checked(complete, check, on_read, on_wait)

    jobs = Jobs() if options.resumes else read(options)

    is_optional = not options.resumes and context.settings.values["ledger"].origin == DEFAULT

    @contextmanager
    def open_record(policy: OutputPolicy) -> Iterator[RunRecord]:
        record = RunRecord(tasks=jobs)
        with ExitStack() as stack:
            try:
                how = Recording(
                    policy=policy,
                    outlives=context.tasks_outlive_process,
                    is_optional=is_optional,
                    keep=context.settings.ledger_limits,
                    warn=hooks.warn,
                )
                if options.resumes:
                    if (store := hooks.open_ledger(context.settings)) is None:
                        problem = "there is no ledger to resume from"
                        raise InvalidConfig("--resume", problem, "name the ledger of the run")
                    record = stack.enter_context(record_resumed(store, options, read, how))
                elif options.command is None and (ledger := hooks.open_recorder(context.settings)) is not None:
                    record = stack.enter_context(record_jobs(ledger, options, jobs, how))
            except (LedgerNotWritable, LedgerUnavailable) as error:
                if not is_optional:
                    raise
                hooks.warn(f"{error}: this run is not recorded")
            yield record

    def open_stream(wake: Callable[[], None]) -> AbstractContextManager[Stream]:
        if blocks is not None:
            return blocks.stream(hooks.report_problem, wake)
        return stream_standard_input(
            options.format,
            options.defaults,
            check_for(context),
            template=options.template,
            report_problem=hooks.report_problem,
            wake=wake,
        )

    queues = {task.queue for task in jobs.samples()}
    own = [] if blocks is None else [blocks]
    return execute(options, context, hooks, open_record, open_stream if streams else None, queues=queues, own=own)


def check_jobs(options: JobRunOptions, on_wait: Callable[[], None] | None = None) -> list[Task]:
    """Return the tasks that `run_jobs` would run, once all of them were checked. Raises `InvalidInput`.

    Of --pipe it returns only the first: its input is not read.
    """
    if options.pipe is not None:
        from celeriac.runs.pipe import blocks_of  # late, as above

        blocks_of(options, context_of(options))
        return [Task(key="1", command=options.pipe.command_of(1), **options.defaults)]
    return read_checked(options, check_for(context_of(options)), None, on_wait).as_tasks()


def retry_run(options: RunOptions, name: str | None, retry: RetryFilter, hooks: RunHooks) -> RunResult:
    """Run unsuccessful tasks of a recorded run again; of the latest if `name` is None.

    Raises `InvalidInput` and `LedgerError`.
    """
    context = context_of(options)

    @contextmanager
    def open_record(policy: OutputPolicy) -> Iterator[RunRecord]:
        ledger = hooks.open_ledger(context.settings)
        if ledger is None:
            raise InvalidConfig("ledger", "there is none to read the run from", "name the ledger of the run")
        keep, outlives = context.settings.ledger_limits, context.tasks_outlive_process
        with record_retry(
            ledger, name, options, retry, policy, outlives=outlives, keep=keep, warn=hooks.warn
        ) as record:
            complete = options if record.continuation is None else record.continuation.options
            check_limits(record.tasks, check_for(context_of(complete)), str(record.name))
            yield record

    return execute(options, context, hooks, open_record)


def execute(
    options: RunOptions,
    context: RunContext,
    hooks: RunHooks,
    open_record: Callable[[OutputPolicy], AbstractContextManager[RunRecord]],
    open_stream: Callable[[Callable[[], None]], AbstractContextManager[Stream]] | None = None,
    *,
    queues: Collection[str] = (),
    own: Sequence[Watcher] = (),
) -> RunResult:
    """Run the tasks of a record and of a stream. Return once everything is closed.

    `queues` are those of the tasks, as far as they are known yet. `own` are watchers beside those of the hooks.
    """
    sinks = hooks.make_sinks(context.settings)
    with ExitStack() as stack:
        check_output_can_come(options.output, context.connection, options.show_option)
        if context.connection is not None:
            hooks.check_servers(context.connection, queues or {DEFAULT_QUEUE})
        if (age := context.settings.ledger_keep.seconds) is not None and not options.passes_output:
            from celeriac.runs.temporary_output import remove_old_folders  # late: `run -- COMMAND` makes no folders

            remove_old_folders(age)
        policy = stack.enter_context(kept_output(options, context.connection))
        record = stack.enter_context(open_record(policy))
        if (going_on := record.continuation) is not None:
            options, policy = going_on.options, going_on.output
            context = replace(context_of(options), folder=going_on.folder)
        watchers = stack.enter_context(hooks.open_watchers(policy))
        cluster = open_cluster(stack, context, hooks, policy, record)
        executor = cluster.executor(ledger=record.ledger)
        stack.enter_context(sending(sinks, executor.telemetry))
        record.recover(executor)
        hooks.report_start(record)
        notices = hooks.open_notices(context.settings.notices) if context.settings.notices else None
        watchers = watchers if notices is None else [*watchers, notices]
        suspension = Suspension(
            wake=cluster.wake, stop_commands=cluster.stop_commands, continue_commands=cluster.continue_commands
        )
        run = Run(
            executor,
            watchers=[*watchers, *own],
            wake=cluster.wake,
            suspension=suspension,
            max_failures=options.allowed_failures,
        )
        run.totals.on_workers, run.totals.name = context.tasks_outlive_process, record.name
        stack.enter_context(told(run.totals, notices))
        stack.enter_context(signals_to(run.interrupt))
        stack.enter_context(hangups_survived())
        stream = stack.enter_context(open_stream(cluster.wake)) if open_stream is not None else None
        with suspension.handled():
            totals = run.drive(record.tasks, stream, recovered=record.recovered)
        record.add_to(totals)
    return RunResult(totals, policy, notices)


@contextmanager
def told(totals: Totals, notices: Notices | None) -> Iterator[None]:
    """Let the notices know that the run has begun, and which error has ended it."""
    if notices is not None:
        notices.on_start(totals)
    try:
        yield
    except Exception as error:
        if notices is not None:
            notices.on_error(error)
        raise


def open_cluster(
    stack: ExitStack, context: RunContext, hooks: RunHooks, policy: OutputPolicy, record: RunRecord
) -> Cluster:
    """Open the cluster. With an optional ledger, go on without a journal if it cannot be written."""
    try:
        return stack.enter_context(hooks.open_cluster(context, policy, record.journal))
    except InvalidConfig as error:
        if error.setting != JOURNAL or record.ledger is None or not record.ledger.traits.is_optional:
            raise
        hooks.warn(f"{error}: if celeriac is killed, --resume may run commands again that had ended")
    return stack.enter_context(hooks.open_cluster(context, policy, None))


# — settings —


def context_of(options: RunOptions) -> RunContext:
    """Read the settings. Raises `InvalidConfig`."""
    settings = read_settings(options.settings, config=options.config)
    connection = connection_of(settings, local=options.local)
    return RunContext(settings=settings, config=config_of(settings, options.limits, connection), connection=connection)


def connection_of(settings: Settings, *, local: bool) -> Connection | None:
    """Return how to reach workers elsewhere; None if commands run in this process. Raises `InvalidConfig`."""
    return None if local or settings.values["broker"].value is None else settings.connection


def config_of(settings: Settings, limits: Mapping[str, Sequence[str]], connection: Connection | None) -> Config:
    """Return the executor's configuration. Raises `InvalidConfig`."""
    config = settings.executor
    if connection is not None:
        from celeriac.runs.limits import check_machine_limits  # late, as below

        check_machine_limits(settings)
    if any(limits.values()):
        from celeriac.runs.limits import with_limits  # late: few runs have limits

        config = with_limits(config, limits)
    if connection is None and config.gpus is not None:
        amounts_here(config)  # raises
    if connection is not None and config.has_shared_limits:
        from celeriac.runs.limits import check_backend_keeps_limits  # late, as above

        check_backend_keeps_limits(connection)
    if connection is not None and settings.values["parallelism"].origin == DEFAULT:
        config = replace(config, parallelism=REMOTE_PARALLELISM)
    return config


# — tasks —


def read_checked(
    options: JobRunOptions,
    check: TaskCheck,
    on_read: Callable[[int], None] | None,
    on_wait: Callable[[], None] | None,
) -> Jobs | PlainJobs:
    jobs = jobs_of(options, on_read, on_wait)
    file = "command" if options.file is None else options.file
    check_limits(jobs, check, file, lambda: lines_of(options))
    check_output_spares_file(options, jobs)
    check_artifacts_have_place(options, jobs, is_local=check.is_local)
    return jobs


def jobs_of(
    options: JobRunOptions, on_read: Callable[[int], None] | None, on_wait: Callable[[], None] | None
) -> Jobs | PlainJobs:
    if options.command is not None:
        key = as_unicode(" ".join(options.command))[:MAX_DERIVED_KEY]
        return Jobs([Task(key=key, command=options.command, **options.defaults)])
    if options.file is None and options.template is not None:
        return read_arguments(options.template, options.defaults, on_read)
    file = "-" if options.file is None else options.file
    return read_whole(file, options.format, options.defaults, on_read, on_wait, options.template)


def check_for(context: RunContext) -> TaskCheck:
    return TaskCheck(context.config, is_local=context.connection is None)


def lines_of(options: JobRunOptions) -> Mapping[str, int]:
    """Return the line of each key in the file of a run; none if it cannot be read again."""
    if options.file is None or not options.is_of_file:
        return {}
    return line_numbers(options.file, options.format, options.defaults, options.template)
