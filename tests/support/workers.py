"""`celeriac worker` beside a test, and commands that record that they run and wait until they may finish."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from celeriac.broker.app import make_app
from tests.support.cli_runner import Celeriac, started, until

GATED = "echo $CELERIAC_KEY >> log; while [ ! -e go ] && [ ! -e go-$CELERIAC_KEY ]; do sleep 0.02; done"


@contextmanager
def worker(folder: Path, urls: tuple[str, str], *options: str) -> Iterator[Celeriac]:
    """Run a worker that is ready. It logs errors alone, because no test reads its log."""
    known = ("--broker", urls[0], "--backend", urls[1], "--log-level", "error")
    with started("worker", *known, *options, cwd=folder) as celeriac:
        wait_for_reply(urls)
        yield celeriac


def wait_for_reply(urls: tuple[str, str]) -> None:
    """Wait until a worker replies to a ping: it has received all control messages that were sent before."""
    app = make_app(broker_url=urls[0], result_backend=urls[1])
    until(lambda: app.control.ping(timeout=1.0, limit=1), "a reply of the worker")
    app.close()


def read_log(log: Path) -> list[str]:
    """Return the keys of the commands that have started, in their order."""
    return log.read_text().split() if log.exists() else []
