"""What `cancel`, `drain` and `explain` have in common: whom they ask, and how they say what went wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, Protocol, TypeVar

import click

from celeriac.cli.options import or_bad_input

if TYPE_CHECKING:
    from celery import Celery

    from celeriac.config.settings import Connection, Settings
    from celeriac.control.wire import ReplyMessage
    from celeriac.executor.requests import Request

P = ParamSpec("P")
R = TypeVar("R")

FAILED = 1

local_option = click.option(
    "--local", is_flag=True, help="Ask the runs of this machine, whatever broker is configured."
)
wait_option = click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="Until it is done, so long at the most.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="As JSON.")


class Calls(Protocol):
    def send_request(self, request: Request) -> Iterator[ReplyMessage]: ...


class OnBroker(NamedTuple):
    """A broker that was reached a moment ago."""

    app: Celery
    connection: Any
    timeout: float
    """Seconds that one operation may take."""


def one_line_of_error(function: Callable[P, R]) -> Callable[P, R]:
    """Bad input is status 2; a broker or result backend that is away is status 1."""

    @or_bad_input
    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        from celeriac.errors import BackendUnavailable, BrokerUnavailable

        try:
            return function(*args, **kwargs)
        except (BackendUnavailable, BrokerUnavailable) as away:
            complain(str(away))
            sys.exit(FAILED)

    return call


def complain(line: str) -> None:
    from celeriac.cli.formatting import on_one_line

    click.echo(on_one_line(f"celeriac: {line}"), err=True)


def keep_logs_quiet() -> None:
    """What concerns the user is said once, as the command's own answer."""
    import logging

    for name in ("celeriac", "celery", "kombu", "amqp"):
        logging.getLogger(name).addHandler(logging.NullHandler())


@contextmanager
def on_broker(connection: Connection) -> Iterator[OnBroker]:
    """Raises `BrokerAway`."""
    from celeriac.broker.app import app_for
    from celeriac.broker.session import BrokerSession
    from celeriac.cluster.status import ANSWERS

    keep_logs_quiet()
    app, timeout = app_for(connection), connection.operation_timeout
    with BrokerSession(app, timeout=max(timeout, 2 * ANSWERS)).open() as talk:
        yield OnBroker(app, talk, timeout)


@contextmanager
def executors_of(settings: Settings, *, local: bool) -> Iterator[tuple[Calls, OnBroker | None]]:
    """As `celeriac run` decides: those of the broker that is named, or of this machine."""
    if local or settings.values["broker"].value is None:
        from celeriac.control.unix_client import UnixControlClient

        yield UnixControlClient(), None
        return
    from celeriac.control.broker_client import BrokerControlClient

    with on_broker(settings.connection) as broker:
        yield BrokerControlClient(broker.connection), broker


def check_text(setting: str, *names: str) -> None:
    """Raises `InvalidConfig` for what no key, queue or id can be."""
    from celeriac.errors import InvalidConfig

    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InvalidConfig(setting, f"{name!r} is not Unicode", "write it in UTF-8") from None


def check_local(settings: dict[str, Any], *, local: bool) -> None:
    if local and (settings["broker"] or settings["backend"]):
        raise click.UsageError("--local takes neither --broker nor --backend")
