"""Record a run in the ledger: create or resume the run, and find out which tasks are left to run.

    new run        ─► the file's tasks
    --resume       ─► the file's tasks that have not succeeded; those in flight are recovered
    celeriac retry ─► tasks of the ledger; no file is read

The ledger is imported only for type checkers: a run without a ledger need not load it, and a new run not SQLAlchemy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec
from msgspec import Struct, field

from celeriac.config.ledger_keep import LedgerKeep
from celeriac.errors import LedgerBroken, LedgerError, LedgerLost, LedgerUnavailable
from celeriac.executor.interfaces import LedgerTraits
from celeriac.runs.inputs import AnyOptions, current_folder, folder_of, inputs_of, with_course, with_inputs
from celeriac.runs.job_file import Jobs, PlainJobs
from celeriac.runs.kept_output import with_earlier_folder, with_output
from celeriac.runs.old_runs import announcement, remove_old_runs
from celeriac.task.state import State
from celeriac.task.task import TaskKey, as_unicode
from celeriac.worker.output import OutputPolicy

if TYPE_CHECKING:
    from celeriac.executor.executor import CeleryExecutor
    from celeriac.ledger import RunLedger
    from celeriac.ledger.inputs import RunInputs
    from celeriac.ledger.retry import RetryFilter
    from celeriac.ledger.run_recorder import RunRecorder, RunRef
    from celeriac.ledger.run_store import RunStore
    from celeriac.runs.job_file.template import JobTemplate
    from celeriac.runs.options import JobRunOptions, RunOptions
    from celeriac.runs.run import Totals

DESCRIPTOR = r"(?a)/(dev|proc/(self|\d+))/fd/\d+"
MAX_NAME_LENGTH = 200  # characters
MAX_SOURCE_LENGTH = 1_000  # characters of arguments
CANCELLED = "revoked while it waited: the run was cancelled"

Options_co = TypeVar("Options_co", bound="RunOptions", covariant=True)


class Continuation(Struct, Generic[Options_co], frozen=True):
    """How a run goes on, with what it remembers of its start."""

    folder: Path | None
    """The folder in which a worker in this process runs the commands; None for that of this process."""

    options: Options_co
    output: OutputPolicy
    """Where the output of the commands is kept."""


class RunRecord(Struct, kw_only=True):
    """The tasks that are left to run, and the run in the ledger."""

    tasks: Jobs | PlainJobs
    """The tasks to queue, without those that `recover` takes over."""

    ledger: RunLedger | None = None
    """None for a run that is not recorded."""

    name: str | None = None
    had_succeeded: int = 0
    """How many tasks had succeeded before. They do not run again."""

    had_failed: int = 0
    """How many tasks had failed before, and do not run again."""

    resumes: bool = False
    """Whether an earlier process has run a part of the run."""

    recovered: int = 0
    """How many tasks `recover` took over."""

    to_cancel: Sequence[TaskKey] = field(default_factory=list)
    """The keys of recovered tasks that the file no longer has."""

    ended: Mapping[TaskKey, State] = field(default_factory=dict)
    """The states of ended tasks that others may need."""

    journal: Path | None = None
    """The folder for the journal of a worker in this process."""

    continuation: Continuation[RunOptions] | None = None
    """How the run goes on; None for a new run."""

    totals: Totals | None = None
    """The numbers of the run, once it has ended."""

    def recover(self, executor: CeleryExecutor) -> None:
        """Make the executor resume the tasks that had not ended."""
        may_be_needed = self.resumes and not isinstance(self.tasks, PlainJobs)
        keys_to_queue = {key for key, _ in self.tasks.commands()} if may_be_needed else ()
        self.recovered = executor.recover(coming=keys_to_queue, ended=self.ended)
        for key in self.to_cancel:
            if executor.has_task(key):
                executor.revoke_task(key)

    def add_to(self, totals: Totals) -> None:
        """Add the name of the run and the results of earlier processes."""
        totals.name, self.totals = self.name, totals
        totals.had_succeeded, totals.had_failed = self.had_succeeded, self.had_failed


class Recording(Struct, frozen=True, kw_only=True):
    """How a run of a file is recorded."""

    policy: OutputPolicy
    outlives: bool
    """Whether tasks in flight outlive this process."""

    is_optional: bool
    """Whether the run goes on while the ledger cannot be written."""

    keep: LedgerKeep
    warn: Callable[[str], None]

    def traits(self, options: JobRunOptions, run: RunRef) -> LedgerTraits:
        has_source = options.is_of_file and (options.file is None or Path(options.file).is_file())
        return LedgerTraits(is_optional=self.is_optional, revokes_together=True, has_source=has_source, run=run.name)


@contextmanager
def record_jobs(
    ledger: RunRecorder, options: JobRunOptions, jobs: Jobs | PlainJobs, how: Recording
) -> Iterator[RunRecord]:
    """Yield the record of a new run with these jobs. Raises `InvalidConfig` and `LedgerError`."""
    with ledger:
        run = create_run(ledger, options, len(jobs), outlives=how.outlives)
        opened = ledger.open_run(*run, keeps_events=False, traits=how.traits(options, run))
        record = RunRecord(tasks=jobs, name=run.name, ledger=opened)
        ledger.set_output(run.id, how.policy.directory, on_workers=how.outlives)
        record.journal = ledger.run_folder(run.id)
        try:
            yield record
        finally:
            close_run(ledger, opened, record, how.keep, how.warn)


@contextmanager
def record_resumed(
    ledger: RunStore, options: JobRunOptions, read: Callable[[JobRunOptions], Jobs | PlainJobs], how: Recording
) -> Iterator[RunRecord]:
    """Yield the record of the latest run of the file, or of a new one if there is none.

    `read` returns the tasks of the file, with the options that the run remembers. Raises `InvalidConfig`, `LedgerError`
    and the errors of `read`.
    """
    with ledger:
        if (run := ledger.latest_run_of(source_path(options))) is None:
            with record_jobs(ledger, options, read(options), how) as record:
                yield record
            return
        ledger.check_resume(run, outlives=how.outlives)
        inputs = ledger.inputs_of(run.id)
        remembered = with_inputs(options, inputs)
        policy = with_earlier_folder(how.policy, ledger.output_of(run), outlives=how.outlives)
        going_on = continuation_of(run.name, inputs, remembered, policy, how.warn, outlives=how.outlives)
        options = going_on.options
        opened = ledger.open_run(*run, keeps_events=False, traits=how.traits(options, run))
        record = resume_run(ledger, run, opened, options, read, outlives=how.outlives)
        record.continuation = going_on
        ledger.set_inputs(run.id, inputs_of(options, inputs.folder or current_folder(), outlives=how.outlives))
        ledger.set_output(run.id, going_on.output.directory, on_workers=how.outlives)
        record.journal = ledger.run_folder(run.id)
        try:
            yield record
        finally:
            close_run(ledger, opened, record, how.keep, how.warn)


@contextmanager
def record_retry(
    ledger: RunStore,
    name: str | None,
    options: RunOptions,
    retry: RetryFilter,
    policy: OutputPolicy,
    *,
    outlives: bool,
    keep: LedgerKeep,
    warn: Callable[[str], None],
) -> Iterator[RunRecord]:
    """Yield the record of a run, with the tasks to run again. `name` None means the latest run.

    Raises `InvalidConfig` and `LedgerError`.
    """
    with ledger:
        run = ledger.check_retry(name, retry, outlives=outlives)
        inputs = ledger.inputs_of(run.id)
        policy = with_earlier_folder(policy, ledger.output_of(run), outlives=outlives)
        going_on = continuation_of(run.name, inputs, options, policy, warn, outlives=outlives)
        traits = LedgerTraits(revokes_together=True, has_source=True, run=run.name)
        opened = ledger.open_run(*run, keeps_events=False, only=retry.resumed_keys, traits=traits)
        record = RunRecord(tasks=Jobs(), ledger=opened, name=run.name, journal=ledger.run_folder(run.id), resumes=True)
        record.continuation = going_on
        try:
            ledger.set_output(run.id, going_on.output.directory, on_workers=outlives)
            if inputs.notice_due is not None:  # this process reports the end now, and no service
                ledger.set_inputs(run.id, {**msgspec.structs.asdict(inputs), "notice_due": None})
            plan = ledger.plan_retry(run.id, retry)
            record.tasks, record.ended = Jobs(plan.tasks), plan.ended
            yield record
        finally:
            close_run(ledger, opened, record, keep, warn)


def continuation_of(
    run: str,
    inputs: RunInputs,
    options: AnyOptions,
    policy: OutputPolicy,
    warn: Callable[[str], None],
    *,
    outlives: bool,
) -> Continuation[AnyOptions]:
    """Return how a run goes on. Prints what it remembers. Raises `InvalidConfig`."""
    folder = None if outlives else folder_of(run, inputs, warn)
    options = with_course(options, run, inputs, warn, outlives=outlives)
    return Continuation(folder, options, with_output(policy, options.output))


def create_run(ledger: RunRecorder, options: JobRunOptions, total: int, *, outlives: bool) -> RunRef:
    """Create a run for the file of the options, under a free name. Raises `InvalidConfig` if a given name is taken."""
    row: dict[str, Any] = {"inputs": inputs_of(options, current_folder(), outlives=outlives)}
    if options.is_of_file:
        row |= {"source": source_path(options), "content": content_of(options), "total": total}
    return ledger.create_named_run(
        default_name(options.file, options.template) if options.name is None else options.name,
        is_given=options.name is not None,
        create=lambda free: ledger.create_run(free, **row),
    )


def resume_run(
    ledger: RunStore,
    run: RunRef,
    opened: RunLedger,
    options: JobRunOptions,
    read: Callable[[JobRunOptions], Jobs | PlainJobs],
    *,
    outlives: bool,
) -> RunRecord:
    """Return the record of a run to resume. The file is read only if it may have changed."""
    content = content_of(options)
    is_unchanged, has_all = ledger.is_of(run.id, content)
    if has_all:
        plan = ledger.plan_resume_of_unchanged(run.id, failed=options.resume_failed)
        jobs: Jobs | PlainJobs = Jobs(plan.tasks)
    else:
        jobs = read(options)
        if not is_unchanged and jobs.numbered:
            jobs = Jobs(ledger.keep_recorded_keys(run.id, jobs.as_tasks(), jobs.numbered))
        elif isinstance(jobs, PlainJobs) and jobs.has_needs:
            jobs = jobs.as_tasks()
        plan = ledger.plan_resume(run.id, jobs.indexed(), failed=options.resume_failed, outlives=outlives)
        ledger.set_content(run.id, content if plan.is_file else None, plan.total)
        jobs = jobs.without(plan.not_queued)
    return RunRecord(
        tasks=jobs,
        name=run.name,
        ledger=opened,
        had_succeeded=plan.had_succeeded,
        had_failed=plan.had_failed,
        to_cancel=plan.to_cancel,
        ended=plan.ended,
        resumes=True,
    )


def close_run(
    ledger: RunRecorder, run: RunLedger, record: RunRecord, keep: LedgerKeep, warn: Callable[[str], None]
) -> None:
    """Give up the ownership of the run. Remove its journal if the ledger holds the end of every task, and runs that
    exceed a limit of the ledger.

    If another process has cancelled the run, its tasks that were only in its file are recorded now.

    After an interrupt this does not wait for other processes that write.
    """
    if record.totals is not None and record.totals.interrupted:
        ledger.database.on_locked = None
    try:
        if ledger.is_done(run):
            import shutil  # late, as `hashlib` is: a run without a ledger needs neither

            shutil.rmtree(str(record.journal), ignore_errors=True)
        is_cancelled = record.totals is not None and record.totals.cancelled and not record.totals.interrupted
        missing = ledger.close_run(run, record.tasks if is_cancelled else (), CANCELLED)
        if record.totals is not None:
            record.totals.unrecorded = missing
    except (LedgerUnavailable, LedgerBroken, LedgerLost) as error:
        warn(f"{error}: it does not hold the last results of the run; --resume completes it")
        return
    if record.totals is not None and not record.totals.interrupted:
        keep_limits(ledger, run, keep, warn)


def keep_limits(ledger: RunRecorder, run: RunLedger, keep: LedgerKeep, warn: Callable[[str], None]) -> None:
    """Remove the runs that exceed a limit of the ledger. Say so the first time."""
    try:
        removed = remove_old_runs(ledger, keep, present=run.run)
    except LedgerError as error:
        warn(f"{error}: old runs stay")
        return
    if removed.is_first:
        warn(announcement(keep, len(removed.runs)))


def source_path(options: JobRunOptions) -> str:
    """Return the absolute path of the job file, or the arguments: a later --resume finds the run by it."""
    if options.file is None and options.template is not None:
        return source_of_arguments(options.template)
    return as_unicode(str(Path(str(options.file)).absolute()))


def content_of(options: JobRunOptions) -> str:
    """Return the digest of the options' job file, template and defaults."""
    return content_digest(options.file, options.format, options.defaults, options.template)


