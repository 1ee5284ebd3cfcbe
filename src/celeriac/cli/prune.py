"""`celeriac prune`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import click

from celeriac.cli.completion import complete_run
from celeriac.cli.formatting import count, on_one_line
from celeriac.cli.help_sections import SectionedCommand
from celeriac.cli.ledger_options import ledger_option, ledger_to_read, ledger_to_write
from celeriac.cli.messages import print_message
from celeriac.cli.options import check_text, config_option, exit_on_bad_input, json_option
from celeriac.errors import InvalidConfig
from celeriac.ledger.prune import (
    PruneFilter,
    SkippedRun,
    choose_runs,
    disk_usage,
    remove_leftovers,
    remove_run,
    shrink_file,
)
from celeriac.ledger.run_store import RunStore
from celeriac.ledger.views import RunView, find_run, list_runs
from celeriac.runs.temporary_output import remove_folder, remove_old_folders

DAY = 86_400.0  # seconds


@dataclass(slots=True, kw_only=True)
class Pruned:
    removed: list[RunView]
    skipped: list[SkippedRun]
    bytes_freed: int | None = None
    """None if it is not known."""

    folders: int = 0
    """How many temporary folders with output of tasks were removed."""


@click.command(cls=SectionedCommand)
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    metavar="DAYS",
    help="Remove runs that ended, or were interrupted, at least DAYS ago.",
)
@click.option("--keep", type=click.IntRange(min=0), metavar="N", help="Remove all but the latest N runs.")
@click.option(
    "--run", "names", multiple=True, metavar="RUN", shell_complete=complete_run, help="Remove this run. Repeatable."
)
@click.option("--force", is_flag=True, help="Also remove runs with tasks that may still be in flight at a broker.")
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@ledger_option
@config_option
@json_option
@exit_on_bad_input
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
    """Remove ended and interrupted runs from the ledger, and free their space.

    The temporary folders with their output are removed, too; with --older-than also those of runs without a ledger.

    With both --older-than and --keep, only runs that match both are removed. A run that a process owns is never
    removed. Files that --output kept stay where they are.

    Exit status: 0; 2 bad input. With --run, bad input removes nothing.
    """
    check_text("--run", *names)
    if names and (older_than is not None or keep is not None):
        raise click.UsageError("--run cannot be used with --older-than or --keep")
    if not names and older_than is None and keep is None:
        raise click.UsageError("say which runs: --older-than DAYS, --keep N or --run RUN")
    conditions = PruneFilter(older_than=(older_than or 0.0) * DAY, keep=keep or 0, include_in_flight=force)
    with (ledger_to_read if dry_run else ledger_to_write)(ledger, config) as opened:
        database = opened.database
        candidates = [find_run(database, name) for name in dict.fromkeys(names)] if names else list_runs(database)
        chosen, skipped = choose_runs(candidates, conditions)
        if names and skipped:
            raise InvalidConfig(f"run {skipped[0].run.name!r}", skipped[0].reason, "see celeriac prune --help")
        pruned = Pruned(removed=chosen, skipped=skipped) if dry_run else remove_runs(opened, chosen, skipped)
    if not dry_run:
        pruned.folders = remove_folders(pruned.removed, None if older_than is None else conditions.older_than)
    report(pruned, dry_run=dry_run, as_json=as_json)


def remove_runs(ledger: RunStore, chosen: list[RunView], skipped: list[SkippedRun]) -> Pruned:
    """Remove runs, but not those that a process has taken in the meantime."""
    database = ledger.database
    size_before = disk_usage(database)
    taken = [skip for run in chosen if (skip := remove_run(database, ledger.owner, run)) is not None]
    remove_leftovers(database)
    shrink_file(database)
    taken_runs = [skip.run for skip in taken]
    pruned = Pruned(removed=[run for run in chosen if run not in taken_runs], skipped=[*skipped, *taken])
    if size_before is not None and (size_after := disk_usage(database)) is not None:
        pruned.bytes_freed = max(0, size_before - size_after)
    return pruned


def remove_folders(removed: list[RunView], age: float | None) -> int:
    """Remove the temporary folders of runs, and those in which nothing has changed for `age` seconds. Return their
    number."""
    folders = [Path(run.output) for run in removed if run.output is not None]
    return sum(map(remove_folder, folders)) + (0 if age is None else len(remove_old_folders(age)))


def report(pruned: Pruned, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        fields = {
            "removed": [{"run": run.name, "tasks": run.counts.tasks} for run in pruned.removed],
            "kept": [{"run": skip.run.name, "why": skip.reason} for skip in pruned.skipped],
            "bytes_freed": pruned.bytes_freed,
            "folders_removed": pruned.folders,
            "dry_run": dry_run,
        }
        click.echo(json.dumps(fields))
        return
    for skip in pruned.skipped:
        print_message(f"run {skip.run.name!r} stays: it {skip.reason}")
    for run in pruned.removed:
        click.echo(on_one_line(f"{run.name}: {count(run.counts.tasks, 'task')}"))
    number = count(len(pruned.removed), "run")
    if dry_run:
        click.echo(f"{number} would be removed")
    else:
        freed = "" if pruned.bytes_freed is None else f", {pruned.bytes_freed:,} bytes freed"
        folders = f", {count(pruned.folders, 'temporary folder')} removed" if pruned.folders else ""
        click.echo(f"{number} removed{freed}{folders}")
