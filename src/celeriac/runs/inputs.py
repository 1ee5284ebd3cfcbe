"""The inputs of a run besides its tasks: the folder in which its commands run, and how its file is read.

A run remembers them in its ledger. So `--resume` and `retry` work from any folder, and without the options of the
first start.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celeriac.errors import InvalidConfig

if TYPE_CHECKING:
    from celeriac.ledger.inputs import RunInputs
    from celeriac.runs.launch import JobRunOptions

ANY_FORMAT = "auto"


def inputs_of(options: JobRunOptions, folder: str | None) -> dict[str, Any]:
    """Return the inputs to remember: the fields of `RunInputs`."""
    return {"folder": folder, "format": options.format, "defaults": dict(options.defaults)}


def current_folder() -> str | None:
    """Return the working folder of this process; None if it was removed."""
    try:
        return str(Path.cwd())
    except OSError:
        return None


def with_inputs(options: JobRunOptions, inputs: RunInputs) -> JobRunOptions:
    """Return the options, with those of the run in the place of options that were not given."""
    file_format = inputs.format if options.format == ANY_FORMAT else options.format
    return replace(options, format=file_format, defaults={**inputs.defaults, **options.defaults})


def folder_of(run: str, inputs: RunInputs, warn: Callable[[str], None]) -> Path | None:
    """Return the folder in which the commands of a run are to run; None for that of this process.

    Prints a line if it is another one than that of this process. Raises `InvalidConfig` if it cannot be used.
    """
    if inputs.folder is None or inputs.folder == current_folder():
        return None
    folder = Path(inputs.folder)
    if not folder.is_dir() or not os.access(folder, os.X_OK):
        problem = f"its commands run in {folder}, which is no folder that can be entered"
        raise InvalidConfig(f"run {run!r}", problem, "make it again, or run the file anew without --resume")
    warn(f"the commands run in {folder}, where run {run} began")
    return folder
