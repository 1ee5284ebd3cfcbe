"""`celeriac run`."""

from __future__ import annotations

import os
import shlex
import sys
from functools import partial
from typing import Any

import click

from celeriac.cli.command_output import CommandEnd
from celeriac.cli.job_problems import exit_on_bad_jobs
from celeriac.cli.ledger_options import open_default_ledger
from celeriac.cli.options import (
    check_local,
    check_text,
    course_options,
    exit_on_bad_input,
    exit_on_signal,
    job_options,
    notice_options,
    place_options,
    tags_option,
    take_defaults,
    take_settings,
    take_tags,
)
from celeriac.cli.output_options import take_style
from celeriac.cli.path_completion import complete_file
from celeriac.cli.pipe_options import pipe_options, take_pipe
from celeriac.cli.run_output import RunOutput
from celeriac.cli.template_options import TemplateCommand, take_template, template_options
from celeriac.cli.url_options import place_of, url_option
from celeriac.config.settings import read_settings
from celeriac.runs.launch import check_jobs, run_jobs
from celeriac.runs.options import JobRunOptions, is_read_again

DASHES = "--"


class RunCommand(TemplateCommand):
    """A command that distinguishes `run FILE` from `run -- COMMAND...`; click's own parser does not."""

    EXAMPLES = (
        ("celeriac run jobs.txt", "Each line is a shell command."),
        ("celeriac run -j 8 -o out jobs.csv", "8 at once; keep outputs in out/."),
        ("celeriac run --dry-run jobs.jsonl", "Check and list; run nothing."),
        ("celeriac run --resume jobs.jsonl", "Go on after Ctrl-C or a crash."),
        ("celeriac run -t 'gzip {}' ::: *.log", "One job for each argument."),
        ("celeriac run --broker URL jobs.jsonl", "On workers, on many machines."),
        ("celeriac run -- make all", "One command."),
    )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        position = next((place for place, word in enumerate(args) if word == DASHES or word.startswith(":::")), None)
        if position is not None and args[position] == DASHES:
            args, ctx.meta["command"] = args[:position], args[position + 1 :]
        given = list(args)  # click takes words out of `args`
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            if hint := hint_for(given):
                raise click.UsageError(f"{error.format_message().rstrip('.')}; {hint}", ctx) from None
            raise

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "[OPTIONS] FILE")
        formatter.write_usage(ctx.command_path, "[OPTIONS] -t COMMAND FILE | ::: VALUES...", prefix="       ")
        formatter.write_usage(ctx.command_path, "[OPTIONS] -- COMMAND...", prefix="       ")
        formatter.write_usage(ctx.command_path, "[OPTIONS] --pipe [FILE] -- COMMAND...", prefix="       ")


def hint_for(args: list[str]) -> str | None:
    """Return what the user probably meant, if the first word is no file: a name with spaces, or one command."""
    words = [word for word in args if not word.startswith("-")]
    if not words or os.path.exists(words[0]):  # noqa: PTH110 - a name may hold what `Path` refuses
        return None
    if os.path.exists(name := " ".join(words)):  # noqa: PTH110
        return f"quote the name: celeriac run {shlex.quote(name)}"
    return f"to run one command, write it after --: celeriac run -- {shlex.join(args)}"


