"""`celeriac worker` beside a test, and commands that tell that they run and wait until they may go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from celeriac.broker.app import make_app
from tests.support.cli_runner import Celeriac, started, until

GATED = "echo $CELERIAC_KEY >> log; while [ ! -e go ] && [ ! -e go-$CELERIAC_KEY ]; do sleep 0.02; done"


@contextmanager
def worker(folder: Path, urls: tuple[str, str], *options: str) -> Iterator[Celeriac]:
    """Says little: nobody reads what it says."""
    known = ("--broker", urls[0], "--backend", urls[1], "--log-level", "error")
    with started("worker", *known, *options, cwd=folder) as celeriac:
        hears(urls)
        yield celeriac


def hears(urls: tuple[str, str]) -> None:
    """Wait for the answer of a worker: then it has heard what it was told before."""
    app = make_app(broker_url=urls[0], result_backend=urls[1])
    until(lambda: app.control.ping(timeout=1.0, limit=1), "an answer of the worker")
    app.close()


def read(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []
