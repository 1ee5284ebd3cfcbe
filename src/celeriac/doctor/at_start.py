"""The checks that a worker and a service make at their start: the cheap ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from celeriac.config.settings import Connection, Settings
from celeriac.doctor.check import BUG_REMEDY, Examination, Finding, Level, Subject
from celeriac.doctor.files import Given, settings_subject
from celeriac.doctor.machine import machine_subject
from celeriac.doctor.redis import backend_state_subject

BUDGET = 0.2  # seconds that the start may wait; what is not known by then is not reported


def warn_at_start(
    settings: Settings, connection: Connection | None, warn: Callable[[str], None], *more: Subject[Any]
) -> None:
    """Warn of each problem that a cheap check finds, in one line.

    `connection` is to servers, if there are any. `more` are subjects beside the machine, the settings and the servers.
    """
    local: list[Subject[Any]] = [
        machine_subject(settings.values["concurrency"].value),
        settings_subject(Given(settings)),
        *more,
    ]
    warn_of(local, None if connection is None else backend_state_subject(connection), warn)


def warn_of(local: Sequence[Subject[Any]], state: Subject[Any] | None, warn: Callable[[str], None]) -> None:
    """Warn of each problem with this machine, and with the state of the result backend, if that can be read."""
    for finding in (*local_problems(local, BUDGET / 2), *server_problems(state, BUDGET / 2)):
        warn(f"{finding.text}; {finding.remedy}")


def local_problems(subjects: Sequence[Subject[Any]], budget: float) -> Iterator[Finding]:
    deadline = time.monotonic() + budget
    for subject in subjects:
        if time.monotonic() >= deadline:
            return
        examination = cheap(subject)
        examination.examine()
        yield from problems_in(examination.made)


def server_problems(subject: Subject[Any] | None, budget: float) -> Iterator[Finding]:
    """Yield the problems of the result backend, asked in a thread that is left behind if it takes too long."""
    if subject is None:
        return
    examination = cheap(subject)
    with suppress(RuntimeError):  # there is no room for another thread
        examination.begin()
        examination.wait(budget)
        yield from problems_in(list(examination.made))


def cheap(subject: Subject[Any]) -> Examination:
    return Examination(replace(subject, checks=[check for check in subject.checks if check.is_cheap]))


def problems_in(findings: Sequence[Finding]) -> Iterator[Finding]:
    """Yield the problems. A bug in a check is left to `celeriac doctor`."""
    is_problem = (Level.WARNING, Level.ERROR)
    yield from (each for each in findings if each.level in is_problem and each.remedy != BUG_REMEDY)
