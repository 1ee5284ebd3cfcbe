"""The options of `run` and `retry`, and what follows from them alone."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct

if TYPE_CHECKING:
    from celeriac.runs.job_file.template import JobTemplate
    from celeriac.runs.pipe import PipeOptions


LIMITS = {
    "queue_limits": "--queue-limit",
    "concurrency_limits": "--concurrency-limit",
    "concurrency_rates": "--concurrency-rate",
    "queue_rates": "--queue-rate",
}
"""The option for each field of `Config` that has limits. It may be given several times."""


class RunOptions(Struct, frozen=True, kw_only=True):
    """The options that `run` and `retry` share."""

    settings: Mapping[str, Any]
    """The options that are also settings: see `celeriac.config.settings`."""

    config: str | None
    local: bool
    queue_limits: Sequence[str]
    concurrency_limits: Sequence[str] = ()
    concurrency_rates: Sequence[str] = ()
    queue_rates: Sequence[str] = ()
    keep_going: bool
    max_failures: int | None
    output: str | None
    output_limit: int | None
    shows_output: bool = False
    """Whether this process shows what the commands write."""

    show_option: str | None = None
    """The option that asks to show it; None if that is the default."""

    passes_output: bool = False
    """Whether the command writes to the standard streams of this process."""

    @property
    def limits(self) -> dict[str, Sequence[str]]:
        """The values of the options in `LIMITS`, by the name of the field."""
        return {name: getattr(self, name) for name in LIMITS}

    @property
    def passes_input(self) -> bool:
        """Whether the command reads the standard input of this process."""
        return False

    @property
    def resumes(self) -> bool:
        """Whether the run continues an earlier one."""
        return True

    @property
    def allowed_failures(self) -> int | None:
        return self.max_failures if self.keep_going else 1


class JobRunOptions(RunOptions, frozen=True, kw_only=True):
    """The options of `run`: a job file, standard input or one command."""

    file: str | None
    command: tuple[str, ...] | None
    template: JobTemplate | None = None
    """Makes the jobs of the values in the file, or of its own."""

    pipe: PipeOptions | None = None
    """Splits the file into blocks, which are the inputs of jobs."""

    format: str
    defaults: Mapping[str, Any]
    """Fields for tasks that do not set them."""

    name: str | None
    tags: Sequence[str] = ()
    """Words by which the run is found."""

    resume: bool
    resume_failed: bool

    @property
    def passes_input(self) -> bool:
        return self.command is not None

    @property
    def is_of_file(self) -> bool:
        """Whether the jobs are in a file that can be read again, or are made of arguments."""
        return self.pipe is None and is_read_again(self.file, self.template)

    @property
    def resumes(self) -> bool:
        return self.resume or self.resume_failed


def is_read_again(file: str | None, template: JobTemplate | None) -> bool:
    """Return whether the same jobs can be read a second time."""
    if file is None:
        return template is not None
    return file != "-" and not is_read_once(file)


def is_read_once(file: str) -> bool:
    """Return whether a second reader of this path gets nothing, as with a FIFO and `<(COMMAND)`."""
    try:
        mode = os.stat(file).st_mode  # noqa: PTH116 - a path may hold what `Path` refuses
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
