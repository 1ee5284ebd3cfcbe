"""`celeriac top`: queues, workers, runs and their tasks as an application on a terminal."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from importlib.util import find_spec
from typing import Any

import click

from celeriac.cli.control_options import exit_on_error
from celeriac.cli.help_sections import SectionedCommand
from celeriac.cli.options import connection_options
from celeriac.cli.url_options import url_option
from celeriac.config.settings import DEFAULT, Settings, read_settings
from celeriac.errors import InvalidConfig

INTERVAL = 2.0  # seconds
LIGHT_COLOURS = (7, 15)  # numbers of backgrounds in COLORFGBG


@click.command(cls=SectionedCommand)
@url_option("ledger", metavar="PATH|URL", help="The ledger of the runs. [default: the user's own]")
@connection_options
@click.option(
    "--queues",
    metavar="NAMES",
    help='Queues to show besides those that workers serve, separated by commas. [default: the queue "default"]',
)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.5),
    default=INTERVAL,
    metavar="SECONDS",
    help="Time from one look to the next. [default: 2]",
)
@exit_on_error
def top(config: str | None, interval: float, **options: Any) -> None:
    """Show queues, workers and runs, and act on them: cancel, retry, drain. The last line names the keys.

    Enter shows the tasks of a run, and the life and the output of a task. Each action asks first.

    It needs a terminal, and celeriac[top]. `celeriac status --watch` shows the same without it.
    """
    check_terminal()
    settings = read_settings(options, config=config)
    with_ledger = has_ledger(settings)
    if not with_ledger:
        _ = settings.connection  # a broker is needed
    from celeriac.cli.top_view.app import TopApp  # these import textual
    from celeriac.cli.top_view.source import Source

    with closing(Source(settings, with_ledger=with_ledger, config=config)) as source:
        source.check()
        TopApp(source, interval=interval, is_light=has_light_background()).run()


def check_terminal() -> None:
    """Raise `InvalidConfig` if textual is not installed, or there is no terminal."""
    if find_spec("textual") is None:
        problem = "it needs the module textual, which is not installed"
        raise InvalidConfig("top", problem, "pip install 'celeriac[top]'")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise InvalidConfig("top", "it needs a terminal", "celeriac status --watch prints lines without one")


def has_ledger(settings: Settings) -> bool:
    """Return whether there is a ledger to show: one that was named, or the user's own, if it exists."""
    if settings.ledger is None:
        return False
    if settings.values["ledger"].origin != DEFAULT or settings.values["broker"].value is None:
        return True
    return os.path.exists(settings.ledger.removeprefix("sqlite:///"))  # noqa: PTH110


def has_light_background() -> bool:
    """Return whether the terminal says that its background is light, as rxvt, Konsole and others do."""
    background = os.environ.get("COLORFGBG", "").rpartition(";")[2]
    return background.isdecimal() and int(background) in LIGHT_COLOURS
