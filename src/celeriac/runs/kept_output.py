"""Where a run keeps the output of its commands."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from celeriac.config.settings import can_hold_claims, scheme_of
from celeriac.errors import InvalidConfig
from celeriac.runs.job_file.jobs import PlainJobs
from celeriac.task.task import is_unicode
from celeriac.worker.output import DEFAULT_OUTPUT_CAP, OutputPolicy, file_name

if TYPE_CHECKING:
    from celeriac.config.settings import Connection
    from celeriac.runs.job_file import Jobs
    from celeriac.runs.options import JobRunOptions, RunOptions

UNLIMITED = 2**62  # bytes of an output that an option asks to show


@contextmanager
def kept_output(options: RunOptions, connection: Connection | None) -> Iterator[OutputPolicy]:
    """Yield where output is kept: in --output, or in a temporary folder. The latter is removed if no task failed.

    Workers elsewhere send output only if an option asks for it.
    """
    if connection is not None and options.output is None and options.show_option is None:
        yield OutputPolicy(cap=cap_of(options))
        return
    if options.passes_output:
        yield OutputPolicy(inherits_input=True, inherits_output=True)
        return
    policy = OutputPolicy(cap=cap_of(options), inherits_input=options.passes_input, is_read=options.shows_output)
    if options.output is not None:
        yield replace(policy, directory=output_folder(options.output))
        return
    from celeriac.runs.temporary_output import in_use  # late: many runs need no temporary folder

    folder = temporary_folder()
    with in_use(folder):
        yield replace(policy, directory=folder, keep=False)


def cap_of(options: RunOptions) -> int:
    """Return the bytes that are kept of each stream."""
    if options.output_limit is not None:
        return options.output_limit
    return DEFAULT_OUTPUT_CAP if options.show_option is None else UNLIMITED


def with_output(policy: OutputPolicy, output: str | None) -> OutputPolicy:
    """Return the policy that keeps output in --output, if it is given. Raises `InvalidConfig`."""
    if output is None or policy.inherits_output:
        return policy
    return replace(policy, directory=output_folder(output), keep=True)


def with_earlier_folder(policy: OutputPolicy, folder: str | None, *, outlives: bool) -> OutputPolicy:
    """Return the policy that goes on in the folder of an earlier process of the run.

    If workers elsewhere run the tasks, those in flight send their output, and the begin of it may be there. An own
    --output overrides that: `with_output`.
    """
    if folder is None or not outlives:
        return policy
    from celeriac.runs.temporary_output import is_temporary  # late, as above

    is_kept = not is_temporary(Path(folder))
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError:  # another machine: what comes is kept where this process wants it
        return policy
    return replace(policy, directory=Path(folder), keep=is_kept or (policy.keep and policy.directory is not None))


def temporary_folder() -> Path:
    """Make a folder. Raises `InvalidConfig`."""
    from celeriac.runs.temporary_output import PREFIX
    from celeriac.worker.temporary_folder import SETTING, make_temporary_folder

    return unicode_folder(SETTING, make_temporary_folder(PREFIX, "set it to a writable folder, or give --output"))


def check_output_can_come(output: str | None, connection: Connection | None, show_option: str | None = None) -> None:
    """Raise `InvalidConfig` if output is to be kept or shown here, and cannot come from workers elsewhere."""
    option = "--output" if output is not None else show_option
    if connection is None or option is None or can_hold_claims(connection.backend):
        return
    problem = f"a result backend of kind {scheme_of(connection.backend)!r} cannot carry the output of commands"
    raise InvalidConfig(option, problem, "use Redis, Valkey or a database, or see the last lines with celeriac logs")


def check_output_spares_file(options: JobRunOptions, jobs: Jobs | PlainJobs) -> None:
    """Raise `InvalidConfig` if the output of a task would overwrite the job file."""
    if options.output is None or options.file is None:
        return
    file, folder = Path(options.file), Path(options.output)
    stem = file.stem.partition("@")[0]
    if file.suffix not in (".out", ".err") or not (folder.is_dir() and folder.samefile(file.parent)):
        return
    for key, _ in jobs.commands():
        if file_name(str(key), attempt=1) == stem:
            problem = f"the output of task {key!r} would overwrite {options.file}"
            raise InvalidConfig("--output", problem, "name another folder")


def check_artifacts_have_place(options: JobRunOptions, jobs: Jobs | PlainJobs, *, is_local: bool) -> None:
    """Raise `InvalidConfig` for a job with artifacts, if its output is kept in no folder. On a broker the workers keep
    it: one without a folder fails the attempt."""
    if not is_local or options.output is not None or isinstance(jobs, PlainJobs):
        return
    if (job := next((task for task in jobs if task.artifacts), None)) is not None:
        problem = f"job {str(job.key)!r} has some, which are kept beside its output"
        raise InvalidConfig("artifacts", problem, "give --output DIR")


def output_folder(path: str) -> Path:
    """Make the folder if it is missing. Raises `InvalidConfig` if files cannot be written there."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidConfig("--output", f"{path}: {error.strerror}", "name a folder to write in") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InvalidConfig("--output", f"{path} is not writable", "name another folder")
    return unicode_folder("--output", folder.absolute())


def unicode_folder(setting: str, folder: Path) -> Path:
    """Return the folder. Raises `InvalidConfig` if no event and no ledger can name the files in it."""
    if not is_unicode(str(folder)):
        raise InvalidConfig(setting, f"{str(folder)!r} is not Unicode", "name a folder whose path is in UTF-8")
    return folder
