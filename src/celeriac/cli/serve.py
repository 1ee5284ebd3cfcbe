"""`celeriac serve`: its options. What it does is in `celeriac.runs.service`."""

from __future__ import annotations

from typing import Any

import click

from celeriac.cli.options import connection_options, or_bad_input


@click.command(short_help="Run what others submit to a ledger, until told to stop.")
@click.option("--ledger", metavar="PATH|URL", help="The ledger to serve. [the user's own]")
@click.option(
    "-j",
    "--parallelism",
    type=click.IntRange(min=1),
    metavar="N",
    help="Slots. [one per CPU; with --broker as many as the workers can use]",
)
@connection_options
@click.option("--local", is_flag=True, help="Run in this process, whatever broker the configuration names.")
@click.option(
    "--queue-limit", "queue_limits", multiple=True, metavar="QUEUE=N", help="Slots that one queue may take. Repeatable."
)
@click.option("--grace", metavar="SECONDS", help="After TERM: how long commands of this process may go on. [30]")
@click.option("-o", "--output", metavar="DIR", help="Keep what every task writes, in DIR/RUN%2FKEY.out and .err.")
@click.option("--log-format", metavar="KIND", help="text or json. [text]")
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error. [info]")
@or_bad_input
def serve(config: str | None, local: bool, queue_limits: tuple[str, ...], **options: Any) -> None:
    """Run what `celeriac submit` leaves in a ledger: on the workers of a broker, or without one in this process.

    Several may serve one ledger, each on its own machine if it is in PostgreSQL; when one dies the others take over
    what it had. Without a broker one works at a time, and the next one waits.

    TERM or Ctrl-C once: start nothing more, and leave the rest in the ledger; commands of this process get --grace
    seconds. Twice: at once.
    """
    import logging

    from celeriac.cli.go import config_of, workers_for
    from celeriac.cli.submit import the_ledger
    from celeriac.config.schema import masked
    from celeriac.config.settings import read_settings
    from celeriac.errors import InvalidConfig
    from celeriac.ledger.database import data_folder
    from celeriac.runs.service import Service, tell
    from celeriac.worker.log import begin_log
    from celeriac.worker.output import OutputPolicy
    from celeriac.worker.signals import signals_to
    from celeriac.worker.start import output_policy

    settings = read_settings(options, config=config)
    connection = None if local or settings.values["broker"].value is None else settings.connection
    executor = config_of(settings, queue_limits, connection)
    begin_log(settings.worker.log_format, settings.worker.log_level)
    if connection is None:
        logging.getLogger("kombu").setLevel(logging.ERROR)  # it warns that a broker in memory has no host
    if connection is not None and options["output"] is not None:
        raise InvalidConfig("--output", "output is kept by the workers", "give it to celeriac worker instead")
    policy = output_policy(settings.worker) if connection is None else OutputPolicy()
    with the_ledger(settings) as ledger:
        if connection is None and not ledger.database.is_file:
            # Cut off from it for 10 s, this process would be taken for dead while its commands still run.
            raise InvalidConfig("ledger", "one on a server needs a broker", "give --broker, or a ledger in a file")
        serving = Service(
            ledger,
            lambda: workers_for(connection, executor, policy, data_folder(ledger.database.url) / "serve"),
            output=policy.directory,
            grace=settings.worker.grace if connection is None else None,
        )
        tell("serving", ledger=ledger.database.masked_url, broker=masked(connection.broker) if connection else None)
        with signals_to(serving.stop):
            serving.go()
