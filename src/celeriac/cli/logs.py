"""`celeriac logs`: the output of a task, copied byte by byte.

an attempt that has ended ─► the file that its execution names, or else the last lines with a note
an attempt that runs      ─► the file that it writes: its content now, or with --follow until the attempt ends
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import click

from celeriac.cli.completion import complete_run_and_key
from celeriac.cli.exit_status import FAILED
from celeriac.cli.help_sections import SectionedCommand
from celeriac.cli.ledger_options import find_named_run, ledger_option, ledger_to_read
from celeriac.cli.messages import print_message
from celeriac.cli.options import check_text, config_option, exit_on_bad_input
from celeriac.cli.standard_streams import check_readers
from celeriac.errors import InvalidConfig
from celeriac.ledger.database import Database
from celeriac.ledger.run_lookup import look_up_run
from celeriac.ledger.task_attempts import Attempts, attempts_of
from celeriac.ledger.views import RunState, find_run, find_task
from celeriac.runs.output_files import files_of_attempt
from celeriac.task.result import Execution, Output

POLL_INTERVAL = 0.2  # seconds between two reads of a task
MAX_UNOWNED_POLLS = 5  # consecutive: a run that has just begun has no owner for a moment
STREAMS = ("stdout", "stderr")


@click.command(cls=SectionedCommand)
@click.argument("names", nargs=-1, metavar="[RUN] KEY", shell_complete=complete_run_and_key)
@click.option("--out", "stream", flag_value="stdout", help="Only its standard output.")
@click.option("--err", "stream", flag_value="stderr", help="Only its standard error.")
@click.option(
    "--attempt", type=click.IntRange(min=1), metavar="N", help="The output of attempt N. [default: the last that began]"
)
@click.option("-f", "--follow", is_flag=True, help="Wait for more output until the task has ended.")
@click.option("--failed", is_flag=True, help="The last lines of each attempt that failed, without KEY.")
@ledger_option
@config_option
@click.option("--json", "as_json", is_flag=True, help="With --failed: print the attempts, one JSON object per line.")
@exit_on_bad_input
def logs(
    names: tuple[str, ...],
    stream: str | None,
    attempt: int | None,
    follow: bool,
    failed: bool,
    ledger: str | None,
    config: str | None,
    as_json: bool,
) -> None:
    """Show the output of the task KEY of RUN; without RUN, of the latest run. Both output streams stay apart.

    If the output was kept in a file on this machine, all of it is shown. Otherwise the last lines are shown, which are
    in the ledger, with a note.

    `celeriac logs RUN --failed` shows the last lines of all attempts that failed, in the order of the jobs, with the
    reason of each.

    Exit status: 0; 1 if the task has not begun, or no process runs it any more; 2 bad input.
    """
    check_words(names, attempt, is_about_run=failed, follows=follow, as_json=as_json)
    streams = STREAMS if stream is None else (stream,)
    if failed:
        from celeriac.cli.failed_logs import show_failed  # late: one task needs less

        with ledger_to_read(ledger, config) as opened:
            run_view = find_named_run(opened.database, names[0] if names else None, counted=False)
            show_failed(opened.database, run_view, streams, as_json=as_json)
        return
    run, key = names if len(names) == 2 else (None, names[0])
    selection = Selection(streams=streams, attempt=attempt)
    with ledger_to_read(ledger, config) as opened:
        database = opened.database
        name = find_named_run(database, run, counted=False).name
        if run is None:
            check_is_key(database, name, key)
        if follow:
            sys.exit(follow_output(lambda: attempts_of(database, name, key), selection))
        sys.exit(show_output(attempts_of(database, name, key), selection))


def check_words(
    names: tuple[str, ...], attempt: int | None, *, is_about_run: bool, follows: bool, as_json: bool
) -> None:
    """Raise `UsageError` for words and options that do not go together."""
    check_text("RUN or KEY", *names)
    if not is_about_run:
        if not 1 <= len(names) <= 2:
            raise click.UsageError("give one RUN and one KEY, or a KEY of the latest run")
        if as_json:
            raise click.UsageError("--json goes with --failed")
    elif len(names) > 1:
        raise click.UsageError("give one RUN with --failed, and no KEY")
    elif follows or attempt is not None:
        raise click.UsageError(f"give either --failed or {'--follow' if follows else '--attempt'}")


def check_is_key(database: Database, run: str, key: str) -> None:
    """Raise `InvalidConfig` for a word that names another run, and no task of the latest one."""
    try:
        find_task(database, find_run(database, run, counted=False), key)
    except InvalidConfig:
        try:
            other = look_up_run(database, key, counted=False)
        except InvalidConfig:
            return  # the caller reports the unknown task
        shown = shlex.quote(other.name)
        remedy = f"name one of its tasks, too: celeriac logs {shown} KEY; celeriac show {shown} lists them"
        raise InvalidConfig(key, "is a run, not a task", remedy) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The output to show."""

    streams: tuple[str, ...]
    attempt: int | None