@click.command(cls=RunCommand)
@click.argument("file", required=False, shell_complete=complete_file)
@place_options
@template_options
@pipe_options
@job_options
@course_options
@notice_options
@url_option(
    "ledger",
    metavar="PATH|URL",
    help='The ledger, a database that remembers runs, or "none". [default: your own]',
)
@click.option("--name", metavar="NAME", help="Name of the run. [default: FILE's name, numbered if taken]")
@tags_option
@click.option("--resume", is_flag=True, help="Continue the last run of FILE; successful tasks do not run again.")
@click.option("--resume-failed", is_flag=True, help="Like --resume, but run failed tasks again.")
@click.option(
    "--joblog",
    "job_log",
    metavar="FILE",
    shell_complete=complete_file,
    help="Write a line to FILE as each task ends, as GNU parallel does.",
)
@click.option("--dry-run", is_flag=True, help="Check FILE and list its tasks in the order they would start.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the summary (with --dry-run: the list) as JSON on standard output."
)
@click.pass_context
@exit_on_signal
@exit_on_bad_input
def run(
    ctx: click.Context, /, file: str | None, format_: str, as_json: bool, quiet: bool, dry_run: bool, **rest: Any
) -> None:
    """Run the commands of FILE ("-" for standard input), or one COMMAND. The highest priority starts first.

    Ctrl-C once: start nothing more. Twice: end running commands. Three times: stop without waiting. Ctrl-Z: stop all,
    also running commands and their timeouts, until fg or bg.

    FILE has one job a line: a JSON object (.jsonl), a row of a table with a header (.csv, .tsv), or a shell command
    (.txt, .sh). JSON may have any layout, such as one list. With -t, it has the values of jobs instead. A job has
    these fields: key, command, priority, queue, slots, cpus, memory, gpus, env, cwd, timeout, grace, retries,
    retry_delay, on_worker_lost, max_lost, needs, on_need_failed, tags, stdin, stdin_file, scratch, artifacts,
    not_before, deadline, concurrency_key. The whole file is checked before the first command starts.

    If a broker is given here or in the configuration, the commands run on its workers: see `celeriac worker`.

    Exit status: 0 if all succeeded; 1 if some failed or were skipped; 2 bad input, or a server that cannot be used; 130
    interrupted. With COMMAND: its own exit status, 128 + N after signal N, 126 or 127 if it cannot start.
    """
    words: list[str] | None = ctx.meta.get("command")
    pipe = take_pipe(ctx, rest, words)
    if pipe is not None:
        file, words = file or "-", None
    template = take_template(ctx, rest, file)
    has_values = template is not None and bool(template.lists)
    if (file is not None) + bool(words) + has_values != 1 or (words and template is not None):
        raise click.UsageError("give either a FILE, with - for standard input, or a command after '--'")
    rest["tags"] = take_tags(rest["tags"])
    settings, defaults, events = take_settings(rest), take_defaults(rest), rest.pop("events")
    job_log = rest.pop("job_log")
    check_local(settings, local=rest["local"])
    if (rest["resume"] or rest["resume_failed"]) and not is_read_again(file, template):
        raise click.UsageError("--resume needs a FILE that can be read again")
    if rest["name"] is not None:
        check_text("--name", rest["name"])
    command = tuple(words) if words else None
    passes_output = command is not None and rest["output"] is None and not as_json
    style = take_style(rest, events=events, as_json=as_json, quiet=quiet, is_one=command is not None)
    options = JobRunOptions(
        file=file,
        command=command,
        template=template,
        pipe=pipe,
        format=format_,
        defaults=defaults,
        settings=settings,
        shows_output=style is not None,
        passes_output=passes_output,
        **rest,
    )
    if job_log is not None:
        from celeriac.cli.job_log import check_job_log  # late: few runs need it

        check_job_log(job_log)
    with exit_on_bad_jobs():
        output = RunOutput(
            job_log=job_log,
            json=as_json,
            quiet=quiet,
            events=events,
            appends_events=options.resumes,
            place=place_of(settings),
            style=style,
            shows_command=passes_output,
            command_end=CommandEnd() if command is not None else None,
        )
        if dry_run:
            from celeriac.cli.listing import (
                list_tasks,
                print_first,
                print_limits,
                print_notices,
                print_pipe,
                print_tags,
            )  # late: few runs need it

            on_wait = None if file is None else partial(output.report_wait, file)
            tasks = check_jobs(options, on_wait)
            list_tasks(tasks, as_json=as_json)
            if template is not None and not quiet:
                print_first(tasks)
            if pipe is not None:
                print_pipe(str(file), pipe.block)
            print_tags(options.tags)
            read = read_settings(settings, config=options.config)
            print_limits(read.executor)
            print_notices(read.notices)
            return
        if events is not None:
            from celeriac.cli.events_file import check_events_file  # late: few runs need it

            check_events_file(events, writes_output=as_json or passes_output)
        sys.exit(output.conclude(run_jobs(options, output.hooks(open_default_ledger))))
