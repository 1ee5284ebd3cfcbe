"""`celeriac run`: its options, and how they are put together."""

from __future__ import annotations

import sys
from typing import Any

import click

from celeriac.cli.options import CONNECTION_NAMES, course_options, job_options, places_options

DASHES = "--"


class RunCommand(click.Command):
    """Tells `run FILE` from `run -- COMMAND...`, which click's parser would make the same."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if DASHES in args:
            at = args.index(DASHES)
            args, ctx.meta["command"] = args[:at], args[at + 1 :]
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "[OPTIONS] FILE")
        formatter.write_usage(ctx.command_path, "[OPTIONS] -- COMMAND...", prefix="       ")


@click.command(cls=RunCommand, short_help="Run a file of commands, or one command.")
@click.argument("file", required=False)
@places_options
@job_options
@course_options
@click.option("--ledger", metavar="PATH|URL", help="Remember the run there; none: nowhere. [the user's own]")
@click.option("--name", metavar="NAME", help="Call the run so. [as FILE; jobs-2 where there is a run called jobs]")
@click.option("--resume", is_flag=True, help="Go on with the last run of FILE: what succeeded is not run again.")
@click.option("--resume-failed", is_flag=True, help="As --resume, and run again what failed.")
@click.option("--dry-run", is_flag=True, help="Check FILE and list its tasks in the order they would start.")
@click.option(
    "--json", "json_", is_flag=True, help="The summary (or the list of --dry-run) as JSON, on standard output."
)
@click.option("-q", "--quiet", is_flag=True, help="No progress and no summary; failures only.")
@click.pass_context
def run(ctx: click.Context, /, file: str | None, format_: str, json_: bool, **rest: Any) -> None:
    """Run the commands of FILE ("-" for standard input), most urgent first, or one COMMAND.

    FILE holds a job a line: JSON objects (.jsonl), a table with a header (.csv, .tsv), or shell commands. Fields: key,
    command, priority, queue, slots, env, cwd, timeout, grace, retries, retry_delay, on_worker_lost, max_lost, needs,
    on_need_failed. All of it is checked before the first command starts.

    With a broker, named here or in the configuration, they run on its workers: see `celeriac worker`.

    \b
    Exit status: 0 all succeeded, 1 some failed or were skipped, 2 bad input, 130 interrupted.
    Ctrl-C once: start nothing more. Twice: end what runs. Three times: wait for nothing.
    """
    from celeriac.cli.go import Options, run_jobs

    command: list[str] | None = ctx.meta.get("command")
    if (file is None) == (not command):
        raise click.UsageError("give either a FILE or a command after '--'", ctx)
    settings = {name: rest.pop(name) for name in ("parallelism", "ledger", *CONNECTION_NAMES)}
    if rest["local"] and (settings["broker"] or settings["backend"]):
        raise click.UsageError("--local takes neither --broker nor --backend", ctx)
    if (rest["resume"] or rest["resume_failed"]) and (file is None or file == "-"):
        raise click.UsageError("--resume needs a FILE that can be read again", ctx)
    options = Options(
        file=file, command=tuple(command) if command else None, format=format_, json=json_, settings=settings, **rest
    )
    sys.exit(run_jobs(options))
