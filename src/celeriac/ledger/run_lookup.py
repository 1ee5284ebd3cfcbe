"""Find the run that a user names: a run of the working folder comes first.

A ledger has each name once. So if another folder has a run `jobs`, the first run of this folder's `jobs.csv` is called
`jobs-2`. In this folder `jobs` means that run, or the latest of its later ones.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from sqlalchemy import or_, select

from celeriac.ledger.database import Database
from celeriac.ledger.schema import RUNS, TASKS
from celeriac.ledger.views import RunView, find_run
from celeriac.task.task import as_unicode

NUMBER = re.compile(r"-[0-9]+")  # what is added to a name that is taken


class NamedRun(Protocol):
    """The columns of a run that decide what its name means."""

    @property
    def name(self) -> str: ...

    @property
    def source(self) -> str | None: ...


def look_up_run(database: Database, name: str | None, *, counted: bool = True) -> RunView:
    """Return the run that `name` means in the working folder, or the latest run. For `counted` see `find_run`.

    Raises `InvalidConfig` if there is none, `LedgerUnavailable` and `LedgerBroken`.
    """
    folder = working_folder()
    if name is not None and folder is not None:
        matches = or_(RUNS.c.name == name, RUNS.c.name.startswith(f"{name}-", autoescape=True))
        columns = select(RUNS.c.name, RUNS.c.source).where(matches).order_by(RUNS.c.id.desc())
        with database.reading() as connection:
            rows = connection.execute(columns).all()
        name = name_in_folder(name, folder, rows) or name
    return find_run(database, name, counted=counted)


def name_in_folder(name: str, folder: str, runs: Iterable[NamedRun]) -> str | None:
    """Return the name of the run of this folder that `name` means; None if there is none. `runs` has the latest first.

    A run of this very name is meant before a numbered one.
    """
    own = [run for run in runs if run.source is not None and folder_of(run.source) == folder]
    if any(run.name == name for run in own):
        return name
    numbered = (run.name for run in own if Path(str(run.source)).stem == name and is_numbered(run.name, name))
    return next(numbered, None)


def is_numbered(name: str, wanted: str) -> bool:
    """Return whether a run was called `wanted` with a number, because `wanted` was taken."""
    return name.startswith(wanted) and NUMBER.fullmatch(name, len(wanted)) is not None


def folder_of(source: str) -> str:
    """Return the folder of a job file."""
    return os.path.dirname(os.path.normpath(source))  # noqa: PTH120 - pathlib keeps ".." in a path


def working_folder() -> str | None:
    """Return the working folder; None if it was deleted."""
    try:
        return as_unicode(os.getcwd())  # noqa: PTH109 - like the path of a run's file, which this is compared with
    except OSError:
        return None


# — for the completion in a shell —


def list_run_names(database: Database, start: str, limit: int) -> list[str]:
    """Return the names of runs that begin so, the latest first."""
    names = select(RUNS.c.name).where(RUNS.c.name.startswith(start, autoescape=True))
    with database.reading() as connection:
        return list(connection.execute(names.order_by(RUNS.c.id.desc()).limit(limit)).scalars())


def list_keys(database: Database, run: int, start: str, limit: int) -> list[str]:
    """Return the keys of a run's tasks that begin so, in the order in which the tasks were queued."""
    keys = select(TASKS.c.key).where(TASKS.c.run == run, TASKS.c.key.startswith(start, autoescape=True))
    with database.reading() as connection:
        return list(connection.execute(keys.order_by(TASKS.c.place).limit(limit)).scalars())
