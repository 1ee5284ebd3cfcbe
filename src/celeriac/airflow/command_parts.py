"""Parts that the commands of `airflow celeriac` share: errors in one line, the app, and logs that are not output."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

from airflow.exceptions import AirflowConfigException
from celery import Celery

from celeriac.airflow.config import make_app
from celeriac.airflow.options import Options, load_providers_configuration
from celeriac.airflow.worker_versions import load_conf
from celeriac.errors import BrokerUnavailable, InvalidInput, QueueRefused

T = TypeVar("T")


def exit_with_one_line(command: Callable[[Any], T]) -> Callable[[Any], T]:
    """Show errors of the configuration, and a broker that is unavailable, as one line without a traceback."""

    @wraps(command)
    def wrapped(args: Any) -> T:
        try:
            load_providers_configuration()
            return command(args)
        except (InvalidInput, AirflowConfigException, BrokerUnavailable, QueueRefused) as error:
            raise SystemExit(f"airflow celeriac: {error}") from None

    return wrapped


def load_app(team: str | None) -> tuple[Celery, Options]:
    """Return the Celery app of a team, or the app without teams, and its options."""
    conf = load_conf(team)
    options = Options(conf)
    timeout = options.seconds("celery", "operation_timeout")
    return make_app(conf, team_name=team, operation_timeout=timeout), options


@contextmanager
def without_logs() -> Iterator[None]:
    """Log nothing in the block: the output of the command says what is wrong."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
