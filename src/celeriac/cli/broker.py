"""`celeriac broker`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from celeriac.broker.bundled_valkey import prepare_broker
from celeriac.cli.formatting import on_one_line
from celeriac.cli.options import exit_on_bad_input
from celeriac.cli.path_completion import complete_folder


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
@click.option("--show-url", is_flag=True, help="Print the URL with its password.")
@exit_on_bad_input
def broker(data: str, bind: str, port: int, show_url: bool) -> None:
    """Start a private Valkey as broker and result backend. It runs until TERM or Ctrl-C.

    Its data survive a restart. A password protects it; the first start makes the password and keeps it in
    DIR/valkey.conf. Needs the extra celeriac[valkey]. Network traffic is not encrypted: bind it to trusted networks
    only.
    """
    server = prepare_broker(Path(data).absolute(), bind=bind, port=port)
    if show_url:
        click.echo(server.url)
    else:
        where = f"PASSWORD is the value of requirepass in {server.config}"
        click.echo(on_one_line(f"redis://:PASSWORD@{server.address}/0; {where}"))
    sys.exit(server.run())
