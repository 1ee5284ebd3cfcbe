"""`celeriac report`: a page about a run, in one file. `celeriac.report` makes it."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

import click

from celeriac.cli.completion import complete_run
from celeriac.cli.formatting import on_one_line
from celeriac.cli.help_sections import SectionedCommand
from celeriac.cli.ledger_options import find_named_run, ledger_option, ledger_to_read, show_progress
from celeriac.cli.options import check_text, config_option, exit_on_bad_input, exit_on_signal
from celeriac.cli.path_completion import complete_file
from celeriac.errors import InvalidConfig
from celeriac.ledger.attempts import earlier_attempts, last_attempts
from celeriac.ledger.run_store import RunStore
from celeriac.ledger.views import RunState, RunView, reload
from celeriac.report.gathered import Gathered
from celeriac.worker.output import file_name

STANDARD_OUTPUT = "-"
HEAD_SIZE = 1_024  # bytes at the beginning of a report that name its program
WRITABLE = 0o666  # what the umask leaves of this


@click.command(cls=SectionedCommand)
@click.argument("run", required=False, shell_complete=complete_run)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    shell_complete=complete_file,
    help='Write to FILE ("-": standard output). [default: RUN.html]',
)
@ledger_option
@config_option
@exit_on_signal
@exit_on_bad_input
def report(run: str | None, output: str | None, ledger: str | None, config: str | None) -> None:
    """Write a page about RUN for a browser, in one file: summary, timeline, failures, slowest tasks. Without RUN, about
    the latest run.

    The file needs no network and runs no script. A run that has not ended gets a report so far. An older report is
    replaced, and no other file. The name of the file is printed.

    It shows commands and the last lines of output, as the ledger has them. It needs the extra "web".
    """
    check_text("RUN", *filter(None, [run]))
    check_library()
    with ledger_to_read(ledger, config) as opened:
        view = find_named_run(opened.database, run)
        path = output or f"{file_name(view.name, 1)}.html"
        check_is_free(path)
        show_progress(opened)
        write_page(path, text_of(opened, view))
    if path != STANDARD_OUTPUT:
        click.echo(on_one_line(path))


def check_library() -> None:
    """Raise `InvalidConfig` if the library of the page is missing."""
    try:
        import jinja2  # noqa: F401
    except ModuleNotFoundError:
        problem = "needs the module jinja2, which is not installed"
        raise InvalidConfig("report", problem, "pip install 'celeriac[web]'") from None


def text_of(store: RunStore, view: RunView) -> Iterable[str]:
    """Return the text of the page, piece by piece. The whole run has been read then."""
    from celeriac.report.page import page_of

    now = time.time()
    latest = reload(store.database, view) or view
    if latest.state in (RunState.ENDED, RunState.INTERRUPTED):
        now = latest.ended or latest.counts.last_change or now
    gathered = Gathered(now=now)
    for attempt in last_attempts(store.database, view.id):
        gathered.add(attempt)
    for attempt in earlier_attempts(store.database, view.id):
        gathered.add_earlier(attempt)
    return page_of(latest, gathered)


def check_is_free(path: str) -> None:
    """Raise `InvalidConfig` if there is a file of something else."""
    from celeriac.report.page import GENERATOR

    if path == STANDARD_OUTPUT:
        return
    with suppress(OSError):  # a file that does not exist, or that `write_page` reports
        if Path(path).is_dir():
            raise InvalidConfig("--output", f"{path} is a folder", "name a file in it")
        if not stat.S_ISREG(Path(path).stat().st_mode):
            return
        with Path(path).open("rb") as file:
            head = file.read(HEAD_SIZE)
        if head and GENERATOR not in head:
            raise InvalidConfig("--output", f"{path} exists and is no report", "remove it, or name another file")


def write_page(path: str, text: Iterable[str]) -> None:
    """Write the page. A file appears when it is complete. Raises `InvalidConfig`."""
    if path == STANDARD_OUTPUT:
        for part in text:
            click.echo(part, nl=False)
        return
    target = Path(path)
    try:
        if target.exists() and not target.is_file():  # such as a FIFO
            with target.open("w", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(text)
            return
        replace_file(target, text)
    except OSError as error:
        raise InvalidConfig("--output", f"{path}: {error.strerror}", "name a file that can be written") from None


def replace_file(target: Path, text: Iterable[str]) -> None:
    """Write a file beside the target, and put it in the target's place. Raises `OSError`."""
    umask = os.umask(0)
    os.umask(umask)
    target = target.resolve()
    with NamedTemporaryFile(
        "w", dir=target.parent, prefix=".celeriac-", encoding="utf-8", errors="backslashreplace", delete=False
    ) as file:
        try:
            file.writelines(text)
            file.flush()
            os.fchmod(file.fileno(), WRITABLE & ~umask)
            Path(file.name).replace(target)
        except BaseException:
            with suppress(OSError):
                Path(file.name).unlink()
            raise
