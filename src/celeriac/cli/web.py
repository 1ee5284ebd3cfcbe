"""`celeriac web`: the web server for a ledger and for a broker, without work of its own."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from celeriac.cli.help_sections import SectionedCommand
from celeriac.cli.ledger_options import open_ledger
from celeriac.cli.options import connection_options, exit_on_bad_input
from celeriac.cli.url_options import url_option
from celeriac.cli.web_server import DEFAULT_ADDRESS, check_web_libraries
from celeriac.config.settings import DEFAULT, Settings, read_settings
from celeriac.errors import InvalidConfig, LedgerUnavailable
from celeriac.telemetry import Telemetry
from celeriac.worker.log import begin_log
from celeriac.worker.signals import signals_to

if TYPE_CHECKING:
    from celeriac.ledger.run_store import RunStore


@click.command(cls=SectionedCommand)
@click.option(
    "--listen",
    metavar="HOST:PORT",
    default=DEFAULT_ADDRESS,
    show_default=True,
    help="Address to serve. Other machines need a token: see the setting web_token_file.",
)
@url_option("ledger", metavar="PATH|URL", help="The ledger to show. [default: the user's own]")
@connection_options
@click.option("--queues", metavar="NAMES", help="Queues to show besides those that workers serve.")
@click.option("--log-format", metavar="KIND", help="text or json. [default: text]")
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error. [default: info]")
@exit_on_bad_input
def web(config: str | None, listen: str, **options: Any) -> None:
    """Serve a web page, a REST interface and health probes for a ledger, and for the workers of a broker.

    It only looks: tasks run without it, and `celeriac serve --listen` serves the same beside its work. Without a file
    of tokens it listens on this machine alone, and only its own user and root may use it.

    TERM or Ctrl-C ends it.
    """
    check_web_libraries()
    from celeriac.cli.web_server import open_server  # imports the libraries

    settings = read_settings(options, config=config)
    begin_log(settings.worker.log_format, settings.worker.log_level)
    with ExitStack() as stack:
        ledger = ledger_to_show(settings)
        if ledger is not None:
            stack.enter_context(ledger)
        stopped = threading.Event()
        connection = settings.connection if settings.values["broker"].value is not None else None
        with (
            signals_to(stopped.set),
            open_server(settings, listen, ledger=ledger, connection=connection, shows_runs=True, telemetry=Telemetry()),
        ):
            stopped.wait()


def ledger_to_show(settings: Settings) -> RunStore | None:
    """Open the ledger to read. Return None if the default one does not exist, and there is a broker to show."""
    has_broker = settings.values["broker"].value is not None
    try:
        return None if settings.ledger is None and has_broker else open_ledger(settings, read_only=True)
    except (InvalidConfig, LedgerUnavailable):
        if has_broker and settings.values["ledger"].origin == DEFAULT:
            return None
        raise
