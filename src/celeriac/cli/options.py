"""Options that several commands share, and bad input as one line on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import click

from celeriac.cli.exit_status import BAD_INPUT, INTERRUPTED
from celeriac.cli.json_errors import print_json_error
from celeriac.cli.messages import print_line, print_message
from celeriac.cli.output_options import shown_options
from celeriac.cli.path_completion import complete_file, complete_folder
from celeriac.cli.url_options import url_option
from celeriac.errors import (
    BackendUnavailable,
    BrokerUnavailable,
    InvalidConfig,
    InvalidInput,
    LedgerError,
    QueueRefused,
)
from celeriac.task.task import Task, is_unicode
from celeriac.worker.signals import signals_to

P = ParamSpec("P")
R = TypeVar("R")

config_option = click.option(
    "--config", metavar="FILE", shell_complete=complete_file, help="Read FILE instead of the nearest celeriac.toml."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

CONNECTION_OPTIONS = (
    url_option("broker", metavar="URL", help="The broker: redis://HOST/0, rediss://…, amqp://USER@HOST// or amqps://…"),
    url_option("backend", metavar="URL", help="The result backend. [default: the broker, if it is Redis or Valkey]"),
    click.option(
        "--tls-ca", metavar="FILE", shell_complete=complete_file, help="CA certificates for rediss:// and amqps://."
    ),
    click.option(
        "--tls-cert",
        metavar="FILE",
        shell_complete=complete_file,
        help="Client certificate, if the server requires one.",
    ),
    click.option(
        "--tls-key", metavar="FILE", shell_complete=complete_file, help="Private key of the client certificate."
    ),
    click.option(
        "--queue-type", metavar="KIND", help="Type of RabbitMQ's queues: classic or quorum. [default: classic]"
    ),
    config_option,
)
CONNECTION_NAMES = ("broker", "backend", "tls_ca", "tls_cert", "tls_key", "queue_type")
"""The connection options that are also settings."""


def connection_options(command: Callable[P, R]) -> Callable[..., R]:
    for option in reversed(CONNECTION_OPTIONS):
        command = option(command)
    return command


FORMATS = ("auto", "json", "jsonl", "csv", "tsv", "lines", "text")
"""`celeriac.runs.job_file.FORMATS`, which would take long to import for a command that reads no job file."""

JOB_OPTIONS = (
    click.option(
        "--format",
        "format_",
        type=click.Choice(FORMATS),
        default="auto",
        metavar="FORMAT",
        help="Format of FILE: json (or jsonl), csv, tsv, or lines (or text): one shell command a line. [default: auto, "
        "from its extension or first line]",
    ),
    click.option("--timeout", type=float, metavar="SECONDS", help="Default timeout of a job; it then gets TERM."),
    click.option("--grace", type=float, metavar="SECONDS", help="Default time from TERM to KILL. [default: 5]"),
    click.option("--retries", type=int, metavar="N", help="Default number of retries after a failure. [default: 0]"),
    click.option(
        "--retry-delay", type=float, metavar="SECONDS", help="Default delay before the first retry. [default: 1]"
    ),
    click.option(
        "--scratch",
        is_flag=True,
        default=None,
        help="Give each attempt a folder for temporary files, $CELERIAC_TMPDIR, and remove it at the end.",
    ),
    click.option("--not-before", metavar="TIME", help="Start no job before TIME: 2030-01-31T04:15, or a delay: 1h30m."),
    click.option("--deadline", metavar="TIME", help="A job that has not started by TIME fails without running."),
)
DEFAULT_MOMENTS = ("not_before", "deadline")
DEFAULT_NAMES = ("timeout", "grace", "retries", "retry_delay", "scratch", *DEFAULT_MOMENTS)
"""The options that are defaults for jobs."""


def job_options(command: Callable[P, R]) -> Callable[P, R]:
    for option in reversed(JOB_OPTIONS):
        command = option(command)
    return command


def take_defaults(options: dict[str, Any]) -> dict[str, Any]:
    """Remove the defaults for jobs from the options and return those that were given. Raises `InvalidTask`."""
    values = {name: options.pop(name) for name in DEFAULT_NAMES}
    defaults = {name: value for name, value in values.items() if value is not None}
    for name in DEFAULT_MOMENTS:
        if name in defaults:
            defaults[name] = take_moment(name, defaults[name])
    Task(key="", command="true", **defaults)
    return defaults


def take_moment(name: str, text: str) -> float:
    """Return the time that an option means, in seconds since the epoch. Raise `InvalidTask`."""
    from celeriac.task.moment import delay_of, to_moment  # late: few runs have such an option

    delay = delay_of(text)
    return to_moment(name, text) if delay is None else time.time() + delay


parallelism_option = click.option(
    "-j",
    "--parallelism",
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of slots: so many tasks run at once. [default: one per CPU; with a broker, all of its workers]",
)
RESOURCE_OPTIONS = (
    click.option(
        "--cpus",
        metavar="N",
        help="CPUs that the jobs here share by their field cpus. [default: all that it may use]",
    ),
    click.option("--memory", metavar="SIZE", help="The same for memory, for example 24G."),
    click.option("--gpus", metavar="N", help="The same for GPUs."),
)
RESOURCE_NAMES = ("cpus", "memory", "gpus")


def resource_options(command: Callable[P, R]) -> Callable[P, R]:
    """Add the options for what jobs of this process share."""
    for option in reversed(RESOURCE_OPTIONS):
        command = option(command)
    return command


local_run_option = click.option(
    "--local", is_flag=True, help="Run in this process, even if the configuration names a broker."
)
queue_limit_option = click.option(
    "--queue-limit",
    "queue_limits",
    multiple=True,
    metavar="QUEUE=N",
    help="Maximum number of slots for one queue. Repeatable.",
)
SHARED_LIMIT_OPTIONS = (
    click.option(
        "--concurrency-limit",
        "concurrency_limits",
        multiple=True,
        metavar="KEY=N",
        help='At most N jobs with this concurrency_key run at once; "*" for all other keys. Repeatable.',
    ),
    click.option(
        "--concurrency-rate",
        "concurrency_rates",
        multiple=True,
        metavar="KEY=RATE",
        help="The most jobs with this key that start in any second, minute or hour: db=10/m. Repeatable.",
    ),
    click.option(
        "--queue-rate",
        "queue_rates",
        multiple=True,
        metavar="QUEUE=RATE",
        help="The same for the jobs of a queue. Repeatable.",
    ),
)


def limit_options(command: Callable[P, R]) -> Callable[P, R]:
    """Add the options for limits of queues and of concurrency keys."""
    for option in (*reversed(SHARED_LIMIT_OPTIONS), queue_limit_option):
        command = option(command)
    return command


MACHINE_OPTIONS = (
    click.option(
        "--max-load", metavar="LOAD", help="Start nothing while the load is above LOAD: 8, or 100% for one per CPU."
    ),
    click.option(
        "--min-free-memory", metavar="SIZE", help="Start nothing while less memory is free, such as 500M or 2G."
    ),
)
MACHINE_NAMES = ("max_load", "min_free_memory")
"""The limits of the machine that runs the commands, which are also settings."""

delay_option = click.option("--delay", metavar="SECONDS", help="Time from one start to the next. [default: 0]")
START_NAMES = (*MACHINE_NAMES, "delay")


def machine_options(command: Callable[P, R]) -> Callable[P, R]:
    """Add the limits of the machine that runs the commands."""
    for option in reversed(MACHINE_OPTIONS):
        command = option(command)
    return command


def place_options(command: Callable[P, R]) -> Callable[P, R]:
    """Add the options for where the tasks of a run are executed."""
    for option in (
        delay_option,
        machine_options,
        resource_options,
        limit_options,
        local_run_option,
        connection_options,
        parallelism_option,
    ):
        command = option(command)
    return command


COURSE_OPTIONS = (
    click.option(
        "--keep-going/--fail-fast",
        default=True,
        help="After a failure, run the other tasks (the default), or start nothing more.",
    ),
    click.option(
        "--max-failures", type=click.IntRange(min=1), metavar="N", help="Start nothing more after N failures."
    ),
    click.option(
        "-o",
        "--output",
        metavar="DIR",
        shell_complete=complete_folder,
        help="Keep the output of each task in DIR/KEY.out and .err; without a broker, artifacts in DIR/KEY.artifacts.",
    ),
    click.option(
        "--output-limit",
        type=click.IntRange(min=0),
        metavar="BYTES",
        help="Maximum size of each output file; the middle is left out. [default: 10 MiB]",
    ),
    click.option(
        "--events",
        metavar="FILE",
        shell_complete=complete_file,
        help='Write each event of each task to FILE ("-": standard output), one JSON object per line.',
    ),
    click.option("-q", "--quiet", is_flag=True, help="Print failures only: no progress, no summary."),
)


def course_options(command: Callable[P, R]) -> Callable[P, R]:
    """Add the options for when a run stops, and what it keeps and prints."""
    command = shown_options(command)
    for option in reversed(COURSE_OPTIONS):
        command = option(command)
    return command


NOTICE_OPTIONS = (
    click.option(
        "--on-end", metavar="COMMAND", help="When the run has ended, run this shell command with the summary as JSON."
    ),
    url_option("notify", metavar="URL", help="When the run has ended, POST the summary as JSON to this URL."),
    click.option(
        "--notify-first-failure",
        is_flag=True,
        default=None,
        help="Call --on-end and --notify also when the first task has failed.",
    ),
)
NOTICE_NAMES = ("on_end", "notify", "notify_first_failure")
"""The options that say what is told of the end of a run."""


def notice_options(command: Callable[P, R]) -> Callable[..., R]:
    """Add the options for what is told of the end of a run."""
    for option in reversed(NOTICE_OPTIONS):
        command = option(command)
    return command


where_option = click.option(
    "--where", metavar="EXPR", help="Only tasks for which this holds, such as 'queue=gpu and took>60'."
)
tags_option = click.option(
    "--tags", multiple=True, metavar="TAG,...", help="Words by which `celeriac runs --tag` finds the run. Repeatable."
)


def take_tags(given: Sequence[str], option: str = "--tags") -> tuple[str, ...]:
    """Return the tags of an option that may be given several times. Raises `InvalidTask`."""
    if not given:
        return ()
    from celeriac.task.tags import parse_tags  # late: few runs have tags

    return parse_tags([tag for text in given for tag in parse_tags(text, option)], option)


SETTING_NAMES = ("parallelism", "ledger", *RESOURCE_NAMES, *START_NAMES, *CONNECTION_NAMES, *NOTICE_NAMES)


def take_settings(options: dict[str, Any]) -> dict[str, Any]:
    """Remove the settings of a run from its options and return them."""
    return {name: options.pop(name) for name in SETTING_NAMES}


def check_local(settings: Mapping[str, Any], *, local: bool) -> None:
    """Raise `UsageError` if --local is given together with a broker or a result backend."""
    if local and (settings["broker"] or settings["backend"]):
        raise click.UsageError("--local takes neither --broker nor --backend")


def exit_on_signal(function: Callable[P, R]) -> Callable[P, R]:
    """On Ctrl-C or SIGTERM, clean up, print one line and exit with status 130. A run that has begun handles both."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with signals_to(interrupt):
                return function(*args, **kwargs)
        except KeyboardInterrupt:
            print_line("interrupted")
            sys.exit(INTERRUPTED)

    return call


class Interrupted(KeyboardInterrupt):
    """An interrupt that is handled. If a plain `KeyboardInterrupt` passes through `exec` of a text, as in imports of
    dataclasses, `python -m` ends itself with SIGINT at its exit, whatever the exit status."""


def interrupt() -> None:
    """Raise what `except KeyboardInterrupt` catches."""
    raise Interrupted


def exit_on_bad_input(function: Callable[P, R]) -> Callable[P, R]:
    """Report errors that the user can correct as one line on standard error, and exit with status 2."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (InvalidInput, LedgerError, QueueRefused, BrokerUnavailable, BackendUnavailable) as error:
            print_message(str(error))
            print_json_error(str(error))
            sys.exit(BAD_INPUT)

    return call


def check_text(setting: str, *names: str) -> None:
    """Raise `InvalidConfig` for text that cannot be a key, a queue or an id."""
    for name in names:
        if not is_unicode(name):
            raise InvalidConfig(setting, f"{name!r} is not Unicode", "write it in UTF-8")