def content_digest(
    file: str | None, format: str, defaults: Mapping[str, Any], template: JobTemplate | None = None
) -> str:
    """Return a digest of a job file, its format, the defaults and the template; "" for a file that cannot be read."""
    import hashlib

    digest = hashlib.sha256()
    if file is not None:
        try:
            with Path(file).open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256")
        except OSError:
            return ""
    digest.update(repr((format, sorted(defaults.items()))).encode())
    if template is not None:
        digest.update(msgspec.json.encode(template))
    return digest.hexdigest()


def source_of_arguments(template: JobTemplate) -> str:
    """Return the options and arguments that make the jobs, as they would be typed."""
    import hashlib
    import shlex

    words = ["-t", template.command, *(() if template.key is None else ("--key", template.key))]
    for values in template.lists:
        if values.name is None:
            words += [":::+" if values.is_linked else ":::", *values.values]
        else:
            words += ["--grid", f"{values.name}={','.join(values.values)}"]
    text = as_unicode(shlex.join(words))
    if len(text) <= MAX_SOURCE_LENGTH:
        return text
    return f"{text[:MAX_SOURCE_LENGTH]}... (SHA-256 {hashlib.sha256(text.encode()).hexdigest()[:16]})"


def default_name(file: str | None, template: JobTemplate | None = None) -> str:
    """Return the default name of a run: the name of its file, or of the program of a template with arguments.

    `<(COMMAND)` of a shell has only a number.
    """
    if file is None and template is not None:
        file = template.command.split()[0]
    if file == "-":
        return "stdin"
    if file is not None and file.startswith(("/dev/", "/proc/")) and re.fullmatch(DESCRIPTOR, file):
        return "pipe"
    return as_unicode(Path(str(file)).stem)[:MAX_NAME_LENGTH] or "run"
