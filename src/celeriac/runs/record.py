"""`celeriac run` and its ledger: a new run, or one to go on with, and what of it is to be done."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from celeriac.config.schema import NO_LEDGER
from celeriac.config.settings import DEFAULT, Settings
from celeriac.errors import InvalidConfig, LedgerUnavailable
from celeriac.task.state import State
from celeriac.task.task import Task, TaskKey
from celeriac.worker.output import OutputPolicy

if TYPE_CHECKING:
    from celeriac.executor.executor import CeleryExecutor
    from celeriac.ledger import RunLedger
    from celeriac.ledger.retry import RetryFilter
    from celeriac.ledger.run_store import RunRef, RunStore
    from celeriac.runs.run import Totals

LONGEST_NAME = 200  # characters


class Asked(Protocol):
    """What the options say of it."""

    @property
    def file(self) -> str | None: ...
    @property
    def command(self) -> tuple[str, ...] | None: ...
    @property
    def name(self) -> str | None: ...
    @property
    def resumes(self) -> bool: ...
    @property
    def resume_failed(self) -> bool: ...
    @property
    def is_of_file(self) -> bool: ...
    @property
    def format(self) -> str: ...
    @property
    def defaults(self) -> Mapping[str, Any]: ...


@dataclass(slots=True, kw_only=True)
class Record:
    """What is to be done, and where it is written down."""

    tasks: Collection[Task]
    book: RunLedger | None = None
    name: str | None = None
    had_succeeded: int = 0
    had_failed: int = 0
    resumes: bool = False
    recovered: int = 0
    gone: Sequence[TaskKey] = field(default_factory=list)
    ended: Mapping[TaskKey, State] = field(default_factory=dict)
    journal: Path | None = None
    """A folder for what an embedded worker writes down."""

    def recover(self, executor: CeleryExecutor) -> None:
        """Have the executor go on with what had not ended."""
        coming = {task.key for task in self.tasks} if self.resumes else ()
        self.recovered = executor.recover(coming=coming, ended=self.ended)
        for key in self.gone:
            if executor.has_task(key):
                executor.revoke_task(key)

    def put_into(self, totals: Totals) -> None:
        totals.name = self.name
        totals.had_succeeded, totals.had_failed = self.had_succeeded, self.had_failed


@contextmanager
def record_of(
    asked: Asked,
    settings: Settings,
    tasks: Collection[Task],
    read: Callable[[], Collection[Task]],
    policy: OutputPolicy,
    *,
    outlives: bool,
) -> Iterator[Record]:
    """`tasks` are those of a new run; `read` gives those of a file that may have been run before. `outlives` says
    whether what is out outlives this process. Raises `InvalidConfig`, `LedgerError`, and what `read` does."""
    ledger = None if asked.command is not None else open_ledger(settings)
    if ledger is None:
        if asked.resumes:
            raise InvalidConfig("--resume", "there is no ledger to resume from", "name the one the run was kept in")
        yield Record(tasks=tasks)
        return
    from celeriac.ledger.retry import check_location
    from celeriac.ledger.views import find_run

    with ledger:
        found = ledger.latest_run_of(source_of(asked)) if asked.resumes else None
        if found is None:
            tasks = read() if asked.resumes else tasks
            found = new_run(ledger, asked, len(tasks))
            book = ledger.open_run(*found, keeps_events=False)
            record = Record(tasks=tasks, name=found.name, book=book)
        else:
            check_location(
                find_run(ledger.database, found.name, counted=False),
                ledger.count_in_flight(found.id),
                outlives=outlives,
            )
            book = ledger.open_run(*found, keeps_events=False)
            record = to_go_on_with(ledger, found, book, asked, read, outlives=outlives)
        ledger.set_output(found.id, policy.directory)
        record.journal = ledger.run_folder(found.id)
        try:
            yield record
        finally:
            let_go(ledger, book, record.journal)


def let_go(ledger: RunStore, book: RunLedger, journal: Path) -> None:
    """Of what has all been written down the journal is wanted no more."""
    try:
        if ledger.is_done(book):
            shutil.rmtree(journal, ignore_errors=True)
        ledger.close_run(book)
    except LedgerUnavailable as away:
        click.echo(f"celeriac: {away}: how the run ended is not written down there; --resume goes on with it", err=True)


def new_run(ledger: RunStore, asked: Asked, total: int) -> RunRef:
    source = source_of(asked) if asked.is_of_file else None
    run = ledger.create_named_run(
        asked.name or name_of(asked),
        is_given=asked.name is not None,
        create=lambda free: ledger.create_run(free, source),
    )
    if asked.is_of_file:
        ledger.set_content(run.id, content_of(asked), total)
    return run


def to_go_on_with(
    ledger: RunStore,
    run: RunRef,
    book: RunLedger,
    asked: Asked,
    read: Callable[[], Collection[Task]],
    *,
    outlives: bool,
) -> Record:
    content = content_of(asked)
    if ledger.has_tasks_of(run.id, content):
        plan = ledger.plan_resume_of_unchanged(run.id, failed=asked.resume_failed)
    else:
        plan = ledger.plan_resume(run.id, read(), failed=asked.resume_failed, outlives=outlives)
        ledger.set_content(run.id, content if plan.total is not None else None, plan.total)
    return Record(
        tasks=plan.tasks,
        name=run.name,
        book=book,
        had_succeeded=plan.had_succeeded,
        had_failed=plan.had_failed,
        gone=plan.to_cancel,
        ended=plan.ended,
        resumes=True,
    )


@contextmanager
def record_to_retry(
    name: str, retry: RetryFilter, settings: Settings, policy: OutputPolicy, *, outlives: bool
) -> Iterator[Record]:
    """Of a run that is remembered. Raises `InvalidConfig` and `LedgerError`."""
    from celeriac.ledger.retry import check_retry, plan_retry
    from celeriac.ledger.run_store import RunStore
    from celeriac.ledger.views import find_run

    if settings.ledger is None:
        raise InvalidConfig("ledger", "none is kept", "name the one that the run was kept in")
    with RunStore(settings.ledger, must_exist=True) as ledger:
        run = find_run(ledger.database, name)
        check_retry(ledger.database, run, retry, outlives=outlives)
        book = ledger.open_run(run.id, run.name, keeps_events=False, only=retry.resumed_keys)
        journal = ledger.run_folder(run.id)
        try:
            ledger.set_output(run.id, policy.directory)
            plan = plan_retry(ledger.database, run.id, retry)
            yield Record(tasks=plan.tasks, book=book, name=run.name, journal=journal, ended=plan.ended, resumes=True)
        finally:
            let_go(ledger, book, journal)


def open_ledger(settings: Settings) -> RunStore | None:
    """The default one is a courtesy: where it cannot be made, a line says so, and the run is not remembered."""
    value = settings.values["ledger"]
    if value.value == NO_LEDGER:
        return None
    from celeriac.ledger.database import folder_of, is_writable_folder
    from celeriac.ledger.run_store import RunStore  # a fifth of a second, for SQLAlchemy

    if value.origin == DEFAULT and not is_writable_folder(folder_of(value.value)):
        click.echo(f"celeriac: {folder_of(value.value)} cannot be made: this run is not remembered", err=True)
        return None
    return RunStore(value.value)


def source_of(asked: Asked) -> str:
    return str(Path(str(asked.file)).absolute())


def content_of(asked: Asked) -> str:
    """Of the file, and of the options that its tasks take from. A file that cannot be read is `read_jobs`'s to tell."""
    try:
        with Path(str(asked.file)).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
    except OSError:
        return ""
    digest.update(repr((asked.format, sorted(asked.defaults.items()))).encode())
    return digest.hexdigest()


def name_of(asked: Asked) -> str:
    return "stdin" if asked.file == "-" else Path(str(asked.file)).stem[:LONGEST_NAME] or "run"
