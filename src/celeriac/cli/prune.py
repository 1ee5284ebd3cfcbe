"""`celeriac prune`: runs that need not be remembered any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from celeriac.cli.control_options import check_text, complain
from celeriac.cli.ledger_options import ledger_option, ledger_to_read, ledger_to_write
from celeriac.cli.options import config_option, or_bad_input

if TYPE_CHECKING:
    from celeriac.ledger.prune import SkippedRun
    from celeriac.ledger.views import RunView

DAY = 86_400.0  # seconds


@click.command(short_help="Remove runs from the ledger.")
@click.option(
    "--older-than", type=click.FloatRange(min=0), metavar="DAYS", help="Runs that ended, or last moved, so long ago."
)
@click.option("--keep", type=click.IntRange(min=0), metavar="N", help="All but the latest N.")
@click.option("--run", "names", multiple=True, metavar="RUN", help="This run. Repeatable.")
@click.option("--force", is_flag=True, help="Also runs with tasks that may still be out with a broker.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed.")
@ledger_option
@config_option
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@or_bad_input
def prune(
    older_than: float | None,
    keep: int | None,
    names: tuple[str, ...],
    force: bool,
    dry_run: bool,
    ledger: str | None,
    config: str | None,
    as_json: bool,
) -> None:
    """Remove runs that have ended or were interrupted from the ledger, and give their space back.

    With --older-than and --keep together, those that both say. A run that somebody runs is never removed. What
    --output keeps is left where it is.

    Exit status: 0, 2 bad input; then, with --run, nothing was removed.
    """
    from celeriac.errors import InvalidConfig
    from celeriac.ledger.prune import PruneFilter, choose_runs, disk_usage, remove_leftovers, remove_run, shrink_file
    from celeriac.ledger.views import find_run, list_runs

    check_text("--run", *names)
    if names and (older_than is not None or keep is not None):
        raise click.UsageError("--run goes with neither --older-than nor --keep")
    if not names and older_than is None and keep is None:
        raise click.UsageError("say which: --older-than DAYS, --keep N or --run RUN")
    wanted = PruneFilter(older_than=(older_than or 0.0) * DAY, keep=keep or 0, include_in_flight=force)
    with (ledger_to_read if dry_run else ledger_to_write)(ledger, config) as opened:
        store = opened.database
        found = [find_run(store, name) for name in dict.fromkeys(names)] if names else list_runs(store)
        going, kept = choose_runs(found, wanted)
        if names and kept:
            raise InvalidConfig(f"run {kept[0].run.name!r}", kept[0].reason, "see celeriac prune --help")
        removed, freed = going, None
        if not dry_run:
            before = disk_usage(store)
            stayed = [taken for run in going if (taken := remove_run(store, opened.owner, run)) is not None]
            remove_leftovers(store)
            shrink_file(store)
            kept += stayed
            removed = [run for run in going if run not in [one.run for one in stayed]]
            if before is not None and (after := disk_usage(store)) is not None:
                freed = max(0, before - after)
    say(removed, kept, freed, dry_run=dry_run, as_json=as_json)


def say(removed: list[RunView], kept: list[SkippedRun], freed: int | None, *, dry_run: bool, as_json: bool) -> None:
    import json

    from celeriac.cli.formatting import many, on_one_line

    if as_json:
        shown = {
            "removed": [{"run": run.name, "tasks": run.counts.tasks} for run in removed],
            "kept": [{"run": one.run.name, "why": one.reason} for one in kept],
            "bytes_freed": freed,
            "dry_run": dry_run,
        }
        click.echo(json.dumps(shown))
        return
    for one in kept:
        complain(f"run {one.run.name!r} stays: it {one.reason}")
    for run in removed:
        click.echo(on_one_line(f"{run.name}: {many(run.counts.tasks, 'task')}"))
    runs = many(len(removed), "run")
    if dry_run:
        click.echo(f"{runs} would be removed")
    else:
        click.echo(f"{runs} removed" + ("" if freed is None else f", {freed:,} bytes freed"))
