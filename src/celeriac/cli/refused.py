"""`celeriac status --refused`: the newest messages that workers have refused, as a table or as JSON."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click
import msgspec

from celeriac.cli.formatting import format_time, on_one_line
from celeriac.cli.json_errors import print_json_error
from celeriac.cli.messages import print_message
from celeriac.cli.rich_tables import new_console, new_table
from celeriac.errors import BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from celeriac.backend.refused import RefusedMessage
    from celeriac.config.settings import Settings

BACKEND_UNAVAILABLE = 1  # exit status
PIPE_WIDTH = 400  # columns without a terminal: no id and no reason is cut off


def show_refused(settings: Settings, *, as_json: bool) -> None:
    """Print the refused messages that the result backend keeps. Raises `InvalidConfig`."""
    # These import Celery, which the runs of a ledger do not need.
    from celeriac.broker.app import app_for
    from celeriac.cluster.status import refused_messages

    connection = settings.connection
    try:
        messages = refused_messages(app_for(connection), timeout=connection.operation_timeout)
    except BackendUnavailable as error:
        print_message(str(error))
        print_json_error(str(error))
        sys.exit(BACKEND_UNAVAILABLE)
    if as_json:
        click.echo(json.dumps({"refused": msgspec.to_builtins(messages)}))
    else:
        print_refused(messages)


def print_refused(messages: Sequence[RefusedMessage]) -> None:
    console = new_console(pipe_width=PIPE_WIDTH)
    if not messages:
        console.print("no message was refused")
        return
    table = new_table("time", "queue", "worker", "id", "bytes", "why")
    for message in messages:
        size = "" if message.size is None else f"{message.size:,}"
        texts = (message.queue, message.worker, message.id or "")
        table.add_row(format_time(message.at), *map(on_one_line, texts), size, on_one_line(message.why))
    console.print(table)
