"""The script of an allocation, and the private file with the settings of its worker.

The script is kept by the scheduler, and others may read it: so it names the file, which only its owner can read.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celeriac.config.settings import Settings
from celeriac.config.worker_values import as_toml, worker_values
from celeriac.errors import InvalidConfig

JOB_PREFIX = "celeriac-"
FILE_MODE = 0o600
FOLDER_MODE = 0o700


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPlan:
    """The values that all allocations of one autoscaler have in common."""

    name: str
    user: str
    slots: int
    grace: float
    """Seconds that running commands of the worker get to finish."""

    folder: Path
    """The folder of the logs and of the private file. The nodes see it, too."""

    python: str
    """The interpreter on the nodes."""

    options: Sequence[str] = ()
    """Options for the program that submits."""

    @property
    def job_name(self) -> str:
        return JOB_PREFIX + self.name

    @property
    def settings_file(self) -> Path:
        return self.folder / f"{self.name}.toml"

    def worker_prefix(self) -> str:
        """Return how the name of each worker begins: the id of its allocation follows, and then its host."""
        return f"{self.job_name}-"


def script_of(plan: JobPlan, *, id_variable: str, folder_variable: str | None = None) -> str:
    """Return a script that becomes a worker. `folder_variable` holds the folder to work in, if that is not where the
    scheduler starts it."""
    go_there = "" if folder_variable is None else f'cd -- "${folder_variable}" || exit\n'
    words = [plan.python, "-m", "celeriac", "worker", "--config", str(plan.settings_file), "--name"]
    command = " ".join(map(shlex.quote, words))
    return f'#!/bin/sh\n{go_there}exec {command} {shlex.quote(plan.worker_prefix())}"${id_variable}"\n'


def write_settings(plan: JobPlan, settings: Settings, own: Mapping[str, Any]) -> None:
    """Write the private file: the worker's settings, and those of `own`. Raise `InvalidConfig`."""
    text = as_toml({**worker_values(settings), **own})
    try:
        plan.folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        temporary = plan.settings_file.with_suffix(f".{os.getpid()}")
        temporary.unlink(missing_ok=True)
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE), "w") as file:
            file.write(text)
        temporary.replace(plan.settings_file)
    except OSError as error:
        problem = f"{plan.folder}: {error.strerror or error}"
        raise InvalidConfig("folder", problem, "name a folder to write in with --folder") from None
