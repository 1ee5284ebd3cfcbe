"""`celeriac cancel`: calls tasks back, and says what became of each."""

from __future__ import annotations

import sys
from typing import Any

import click

from celeriac.cli.control_options import (
    check_local,
    check_text,
    json_option,
    local_option,
    one_line_of_error,
    wait_option,
)
from celeriac.cli.options import connection_options


@click.command(short_help="Call back tasks that wait or run.")
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@click.option("--queue", "queues", multiple=True, metavar="NAME", help="All tasks of this queue. Repeatable.")
@click.option("--id", "ids", multiple=True, metavar="ID", help="A Celery id, whoever has sent it. Repeatable.")
@click.option("--run", "run", metavar="NAME", help="Of this run of the ledger: the KEYs, or all of its tasks.")
@click.option("--ledger", metavar="PATH|URL", help="The ledger of --run. [the user's own]")
@connection_options
@local_option
@wait_option
@json_option
@one_line_of_error
def cancel(
    keys: tuple[str, ...],
    queues: tuple[str, ...],
    ids: tuple[str, ...],
    run: str | None,
    ledger: str | None,
    config: str | None,
    local: bool,
    wait: float,
    as_json: bool,
    **options: Any,
) -> None:
    """Call back tasks of executors at work elsewhere: of a `celeriac run`, or of a scheduler of your own.

    What waits leaves its queue at once. What is with the broker never starts, also on workers that start later. What
    runs is ended: TERM, its grace, KILL. With --wait the answer comes when that is done.

    With a broker, named here or in the configuration, its executors are asked; else the runs of this user on this
    machine. A key that no executor has is looked for at the workers. With --run the ledger is asked: whoever serves
    the run calls its tasks back within a second or two; if nobody does, what waits is revoked at once, and what is out
    is called back by the next one who does.

    Exit status: 0, 1 if a task was not found, had ended, or has not ended in time, 2 bad input.
    """
    from celeriac.cli.cancelled import Cancelling, tell
    from celeriac.config.settings import read_settings
    from celeriac.errors import InvalidConfig

    if not keys and not queues and not ids and run is None:
        raise click.UsageError("name a KEY, a --queue or an --id, or a --run")
    check_text("KEY, --queue, --id", *keys, *queues, *ids)
    check_text("--run", run or "")
    check_local(options, local=local)
    settings = read_settings({**options, "ledger": ledger}, config=config)
    if run is not None:
        from celeriac.cli.cancel_run import cancel_run

        if queues or ids or local or options["broker"]:
            raise click.UsageError("--run takes KEYs, and neither --queue, --id, --local nor --broker")
        sys.exit(cancel_run(settings, run, keys, wait=wait, as_json=as_json))
    if ledger is not None:
        raise click.UsageError("--ledger goes with --run")
    if ids and (local or settings.values["broker"].value is None):
        raise InvalidConfig("--id", "is a matter of a broker", "give --broker, or the KEY instead")
    found = Cancelling(keys=keys, queues=queues, ids=ids, wait=wait)
    found.carry_out(settings, local=local)
    sys.exit(tell(found, as_json=as_json))
