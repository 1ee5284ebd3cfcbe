"""Web servers for tests, and their clients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from celeriac.ledger.database import Database
from celeriac.web.access import AccessRules
from celeriac.web.address import Address, bind
from celeriac.web.app import make_app
from celeriac.web.poller import Poller
from celeriac.web.server import WebServer
from celeriac.web.site import Site, Sources
from tests.support.cli_runner import Celeriac, started

READER, OPERATOR = "reader-token-0123456789", "operator-token-0123456789"


def token_file(folder: Path) -> str:
    """Write a file of tokens, one of each role."""
    file = folder / "tokens"
    file.write_text(f"read-only {READER}\noperator {OPERATOR}\n")
    file.chmod(0o600)
    return str(file)


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@contextmanager
def web_server(
    folder: Path, *options: str, listen: str = "127.0.0.1:0", env: Mapping[str, str] | None = None, command: str = "web"
) -> Iterator[tuple[str, Celeriac]]:
    """Start a server. Yield its address as a URL, and its process."""
    arguments = (command, "--listen", listen, *options)
    with started(*arguments, cwd=folder, env=dict(env or {})) as celeriac:
        log = celeriac.wait_for_stderr("listening address=http://")
        while not log.endswith("\n"):
            log += celeriac.wait_for_stderr("/")
        port = log.rpartition("address=http://")[2].split("/")[0].rpartition(":")[2]
        host = listen.rpartition(":")[0].replace("0.0.0.0", "127.0.0.1")
        yield f"http://{host}:{port}", celeriac


@contextmanager
def web_in_process(database: Database | None = None, *, polls: bool = True) -> Iterator[tuple[str, Poller]]:
    """Start a server in this process, for its own user. Yield its address, and its poller: it reads by itself, or not
    unless the test calls it."""
    address = Address("127.0.0.1", 0)
    listening, poller = bind(address), Poller()
    site = Site(rules=AccessRules(address, None), sources=Sources(ledger=database))
    server = WebServer(make_app(site, poller), listening, poller)
    if not polls:
        poller.start = lambda: None  # type: ignore[method-assign]
    with server:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", poller


@contextmanager
def client_of(url: str, **headers: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers={n.replace("_", "-"): v for n, v in headers.items()}, timeout=30) as client:
        yield client


def error_of(response: httpx.Response) -> Any:
    return response.json()["error"]
