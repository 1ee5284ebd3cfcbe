"""`celeriac retry`: its options, and how they are put together."""

from __future__ import annotations

import sys
from typing import Any

import click

from celeriac.cli.control_options import check_text
from celeriac.cli.ledger_options import ledger_option
from celeriac.cli.options import CONNECTION_NAMES, course_options, or_bad_input, places_options


@click.command(short_help="Run again what did not succeed.")
@click.argument("run")
@click.option("--failed", is_flag=True, help="Only tasks that failed.")
@click.option("--key", "keys", multiple=True, metavar="KEY", help="Only this task, however it ended. Repeatable.")
@places_options
@course_options
@ledger_option
@click.option("--json", "json_", is_flag=True, help="The summary as JSON, on standard output.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no summary; failures only.")
@or_bad_input
def retry(run: str, failed: bool, keys: tuple[str, ...], **rest: Any) -> None:
    """Run again, from the ledger alone, what did not succeed: what failed, was called back, or has not ended.

    It stays the same run. What has ended is queued anew, with its retries; what has not ended is gone on with. With
    --failed or --key the rest is left as it stands.

    \b
    Exit status: 0 all of it succeeded, 1 some failed, 2 bad input, 130 interrupted.
    """
    from celeriac.cli.go import RunOptions, retry_failed
    from celeriac.ledger.retry import RetryFilter

    check_text("RUN or --key", run, *keys)
    if failed and keys:
        raise click.UsageError("give either --failed or --key")
    settings = {name: rest.pop(name) for name in ("parallelism", "ledger", *CONNECTION_NAMES)}
    if rest["local"] and (settings["broker"] or settings["backend"]):
        raise click.UsageError("--local takes neither --broker nor --backend")
    options = RunOptions(json=rest.pop("json_"), settings=settings, **rest)
    sys.exit(retry_failed(options, run, RetryFilter(failed=failed, keys=frozenset(keys))))
