"""`celeriac broker`: its options, and how to reach it."""

from __future__ import annotations

import sys

import click

from celeriac.cli.options import or_bad_input


@click.command(short_help="Start a private Valkey as broker and result backend.")
@click.option("--data", metavar="DIR", default="celeriac-broker", show_default=True, help="Where it keeps its data.")
@click.option("--bind", metavar="ADDRESS", default="127.0.0.1", show_default=True, help="Where it listens.")
@click.option("--port", type=click.IntRange(1, 65_535), default=6379, show_default=True)
@click.option("--show-url", is_flag=True, help="Print the URL with its password.")
@or_bad_input
def broker(data: str, bind: str, port: int, show_url: bool) -> None:
    """Start a private Valkey as broker and result backend, until TERM or Ctrl-C.

    It is durable, and protected by a password that is made at the first start and kept in DIR/valkey.conf. Needs the
    extra celeriac[valkey]. What passes the network is not encrypted: bind it to networks you trust.
    """
    from pathlib import Path

    from celeriac.broker.bundled_valkey import prepare_broker

    private = prepare_broker(Path(data).absolute(), bind=bind, port=port)
    if show_url:
        click.echo(private.url)
    else:
        click.echo(f"redis://:PASSWORD@{bind}:{port}/0, where PASSWORD is requirepass in {private.config}")
    sys.exit(private.run())
