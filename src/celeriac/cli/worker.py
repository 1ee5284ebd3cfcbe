"""`celeriac worker`: its options. What it does is in `celeriac.worker.start`."""

from __future__ import annotations

from typing import Any

import click

from celeriac.cli.options import connection_options, or_bad_input


@click.command(short_help="Run the commands that a broker holds, on this machine.")
@connection_options
@click.option("--queues", metavar="NAMES", help="Queues to serve, with commas between them. [default]")
@click.option("-c", "--concurrency", metavar="N", help="Commands at a time. Default: one per CPU.")
@click.option("--pool", metavar="KIND", help="threads, or prefork: a process for each command's worker. [threads]")
@click.option("--autoscale", metavar="MAX,MIN", help="The most and the fewest processes; with --pool prefork.")
@click.option("--name", metavar="NAME", help="What the worker is called. Default: celeriac-PID.")
@click.option("--grace", metavar="SECONDS", help="After TERM: how long commands may go on. [30]")
@click.option("-o", "--output", metavar="DIR", help="Keep what every task writes, in DIR/KEY.out and DIR/KEY.err.")
@click.option("--log-format", metavar="KIND", help="text or json. [text]")
@click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error. [info]")
@click.option("-q", "--quiet", is_flag=True, help="Errors only.")
@or_bad_input
def worker(config: str | None, quiet: bool, **options: Any) -> None:
    """Run the commands that a broker holds, on this machine.

    TERM or Ctrl-C once: take nothing more, and end when what runs has ended, at the latest after --grace seconds; what
    is still running then goes back to the broker. Twice: at once. Every option is a setting too: see `celeriac config`.
    """
    from celeriac.config.settings import read_settings
    from celeriac.worker.start import work

    if quiet:
        options["log_level"] = "error"
    work(read_settings(options, config=config))
