"""Shared parts of `cancel`, `drain` and `explain`: the executors and workers that they reach, and their errors."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, Protocol, TypeVar

import click

from celeriac.cli.exit_status import BAD_INPUT, FAILED
from celeriac.cli.json_errors import print_json_error
from celeriac.cli.messages import print_message
from celeriac.cli.options import exit_on_bad_input
from celeriac.config.settings import Connection, Settings
from celeriac.errors import BackendUnavailable, BrokerUnavailable
from celeriac.server_errors import ServerProblem, is_unknown_host, problem_of

if TYPE_CHECKING:
    from celery import Celery

    from celeriac.control.wire import ReplyMessage
    from celeriac.executor.requests import Request

P = ParamSpec("P")
R = TypeVar("R")


local_option = click.option(
    "--local", is_flag=True, help="Ask the runs on this machine, even if the configuration names a broker."
)
wait_option = click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="Wait up to SECONDS for completion. [default: 0]",
)


class ControlClient(Protocol):
    def send_request(self, request: Request) -> Iterator[ReplyMessage]: ...


class BrokerAccess(NamedTuple):
    """A broker with an open connection."""

    app: Celery
    connection: Any
    timeout: float
    """Seconds that one operation may take."""


def exit_on_error(function: Callable[P, R]) -> Callable[P, R]:
    """Report errors as one line: bad input with status 2, an unavailable broker or result backend with `status_of`."""

    @exit_on_bad_input
    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except (BackendUnavailable, BrokerUnavailable) as error:
            print_message(str(error))
            print_json_error(str(error))
            sys.exit(status_of(error))

    return call


def status_of(error: BaseException) -> int:
    """Return the exit status after an error of a server: 2 if waiting cannot help, else 1."""
    return BAD_INPUT if problem_of(error) is ServerProblem.REFUSED or is_unknown_host(error) else FAILED


def silence_logs() -> None:
    """Keep logs off the terminal: the command itself reports what concerns the user."""
    for name in ("celeriac", "celery", "kombu", "amqp"):
        logging.getLogger(name).addHandler(logging.NullHandler())


@contextmanager
def open_broker(connection: Connection) -> Iterator[BrokerAccess]:
    """Connect to a broker. Raises `BrokerUnavailable`."""
    # These import Celery, which `cancel` and `explain` on this machine do not need.
    from celeriac.broker.app import app_for
    from celeriac.broker.session import BrokerSession
    from celeriac.cluster.worker_registry import REPLY_TIMEOUT

    silence_logs()
    app, timeout = app_for(connection), connection.operation_timeout
    with BrokerSession(app, timeout=max(timeout, 2 * REPLY_TIMEOUT)).open() as broker_connection:
        yield BrokerAccess(app, broker_connection, timeout)


@contextmanager
def open_control_client(settings: Settings, *, local: bool) -> Iterator[tuple[ControlClient, BrokerAccess | None]]:
    """Reach the executors of the settings' broker, or of this machine. `celeriac run` chooses in the same way."""
    if local or settings.values["broker"].value is None:
        from celeriac.control.unix_client import UnixControlClient

        yield UnixControlClient(), None
        return
    from celeriac.control.broker_client import BrokerControlClient

    with open_broker(settings.connection) as broker:
        yield BrokerControlClient(broker.connection), broker
