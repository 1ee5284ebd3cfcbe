"""The inputs of a run besides its tasks: the folder in which its commands run, how its file is read, and how many
commands run at a time.

A run remembers them in its ledger. So `--resume` and `retry` work from any folder, and without the options of the
first start.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import ValidationError, convert, to_builtins
from msgspec.structs import replace

from celeriac.config.url_files import UrlFile
from celeriac.errors import InvalidConfig
from celeriac.runs.options import LIMITS

if TYPE_CHECKING:
    from celeriac.config.notice_targets import NoticeTargets
    from celeriac.ledger.inputs import RunInputs
    from celeriac.runs.job_file.template import JobTemplate
    from celeriac.runs.options import JobRunOptions, RunOptions

ANY_FORMAT = "auto"
PARALLELISM = "parallelism"
DELAY = "delay"
OPTIONS = {
    PARALLELISM: "-j",
    "cpus": "--cpus",
    "memory": "--memory",
    "gpus": "--gpus",
    "max_load": "--max-load",
    "min_free_memory": "--min-free-memory",
    DELAY: "--delay",
}
"""The options that are settings and say what there is for the tasks of a run on this machine, and when they start."""

AT_ONCE = 0.0  # seconds since the epoch
ON_END, NOTIFY, FIRST_FAILURE = "on_end", "notify", "notify_first_failure"

AnyOptions = TypeVar("AnyOptions", bound="RunOptions")


def inputs_of(options: JobRunOptions, folder: str | None, *, outlives: bool) -> dict[str, Any]:
    """Return the inputs to remember: the fields of `RunInputs`.

    If workers elsewhere run the tasks, which then outlive this process, -j and the resources are not remembered: they
    would be wrong for this machine.
    """
    return {
        "tags": tuple(options.tags),
        "folder": folder,
        "format": options.format,
        "defaults": dict(options.defaults),
        "template": None if options.template is None else to_builtins(options.template),
        **{name: None if outlives and name != DELAY else options.settings.get(name) for name in OPTIONS},
        **{name: tuple(values) for name, values in options.limits.items()},
        "output": None if options.output is None else str(Path(options.output).absolute()),
        **notice_inputs(options.settings),
    }


def notice_inputs(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is told of the end of a run, from the options that are also settings: fields of `RunInputs`."""
    url = options.get(NOTIFY)
    file = url if isinstance(url, UrlFile) else None
    return {
        ON_END: options.get(ON_END),
        NOTIFY: url if file is None else None,
        f"{NOTIFY}_file": None if file is None else str(Path(file).absolute()),
        FIRST_FAILURE: bool(options.get(FIRST_FAILURE)),
    }


def current_folder() -> str | None:
    """Return the working folder of this process; None if it was removed."""
    try:
        return str(Path.cwd())
    except OSError:
        return None


def with_inputs(options: JobRunOptions, inputs: RunInputs) -> JobRunOptions:
    """Return the options, with the tags of the run, and how its file is read, in the place of those not given."""
    file_format = inputs.format if options.format == ANY_FORMAT else options.format
    return replace(
        options,
        tags=options.tags or inputs.tags,
        format=file_format,
        defaults={**inputs.defaults, **options.defaults},
        template=remembered_template(inputs) if options.template is None else options.template,
    )


def remembered_template(inputs: RunInputs) -> JobTemplate | None:
    """Return the template of a run. Raises `InvalidConfig` if a later Celeriac has written it."""
    if inputs.template is None:
        return None
    from celeriac.runs.job_file.template import JobTemplate  # late: most runs have none

    try:
        return convert(inputs.template, JobTemplate)
    except ValidationError as error:
        raise InvalidConfig("--resume", f"the template of the run is malformed: {error}", "give -t again") from None


def with_course(
    options: AnyOptions, run: str, inputs: RunInputs, warn: Callable[[str], None], *, outlives: bool
) -> AnyOptions:
    """Return the options, with -j, the resources, limits, --output and the notices of the run in the place of those
    that were not given.

    Prints a line that says what was added. If workers elsewhere run the tasks, which then outlive this process, what
    is about this machine is not added: -j, the resources, the load.
    """
    added: list[str] = []
    for name, option in OPTIONS.items():
        if outlives and name != DELAY:
            continue
        if (value := getattr(inputs, name)) is not None and options.settings.get(name) is None:
            added += [option, str(value)]
            options = replace(options, settings={**options.settings, name: value})
    for name, option in LIMITS.items():
        if (limits := getattr(inputs, name)) and not getattr(options, name):
            added += [word for limit in limits for word in (option, limit)]
            options = replace(options, **{name: limits})
    if inputs.output is not None and options.output is None:
        added += ["--output", inputs.output]
        options = replace(options, output=inputs.output)
    if remembered := notice_options(options.settings, inputs):
        added += shown_notice_options(remembered)
        options = replace(options, settings={**options.settings, **remembered})
    if added:
        warn(f"run {run} goes on as it began, with {shlex.join(added)}")
    return options


def inputs_of_submission(targets: NoticeTargets, tags: Sequence[str] = ()) -> dict[str, Any] | None:
    """Return the inputs of a submitted run to remember; None if it has no tags, and nothing is told of its end."""
    inputs: dict[str, Any] = {"tags": tuple(tags)} if tags else {}
    if targets:
        told = {ON_END: targets.command, NOTIFY: targets.url, FIRST_FAILURE: targets.first_failure}
        inputs |= {**told, "notice_due": AT_ONCE}
    return inputs or None


def notice_options(options: Mapping[str, Any], inputs: RunInputs) -> dict[str, Any]:
    """Return the options for what is told of the end that a run remembers, and that were not given."""
    remembered = {
        ON_END: inputs.on_end,
        NOTIFY: inputs.notify if inputs.notify_file is None else UrlFile(inputs.notify_file),
        FIRST_FAILURE: inputs.notify_first_failure or None,
    }
    return {name: value for name, value in remembered.items() if value is not None and options.get(name) is None}


def shown_notice_options(options: Mapping[str, Any]) -> list[str]:
    """Return options as they are printed: a command and a URL may hold passwords."""
    words: list[str] = []
    if ON_END in options:
        words += ["--on-end", "COMMAND"]
    if NOTIFY in options:
        url = options[NOTIFY]
        words += ["--notify-file", url] if isinstance(url, UrlFile) else ["--notify", "URL"]
    return [*words, "--notify-first-failure"] if FIRST_FAILURE in options else words


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
