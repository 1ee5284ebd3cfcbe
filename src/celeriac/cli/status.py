"""`celeriac status`: queues and workers, as a table or as JSON."""

from __future__ import annotations

import sys

import click

from celeriac.cli.options import connection_options, or_bad_input

AWAY = 1


@click.command(short_help="Show what waits on a broker, and who works.")
@connection_options
@click.option("--queues", metavar="NAMES", help="Beside those that workers serve, with commas between them. [default]")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@or_bad_input
def status(config: str | None, as_json: bool, **options: str | None) -> None:
    """Show what waits on a broker, and who works.

    RabbitMQ does not tell how long the oldest task has waited. Exit status: 0, 1 if the broker is away, 2 bad input.
    """
    import json
    from dataclasses import asdict

    from celeriac.app import app_for
    from celeriac.errors import BrokerAway
    from celeriac.settings import read_settings
    from celeriac.status import status_of

    settings = read_settings(options, config=config)
    connection = settings.connection
    try:
        found = status_of(app_for(connection), settings.worker.queues, timeout=connection.operation_timeout)
    except BrokerAway as away:
        click.echo(f"celeriac: {away}", err=True)
        sys.exit(AWAY)
    if as_json:
        click.echo(json.dumps(asdict(found)))
        return
    from rich.console import Console
    from rich.table import Table

    from celeriac.cli.words import on_one_line, seconds

    queues = Table("queue", "waiting", "oldest", "slots", box=None, pad_edge=False)
    for queue in found.queues:
        oldest = "" if queue.oldest is None else seconds(queue.oldest)
        queues.add_row(on_one_line(queue.name), f"{queue.waiting:,}", oldest, str(queue.slots))
    workers = Table("worker", "queues", "concurrency", "running", box=None, pad_edge=False)
    shows_refused = any(worker.refused for worker in found.workers)
    if shows_refused:
        workers.add_column("refused")
    for worker in found.workers:
        counts = (worker.concurrency, worker.running, *((worker.refused,) if shows_refused else ()))
        numbers = ("" if number is None else str(number) for number in counts)
        workers.add_row(on_one_line(worker.name), on_one_line(",".join(worker.queues)), *numbers)
    console = Console(markup=False, highlight=False)
    console.print(queues)
    console.print()
    console.print(workers if found.workers else "no worker answers")
