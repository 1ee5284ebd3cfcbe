"""The checks that a worker and a service make at their start: cheap ones, which ask no server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from celeriac.config.settings import Settings
from celeriac.doctor.check import Examination, Finding, Level, Subject
from celeriac.doctor.files import Given, settings_subject
from celeriac.doctor.machine import machine_subject

BUDGET = 0.2  # seconds; after that, the subjects that are left are not examined


def warn_at_start(settings: Settings, warn: Callable[[str], None], *more: Subject[Any]) -> None:
    """Warn of each problem that a cheap check finds, in one line. `more` are subjects beside the machine and the
    settings."""
    subjects: list[Subject[Any]] = [
        machine_subject(settings.values["concurrency"].value),
        settings_subject(Given(settings)),
        *more,
    ]
    for finding in cheap_problems(subjects, time.monotonic() + BUDGET):
        warn(f"{finding.text}; {finding.remedy}")


def cheap_problems(subjects: Sequence[Subject[Any]], deadline: float) -> Iterator[Finding]:
    for subject in subjects:
        if time.monotonic() >= deadline:
            return
        examination = Examination(replace(subject, checks=[check for check in subject.checks if check.is_cheap]))
        examination.examine()
        yield from (finding for finding in examination.made if finding.level in (Level.WARNING, Level.ERROR))
