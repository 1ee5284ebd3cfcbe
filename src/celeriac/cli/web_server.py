"""The web server of a command: `celeriac web`, and `--listen` of `serve` and `worker`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

import click

from celeriac.config.settings import Connection, Settings
from celeriac.errors import InvalidConfig

if TYPE_CHECKING:
    from celeriac.ledger.run_store import RunStore
    from celeriac.telemetry.telemetry import Telemetry
    from celeriac.web.health import HealthCheck
    from celeriac.web.server import WebServer

DEFAULT_ADDRESS = "127.0.0.1:8730"
listen_option = click.option(
    "--listen",
    metavar="HOST:PORT",
    help="Also serve health probes and metrics over HTTP; a service also its page. Needs celeriac[web].",
)
LIBRARIES = ("starlette", "uvicorn", "jinja2", "prometheus_client")


def check_web_libraries() -> None:
    """Raise `InvalidConfig` if a library of the web server is not installed."""
    for library in LIBRARIES:
        if find_spec(library) is None:
            problem = f"a web server needs the module {library}, which is not installed"
            raise InvalidConfig("--listen", problem, "pip install 'celeriac[web]'")


@contextmanager
def open_server(
    settings: Settings,
    listen: str,
    *,
    ledger: RunStore | None = None,
    connection: Connection | None = None,
    checks: Sequence[HealthCheck] = (),
    shows_runs: bool = False,
    telemetry: Telemetry | None = None,
    is_started: bool = True,
) -> Iterator[WebServer]:
    """Serve until the end of the block. Raises `InvalidConfig` for an address or a file that cannot be used.

    Call `start` of the result unless it `is_started`: a process that forks must do so first.
    """
    # These need the libraries, which `check_web_libraries` has found.
    from celeriac.telemetry.sinks.prometheus import renderer_for
    from celeriac.web.address import bind, parse_address
    from celeriac.web.app import make_app
    from celeriac.web.checks import source_checks
    from celeriac.web.connections import BoundedConnection, ProbeConnection
    from celeriac.web.poller import Poller
    from celeriac.web.server import WebServer
    from celeriac.web.site import Site, Sources, access_rules
    from celeriac.worker.log import log_event

    address = parse_address(listen)
    rules = access_rules(address, settings.values["web_token_file"].value)
    sources = Sources(
        ledger=None if ledger is None else ledger.database, connection=connection, queues=settings.worker.queues
    )
    site = Site(
        rules=rules,
        checks=(*checks, *source_checks(sources)),
        sources=sources,
        shows_runs=shows_runs,
        render_metrics=None if telemetry is None else renderer_for(telemetry),
    )
    listening = bind(address)
    poller = Poller()
    if telemetry is not None:
        telemetry.set_source("web", poller.measure)
    kind = BoundedConnection if shows_runs else ProbeConnection
    server = WebServer(make_app(site, poller, telemetry), listening, poller, kind)
    try:
        if is_started:
            server.start()
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        log_event("listening", address=f"http://{shown}/")
        yield server
    finally:
        server.close()
