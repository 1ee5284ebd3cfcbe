"""The inputs of a run besides its tasks: the folder in which its commands run, how its file is read, and how many
commands run at a time.

A run remembers them in its ledger. So `--resume` and `retry` work from any folder, and without the options of the
first start.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from celeriac.errors import InvalidConfig

if TYPE_CHECKING:
    from celeriac.ledger.inputs import RunInputs
    from celeriac.runs.options import JobRunOptions, RunOptions

ANY_FORMAT = "auto"
PARALLELISM = "parallelism"

AnyOptions = TypeVar("AnyOptions", bound="RunOptions")


def inputs_of(options: JobRunOptions, folder: str | None, *, outlives: bool) -> dict[str, Any]:
    """Return the inputs to remember: the fields of `RunInputs`.

    If workers elsewhere run the tasks, which then outlive this process, -j is not remembered: it would be wrong for
    this machine.
    """
    return {
        "folder": folder,
        "format": options.format,
        "defaults": dict(options.defaults),
        "parallelism": None if outlives else options.settings.get(PARALLELISM),
        "queue_limits": tuple(options.queue_limits),
        "output": None if options.output is None else str(Path(options.output).absolute()),
    }


def current_folder() -> str | None:
    """Return the working folder of this process; None if it was removed."""
    try:
        return str(Path.cwd())
    except OSError:
        return None


def with_inputs(options: JobRunOptions, inputs: RunInputs) -> JobRunOptions:
    """Return the options, with how the file of the run is read in the place of options that were not given."""
    file_format = inputs.format if options.format == ANY_FORMAT else options.format
    return replace(options, format=file_format, defaults={**inputs.defaults, **options.defaults})


def with_course(
    options: AnyOptions, run: str, inputs: RunInputs, warn: Callable[[str], None], *, outlives: bool
) -> AnyOptions:
    """Return the options, with -j, --queue-limit and --output of the run in the place of those that were not given.

    Prints a line that says what was added. If workers elsewhere run the tasks, which then outlive this process, only
    --queue-limit is added.
    """
    added: list[str] = []
    if inputs.parallelism is not None and options.settings.get(PARALLELISM) is None and not outlives:
        added += ["-j", str(inputs.parallelism)]
        options = replace(options, settings={**options.settings, PARALLELISM: inputs.parallelism})
    if inputs.queue_limits and not options.queue_limits:
        added += [word for limit in inputs.queue_limits for word in ("--queue-limit", limit)]
        options = replace(options, queue_limits=inputs.queue_limits)
    if inputs.output is not None and options.output is None and not outlives:
        added += ["--output", inputs.output]
        options = replace(options, output=inputs.output)
    if added:
        warn(f"run {run} goes on as it began, with {shlex.join(added)}")
    return options


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
