"""What several commands have in common: the options that reach a broker, and one line for bad input."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import click

P = ParamSpec("P")
R = TypeVar("R")

BAD_INPUT = 2

config_option = click.option("--config", metavar="FILE", help="Read FILE instead of the nearest celeriac.toml.")

CONNECTION_OPTIONS = (
    click.option("--broker", metavar="URL", help="redis://HOST/0, rediss://…, amqp://USER:PASSWORD@HOST//, amqps://…"),
    click.option("--backend", metavar="URL", help="Where results are kept. Default: the broker, if it is a Redis."),
    click.option("--tls-ca", metavar="FILE", help="Certificates to trust, for rediss:// and amqps://."),
    click.option("--tls-cert", metavar="FILE", help="Our own certificate, if the server wants one."),
    click.option("--tls-key", metavar="FILE", help="Its key."),
    config_option,
)
CONNECTION_NAMES = ("broker", "backend", "tls_ca", "tls_cert", "tls_key")
"""What they are called as settings."""


def connection_options(command: Callable[P, R]) -> Callable[P, R]:
    for option in reversed(CONNECTION_OPTIONS):
        command = option(command)
    return command


JOB_OPTIONS = (
    click.option(
        "--format",
        "format_",
        type=click.Choice(["auto", "jsonl", "csv", "tsv", "text"]),
        default="auto",
        show_default=True,
        help="How FILE is written. auto: by its extension, or the first line of standard input.",
    ),
    click.option("--timeout", type=float, metavar="SECONDS", help="For tasks that name none: TERM after so long."),
    click.option("--grace", type=float, metavar="SECONDS", help="For tasks that name none: from TERM to KILL. [5]"),
    click.option(
        "--retries", type=int, metavar="N", help="For tasks that name none: more attempts after a failed one. [0]"
    ),
    click.option(
        "--retry-delay", type=float, metavar="SECONDS", help="For tasks that name none: before the 2nd attempt. [1]"
    ),
)
DEFAULT_NAMES = ("timeout", "grace", "retries", "retry_delay")
"""What they say for tasks that do not say it themselves."""


def job_options(command: Callable[P, R]) -> Callable[P, R]:
    for option in reversed(JOB_OPTIONS):
        command = option(command)
    return command


PLACES_OPTIONS = (
    click.option(
        "-j",
        "--parallelism",
        type=click.IntRange(min=1),
        metavar="N",
        help="Slots. [one per CPU; with --broker as many as the workers can use]",
    ),
    connection_options,
    click.option("--local", is_flag=True, help="Run in this process, whatever broker the configuration names."),
    click.option(
        "--queue-limit",
        "queue_limits",
        multiple=True,
        metavar="QUEUE=N",
        help="Slots that one queue may take. Repeatable.",
    ),
)
COURSE_OPTIONS = (
    click.option(
        "--keep-going/--fail-fast",
        default=True,
        help="After a failure, run the rest (the default) or start nothing more.",
    ),
    click.option(
        "--max-failures", type=click.IntRange(min=1), metavar="N", help="Start nothing more after N failures."
    ),
    click.option("-o", "--output", metavar="DIR", help="Keep what every task writes, in DIR/KEY.out and DIR/KEY.err."),
    click.option(
        "--output-limit",
        type=click.IntRange(min=0),
        metavar="BYTES",
        help="Kept of each stream: head and end. [10 MiB]",
    ),
    click.option("--events", metavar="FILE", help="Write every move of every task to FILE, one JSON object a line."),
)


def places_options(command: Callable[P, R]) -> Callable[P, R]:
    """Of commands that run tasks: where."""
    for option in reversed(PLACES_OPTIONS):
        command = option(command)
    return command


def defaults_among(options: Mapping[str, Any]) -> dict[str, Any]:
    """What the options say for tasks that do not say it themselves. Raises `InvalidTask`."""
    from celeriac.task.task import Task

    defaults = {name: options[name] for name in DEFAULT_NAMES if options[name] is not None}
    Task(key="", command="true", **defaults)
    return defaults


def course_options(command: Callable[P, R]) -> Callable[P, R]:
    """Of commands that run tasks: when to stop, and what is kept."""
    for option in reversed(COURSE_OPTIONS):
        command = option(command)
    return command


def or_bad_input(function: Callable[P, R]) -> Callable[P, R]:
    """Turn what the user can mend into one line on standard error and exit status 2."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        from celeriac.errors import InvalidInput, LedgerError, QueueRefused

        try:
            return function(*args, **kwargs)
        except (InvalidInput, LedgerError, QueueRefused) as error:
            click.echo(f"celeriac: {error}", err=True)
            sys.exit(BAD_INPUT)

    return call
