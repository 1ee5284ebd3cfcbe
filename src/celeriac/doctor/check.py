"""A check, the subject that it looks at, and what it finds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, TypeVar

from celeriac.broker.deadline_thread import DeadlineThread
from celeriac.errors import describe_error
from celeriac.surviving_loop import place_of

F = TypeVar("F")


class Unreadable(Exception):
    """The facts of a subject cannot be read, for a reason that another subject reports."""


BUG_REMEDY = "this is a bug in Celeriac; please report this line"


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    """Something may go wrong later, or works less well than it could."""

    ERROR = "error"
    """Something does not work."""

    SKIPPED = "skipped"
    """Not looked at, because something else must be mended first."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A thing that is wrong, and its remedy: an imperative."""

    level: Level
    text: str
    remedy: str


def warning(text: str, remedy: str) -> Problem:
    return Problem(Level.WARNING, text, remedy)


def error(text: str, remedy: str) -> Problem:
    return Problem(Level.ERROR, text, remedy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check(Generic[F]):
    """One check of a subject. `F` are the facts that it decides from."""

    id: str
    sound: str
    """The sentence that holds if nothing is wrong."""

    risk: str
    """What happens otherwise, for `docs/doctor.md`."""

    look: Callable[[F], Iterable[Problem]]
    describe: Callable[[F], str] | None = None
    """Returns what to say in place of `sound` if nothing is wrong."""

    is_vital: bool = False
    """Whether the other checks of the subject make no sense after an error of this one."""

    is_cheap: bool = False
    """Whether a worker and a service make it at their start, too."""


@dataclass(frozen=True, slots=True)
class Subject(Generic[F]):
    """Something to examine."""

    name: str
    read: Callable[[], F]
    """Returns the facts. It may block, and handles the errors of servers itself."""

    checks: Sequence[Check[F]]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check: a sentence, and a remedy if something is wrong."""

    subject: str
    check: str
    level: Level
    text: str
    remedy: str | None = None


def examine(subjects: Sequence[Subject[Any]], *, timeout: float) -> list[Finding]:
    """Make all checks of all subjects, beside each other. Give up after `timeout` seconds what has not ended."""
    examinations = [Examination(subject) for subject in subjects]
    for each in examinations:
        each.begin()
    deadline = time.monotonic() + timeout
    for each in examinations:
        each.wait(deadline - time.monotonic())
    return [finding for each in examinations for finding in each.findings(timeout)]


@dataclass(slots=True)
class Examination:
    """The examination of one subject, in a thread of its own."""

    subject: Subject[Any]
    made: list[Finding] = field(default_factory=list)
    _number: int = 0
    """How many checks have ended."""

    _thread: DeadlineThread[None] = field(default_factory=lambda: DeadlineThread("celeriac-doctor"))

    def begin(self) -> None:
        self._thread.begin(self.examine)

    def wait(self, timeout: float) -> None:
        with suppress(TimeoutError):
            self._thread.reply(timeout)
        self._thread.close()

    def findings(self, timeout: float) -> Iterator[Finding]:
        """Yield a finding for each check, also for one that has not ended after `timeout` seconds."""
        number, made = self._number, list(self.made)
        yield from made
        late = self.subject.checks[number:]
        for check in late[:1]:
            text = f"there is no answer after {timeout:g} s"
            yield self._finding(check, error(text, "see whether the server or the disk hangs"))
        for check in late[1:]:
            yield self._skipped(check)

    def examine(self) -> None:
        """Make all checks in the caller's thread."""
        checks = self.subject.checks
        facts, vital_failed = None, True
        try:
            facts, vital_failed = self.subject.read(), False
        except Unreadable:
            pass
        except Exception as bug:  # noqa: BLE001 - other subjects go on
            self._add([self._finding(checks[0], bug_in(bug))])
        for check in checks[self._number :]:
            if vital_failed:
                self._add([self._skipped(check)])
                continue
            found = [*self._look(check, facts)]
            self._add(found)
            vital_failed = check.is_vital and any(finding.level is Level.ERROR for finding in found)

    def _look(self, check: Check[Any], facts: Any) -> Iterator[Finding]:
        try:
            problems = list(check.look(facts))
            sound = check.sound if check.describe is None or problems else check.describe(facts)
        except Exception as bug:  # noqa: BLE001 - other checks go on
            yield self._finding(check, bug_in(bug))
            return
        for problem in problems:
            yield self._finding(check, problem)
        if not problems:
            yield Finding(self.subject.name, check.id, Level.OK, sound)

    def _add(self, findings: list[Finding]) -> None:
        self.made += findings
        self._number += 1

    def _finding(self, check: Check[Any], problem: Problem) -> Finding:
        return Finding(self.subject.name, check.id, problem.level, problem.text, problem.remedy)

    def _skipped(self, check: Check[Any]) -> Finding:
        return Finding(self.subject.name, check.id, Level.SKIPPED, "not looked at: first mend the errors above")


def bug_in(bug: Exception) -> Problem:
    return error(f"this check failed: {describe_error(bug)} ({place_of(bug)})", BUG_REMEDY)
