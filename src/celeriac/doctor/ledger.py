"""Checks of a ledger in a file, without opening it: who may use it, and which disk holds it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from celeriac.doctor.check import Check, Level, Problem, Subject, error, warning
from celeriac.doctor.disk import existing_part, mount_lines, network_type, space_problem
from celeriac.errors import InvalidConfig
from celeriac.ledger.ledger_file import check_owner

OTHERS = 0o077
SQLITE = "sqlite:///"


@dataclass(frozen=True, slots=True)
class LedgerFile:
    """A ledger in a file, which need not exist yet."""

    url: str
    path: Path
    is_default: bool
    """Whether no setting names it: then runs go on without it."""

    mounts: tuple[str, ...]


# — decisions —


def disk_problem(ledger: LedgerFile) -> Iterator[Problem]:
    folder = existing_part(ledger.path.parent)
    if (kind := network_type(folder.resolve(), ledger.mounts)) is not None:
        text = f"{ledger.path} is on a network file system ({kind}), where SQLite can lose data"
        yield error(text, "name a ledger on a disk of this machine, or in PostgreSQL")


def permission_problem(ledger: LedgerFile) -> Iterator[Problem]:
    """Yield a problem if the ledger cannot be written, or if others can."""
    level = Level.WARNING if ledger.is_default else Level.ERROR
    exists = os.path.lexists(ledger.path)
    place = ledger.path if exists else existing_part(ledger.path.parent)
    if exists:
        try:
            check_owner(ledger.path)
        except InvalidConfig as problem:
            yield error(problem.problem, problem.remedy)
            return
    needed = os.W_OK if exists else os.W_OK | os.X_OK
    if not os.access(place, needed) or not (exists or place.is_dir()):
        text = f"{place} cannot be written, so runs are not recorded"
        yield Problem(level, text, "give this user the right to write it, or name another ledger")
    elif exists and (mode := ledger.path.stat().st_mode & 0o777) & OTHERS:
        text = f"other users can read the secrets in {ledger.path} (its mode is {mode:04o})"
        yield warning(text, f"chmod 600 {shlex.quote(str(ledger.path))}")


CHECKS: tuple[Check[LedgerFile], ...] = (
    Check(
        id="ledger-permissions",
        sound="this user alone can write and read the ledger",
        risk="Runs are not recorded, or other users can read secrets and change commands.",
        look=permission_problem,
        is_cheap=True,
    ),
    Check(
        id="ledger-disk",
        sound="the ledger is on a disk of this machine",
        risk="SQLite can damage the ledger.",
        look=disk_problem,
        is_cheap=True,
    ),
    Check(
        id="ledger-space",
        sound="the disk of the ledger has room",
        risk="Nothing is started while the ledger cannot grow.",
        look=lambda ledger: space_problem(existing_part(ledger.path.parent)),
        is_cheap=True,
    ),
)


def ledger_subject(url: str, *, is_default: bool, more: Sequence[Check[LedgerFile]] = ()) -> Subject[LedgerFile]:
    """Return the subject for a ledger in a file, whose URL begins with `SQLITE`, with `more` checks."""
    path = Path(url.removeprefix(SQLITE).partition("?")[0]).absolute()
    checks = (*CHECKS, *more)
    return Subject(f"ledger {path}", lambda: LedgerFile(url, path, is_default, tuple(mount_lines())), checks)


def file_subjects(url: str) -> list[Subject[LedgerFile]]:
    """Return the subject for a ledger that a service uses; none if it is on a server."""
    return [ledger_subject(url, is_default=False)] if url.startswith(SQLITE) else []
