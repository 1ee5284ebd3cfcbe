"""`celeriac broker`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from celeriac.broker.bundled_valkey import BundledValkey, StopRequest, check_is_free, prepare_broker, running_broker
from celeriac.cli.formatting import on_one_line
from celeriac.cli.messages import print_line
from celeriac.cli.options import exit_on_bad_input
from celeriac.cli.path_completion import complete_folder
from celeriac.errors import InvalidConfig

LOCAL = ("127.0.0.1", "::1", "localhost")


@click.command
@click.option(
    "--data",
    metavar="DIR",
    shell_complete=complete_folder,
    default="celeriac-broker",
    show_default=True,
    help="Folder for its data.",
)
@click.option("--bind", metavar="ADDRESS", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65_535), default=6379, show_default=True, help="Port to listen on.")
@click.option("--show-url", is_flag=True, help="Print the URL with its password, also that of a running broker.")
@exit_on_bad_input
def broker(data: str, bind: str, port: int, show_url: bool) -> None:
    """Start a private Valkey as broker and result backend. It runs until TERM or Ctrl-C.

    Its data survive a restart. A password protects it; the first start makes the password. The URL is in
    DIR/broker.url: give this file with --broker-file, and copy it to other machines, with --bind 0.0.0.0. Needs the
    extra celeriac[valkey]. Network traffic is not encrypted: bind it to trusted networks only.
    """
    folder = Path(data).absolute()
    if (running := running_broker(folder)) is not None:
        if show_url:
            click.echo(running.url)
            return
        remedy = f"its URL is in {running.url_file}; to start a second one, name another folder and port"
        raise InvalidConfig("--data", f"the broker in {folder} runs already", remedy)
    check_is_free(bind, port)
    stop = StopRequest()
    with stop.on_signals():
        server = prepare_broker(folder, bind=bind, port=port)
        if show_url:
            click.echo(server.url)
        else:
            click.echo(on_one_line(f"redis://:PASSWORD@{server.address}/0; the password is in {server.url_file}"))
        sys.exit(server.run(stop, lambda: print_line(use_of(server))))


def use_of(server: BundledValkey) -> str:
    """Return the line that says how to use a broker that is ready."""
    line = f"celeriac: ready; give --broker-file {shlex.quote(str(server.url_file))}"
    if server.bind in LOCAL:
        return f"{line}; other machines cannot reach it without --bind 0.0.0.0"
    return f"{line}; on other machines, give a copy of this file"
