"""Run a program of the cluster's scheduler, and tell its errors in one line."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

from celeriac.autoscale.allocation import SchedulerError
from celeriac.errors import on_one_line

TIMEOUT = 60.0  # seconds for one program
MAX_TEXT = 300  # characters of its error
OWN_VARIABLES = "CELERIAC_"


def clean_environment() -> Mapping[str, str]:
    """Return the environment without the settings of Celeriac, which may be secret: a scheduler keeps what it gets."""
    return {name: value for name, value in os.environ.items() if not name.startswith(OWN_VARIABLES)}


def run_program(command: Sequence[str], script: str = "") -> str:
    """Run a program with a script as its standard input. Return its output. Raise `SchedulerError`."""
    name = command[0]
    try:
        done = subprocess.run(
            [*command],
            input=script,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            env=clean_environment(),
            start_new_session=True,  # Ctrl-C is for this process: it cancels what was submitted
            check=False,
        )
    except OSError as error:
        raise SchedulerError(f"{name} cannot be run: {error.strerror or error}") from None
    except subprocess.TimeoutExpired:
        raise SchedulerError(f"{name} has not ended after {TIMEOUT:g} s") from None
    if done.returncode != 0:
        said = next((line.strip() for line in done.stderr.splitlines() if line.strip()), "it says nothing")
        text = said.removeprefix(f"{name}: ").removeprefix("error: ")
        raise SchedulerError(on_one_line(f"{name} failed with status {done.returncode}: {text}"[:MAX_TEXT]))
    return done.stdout
