"""What the commands that read the ledger have in common: which one, and a time and a number as they show them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import click

if TYPE_CHECKING:
    from celeriac.ledger.run_store import RunStore
    from celeriac.ledger.views import RunView

P = ParamSpec("P")
R = TypeVar("R")

INTERRUPTED = 130

ledger_option = click.option("--ledger", metavar="PATH|URL", help="Where runs are remembered. [the user's own]")


@contextmanager
def ledger_to_read(ledger: str | None, config: str | None) -> Iterator[RunStore]:
    """Raises `InvalidConfig` and `LedgerError`."""
    from celeriac.ledger.run_store import RunStore

    with RunStore(url_of(ledger, config), read_only=True) as opened:
        yield opened


@contextmanager
def ledger_to_write(ledger: str | None, config: str | None) -> Iterator[RunStore]:
    """One that is there. Raises `InvalidConfig` and `LedgerError`."""
    from celeriac.ledger.run_store import RunStore

    with RunStore(url_of(ledger, config), must_exist=True) as opened:
        yield opened


def url_of(ledger: str | None, config: str | None) -> str:
    from celeriac.config.settings import read_settings
    from celeriac.errors import InvalidConfig

    url = read_settings({"ledger": ledger}, config=config).ledger
    if url is None:
        raise InvalidConfig("ledger", "none is kept", "name the one that the run was kept in")
    return url


def or_interrupted(function: Callable[P, R]) -> Callable[P, R]:
    """Ctrl-C is how one stops looking on: exit status 130, and no words."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)

    return call


def time_to_the_second(when: float) -> str:
    return datetime.fromtimestamp(when, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def how_it_stands(run: RunView) -> str:
    """Who runs it now, or that nobody does any more."""
    return run.owner or run.state.value