def show_output(attempts: Attempts, selection: Selection) -> int:
    """Copy the existing output. Return the exit status. Raises `InvalidConfig` for an attempt that does not exist."""
    number = selection.attempt or attempts.last_begun
    if number is None:
        verb = "never began" if attempts.task_has_ended else "has not begun"
        print_message(f"task {attempts.key!r} of run {attempts.run.name!r} {verb}")
        return FAILED
    if number in attempts.ended:
        show_ended(attempts.ended[number], selection)
        if is_empty(attempts.ended[number], selection):
            print_message(f"task {attempts.key!r} wrote nothing")
    elif attempts.is_running(number):
        show_running(attempts, number, selection)
    else:
        last = attempts.last_begun
        remedy = "it has not begun" if last is None else f"the last attempt that began is {last}"
        raise InvalidConfig("--attempt", f"task {attempts.key!r} has no attempt {number}", remedy)
    return 0


# — an attempt that has ended —


def show_ended(execution: Execution | None, selection: Selection) -> None:
    if execution is not None:
        for name in selection.streams:
            show_stream(getattr(execution, name), execution.host, name)


def is_empty(execution: Execution | None, selection: Selection) -> bool:
    return execution is None or not any(getattr(execution, name).size for name in selection.streams)


def show_stream(output: Output, host: str, name: str) -> None:
    """Copy the file of a stream, or else print its last lines and say why."""
    target = target_of(name)
    reason = copy_file(output.path, output.machine(host), target)
    if reason is None:
        return
    tail = output.tail.encode()
    target.write(tail)
    target.flush()
    if output.size > len(tail):
        print_message(f"{name}: these are the last lines of {output.size:,} bytes; {reason}")


def copy_file(path: str | None, host: str, target: BinaryIO) -> str | None:
    """Return None, or why there is no file to copy."""
    if path is None:
        return "no file was kept"
    if host != socket.gethostname():
        return f"the file is on {host}: {path}"
    try:
        with Path(path).open("rb") as file:
            shutil.copyfileobj(file, target)
    except FileNotFoundError:
        return f"{path} was removed"
    except PermissionError as error:
        return f"{path}: {error.strerror}"
    target.flush()
    return None


def target_of(stream: str) -> BinaryIO:
    return sys.stdout.buffer if stream == "stdout" else sys.stderr.buffer


# — an attempt that runs —


@dataclass(slots=True)
class FollowedFile:
    """One stream of an attempt that may still run. The file is opened early, because it may be removed at the end."""

    path: Path
    target: BinaryIO
    file: BinaryIO | None = None

    def copy_new(self) -> None:
        """Copy the output that was written since the last call."""
        if self.file is None:
            try:
                self.file = self.path.open("rb")
            except OSError:
                return
        # An earlier task with this key may have written the file. This attempt then truncates and rewrites it.
        if os.fstat(self.file.fileno()).st_size < self.file.tell():
            self.file.seek(0)
        shutil.copyfileobj(self.file, self.target)
        self.target.flush()

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def show_running(attempts: Attempts, number: int, selection: Selection) -> None:
    files = files_of(attempts, number, selection)
    for file in files:
        file.copy_new()
        file.close()
    if not files:
        print_message("the output is with the worker; its last lines arrive when the attempt has ended")


def files_of(attempts: Attempts, number: int, selection: Selection) -> list[FollowedFile]:
    """Return the files of an attempt, if they are on this machine."""
    paths = files_of_attempt(attempts, number)
    return [] if paths is None else [FollowedFile(paths[name], target_of(name)) for name in selection.streams]


def follow_output(read_attempts: Callable[[], Attempts], selection: Selection) -> int:
    """Copy output until the task has ended. Return the exit status."""
    attempts = read_attempts()
    number = selection.attempt or attempts.last_begun or attempts.task.task.attempt
    if not attempts.task_has_ended and not attempts.is_running(number) and number not in attempts.ended:
        print_message(f"task {attempts.key!r} has not begun: waiting for it")
    while True:
        attempts, has_ended = follow_attempt(read_attempts, number, selection)
        if not has_ended:
            return FAILED
        if selection.attempt is not None or (attempts.task_has_ended and attempts.task.task.attempt <= number):
            return 0
        number += 1


def follow_attempt(read_attempts: Callable[[], Attempts], number: int, selection: Selection) -> tuple[Attempts, bool]:
    """Copy output until the attempt has ended. Return the attempts, and whether the attempt has ended.

    Return False if the attempt will certainly never end.
    """
    attempts = read_attempts()
    files = files_of(attempts, number, selection)
    unowned_polls = 0
    while number not in attempts.ended:
        if attempts.task_has_ended:
            print_message(f"task {attempts.key!r} ended without attempt {number}")
            return attempts, False
        unowned_polls = unowned_polls + 1 if attempts.run.state is RunState.INTERRUPTED else 0
        if unowned_polls == MAX_UNOWNED_POLLS:
            print_message(f"no process runs task {attempts.key!r} any more: run {attempts.run.name!r} was interrupted")
            return attempts, False
        for file in files if attempts.is_running(number) else ():
            file.copy_new()
        check_readers(*map(target_of, selection.streams))
        time.sleep(POLL_INTERVAL)  # a ledger does not report changes
        attempts = read_attempts()
    show_rest(attempts.ended[number], files, selection)
    return attempts, True


def show_rest(execution: Execution | None, files: list[FollowedFile], selection: Selection) -> None:
    """Copy the rest of each open file. For a stream without a file, show the output in the execution."""
    followed = dict(zip(selection.streams, files, strict=False))
    for name in selection.streams:
        file = followed.get(name)
        if file is not None and file.file is not None:
            file.copy_new()
            file.close()
        elif execution is not None:
            show_stream(getattr(execution, name), execution.host, name)
