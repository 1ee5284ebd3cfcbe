"""`celeriac run` and its ledger: a new run, or one to go on with, and what of it is to be done."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import click

from celeriac.errors import InvalidConfig
from celeriac.setting import NO_LEDGER
from celeriac.settings import DEFAULT, Settings
from celeriac.task import Task, TaskKey
from celeriac.worker.execute_command import OutputPolicy

if TYPE_CHECKING:
    from celeriac.executor import CeleryExecutor
    from celeriac.ledger import SqlBook, SqlLedger
    from celeriac.ledger.retry import Retry
    from celeriac.run import Totals

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
    def resume(self) -> bool: ...
    @property
    def resume_failed(self) -> bool: ...


@dataclass(slots=True, kw_only=True)
class Record:
    """What is to be done, and where it is written down."""

    tasks: Collection[Task]
    book: SqlBook | None = None
    name: str | None = None
    had_succeeded: int = 0
    had_failed: int = 0
    recovered: int = 0
    gone: Sequence[TaskKey] = field(default_factory=list)

    def recover(self, executor: CeleryExecutor) -> None:
        """Have the executor go on with what had not ended."""
        self.recovered = executor.recover()
        for key in self.gone:
            if executor.has_task(key):
                executor.revoke_task(key)

    def put_into(self, totals: Totals) -> None:
        totals.name = self.name
        totals.had_succeeded, totals.had_failed = self.had_succeeded, self.had_failed


@contextmanager
def record_of(
    asked: Asked, settings: Settings, tasks: Collection[Task], policy: OutputPolicy, *, outlives: bool
) -> Iterator[Record]:
    """`outlives` says whether what is out outlives this process. Raises `InvalidConfig` and `LedgerError`."""
    resumes = asked.resume or asked.resume_failed
    ledger = None if asked.command is not None else open_ledger(settings)
    if ledger is None:
        if resumes:
            raise InvalidConfig("--resume", "there is no ledger to resume from", "name the one the run was kept in")
        yield Record(tasks=tasks)
        return
    with ledger:
        source = source_of(asked)
        found = ledger.latest_run_of(source) if resumes and source is not None else None
        if found is None:
            name = ledger.new_name(asked.name or name_of(asked), is_given=asked.name is not None)
            run = ledger.new_run(name, source)
            record = Record(tasks=tasks, name=name)
        else:
            run, name = found
            record = Record(tasks=tasks, name=name)
        record.book = ledger.open(name, run, keeps_events=False)
        ledger.set_output(run, policy.directory)
        if found is not None:
            plan = ledger.plan(run, tasks, failed=asked.resume_failed, outlives=outlives)
            record.tasks, record.gone = plan.tasks, plan.gone
            record.had_succeeded, record.had_failed = plan.had_succeeded, plan.had_failed
        try:
            yield record
        finally:
            ledger.end(record.book)


@contextmanager
def record_to_retry(
    name: str, retry: Retry, settings: Settings, policy: OutputPolicy, *, outlives: bool
) -> Iterator[Record]:
    """Of a run that is remembered. Raises `InvalidConfig` and `LedgerError`."""
    from celeriac.ledger import SqlLedger
    from celeriac.ledger.retry import check_retry, plan_for_retry
    from celeriac.ledger.runs import run_named

    if settings.ledger is None:
        raise InvalidConfig("ledger", "none is kept", "name the one that the run was kept in")
    with SqlLedger(settings.ledger, must_exist=True) as ledger:
        run = run_named(ledger.store, name)
        check_retry(ledger.store, run, retry, outlives=outlives)
        book = ledger.open(run.name, run.id, keeps_events=False, only=retry.goes_on_with)
        try:
            ledger.set_output(run.id, policy.directory)
            plan = plan_for_retry(ledger.store, run.id, retry)
            yield Record(tasks=plan.tasks, book=book, name=run.name)
        finally:
            ledger.end(book)


def open_ledger(settings: Settings) -> SqlLedger | None:
    """The default one is a courtesy: where it cannot be made, a line says so, and the run is not remembered."""
    from celeriac.ledger import SqlLedger
    from celeriac.ledger.store import folder_of, may_be_made

    value = settings.values["ledger"]
    if value.value == NO_LEDGER:
        return None
    if value.origin == DEFAULT and not may_be_made(folder_of(value.value)):
        click.echo(f"celeriac: {folder_of(value.value)} cannot be made: this run is not remembered", err=True)
        return None
    return SqlLedger(value.value)


def source_of(asked: Asked) -> str | None:
    return None if asked.file in (None, "-") else str(Path(str(asked.file)).absolute())


def name_of(asked: Asked) -> str:
    return "stdin" if asked.file == "-" else Path(str(asked.file)).stem[:LONGEST_NAME] or "run"
