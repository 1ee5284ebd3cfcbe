"""The ledger of a command: its option, and how it is opened."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeVar

from celeriac.cli.formatting import count
from celeriac.cli.messages import print_message
from celeriac.cli.status_line import FIRST_PROGRESS, StatusLine
from celeriac.cli.url_options import url_option
from celeriac.cli.waiting import wait_while_refused
from celeriac.config.settings import DEFAULT, Settings, read_settings
from celeriac.errors import CeleriacError, InvalidConfig, LedgerLocked, LedgerUnavailable
from celeriac.server_errors import ServerProblem, problem_of

if TYPE_CHECKING:
    from celeriac.ledger.database import Database
    from celeriac.ledger.run_recorder import RunRecorder
    from celeriac.ledger.run_store import RunStore
    from celeriac.ledger.views import RunView

Ledger = TypeVar("Ledger", bound="RunRecorder")

ledger_option = url_option(
    "ledger", metavar="PATH|URL", help="The ledger that recorded the runs. [default: the user's own]"
)


def ledger_to_read(ledger: str | None, config: str | None) -> RunStore:
    """Open a ledger to read. Use as a context manager. Raises `InvalidConfig` and `LedgerError`."""
    return open_ledger(read_settings({"ledger": ledger}, config=config), read_only=True)


def ledger_to_write(ledger: str | None, config: str | None) -> RunStore:
    """Open a ledger that exists. Use as a context manager. Raises `InvalidConfig` and `LedgerError`."""
    return open_ledger(read_settings({"ledger": ledger}, config=config), must_exist=True)


def find_named_run(database: Database, name: str | None, *, counted: bool = True) -> RunView:
    """Return the run that `name` means in the working folder, or the latest run. Report it if it has another name.

    Raises as `look_up_run` does.
    """
    from celeriac.ledger.run_lookup import look_up_run  # imports SQLAlchemy

    run = look_up_run(database, name, counted=counted)
    if name is not None and run.name != name:
        print_message(f"{name!r} is {run.name!r} here, the latest run of {run.source}")
    return run


def open_existing_ledger(settings: Settings) -> RunStore:
    """Open the ledger that the settings name, for a run. Raises as `open_ledger` does, also if it does not exist."""
    return open_when_it_serves(lambda: open_ledger(settings, must_exist=True))


def open_default_ledger(settings: Settings) -> RunStore | None:
    """Open the ledger of a run that continues; None if there is none. Raises as `open_ledger` does."""
    return open_when_it_serves(lambda: open_ledger(settings)) if is_recorded(settings) else None


def open_ledger_to_record(settings: Settings) -> RunRecorder | None:
    """Open the ledger of a new run; None if the run is not recorded. Raises as `open_ledger` does."""
    if not is_recorded(settings):
        return None
    # This takes time, so it comes late: commands check their input first.
    from celeriac.ledger.run_recorder import open_recorder

    return open_when_it_serves(lambda: open_recorder(str(settings.ledger), on_locked=LockLine()))


def is_recorded(settings: Settings) -> bool:
    """Return whether there is a ledger for a run. Say so if only the home folder is missing."""
    if settings.ledger is None and settings.values["ledger"].origin == DEFAULT:
        print_message("there is no home folder, and HOME is not set: this run is not recorded")
    return settings.ledger is not None


def open_when_it_serves(open_: Callable[[], Ledger]) -> Ledger:
    """Open a ledger on a server for a run, which must write to it. Wait while the server refuses for now."""

    def attempt() -> Ledger:
        store = open_()
        with ExitStack() as stack:
            stack.enter_context(store)
            store.check_writable()
            stack.pop_all()
            return store

    store, _ = wait_while_refused(attempt, is_refused_for_now)
    return store


def is_refused_for_now(error: CeleriacError) -> bool:
    """Return whether a ledger on a server may be used later."""
    is_on_server = isinstance(error, LedgerUnavailable) and not is_file(error.ledger)
    return is_on_server and problem_of(error) is ServerProblem.REFUSING


def is_file(url: str) -> bool:
    return url.startswith("sqlite")


def open_ledger(settings: Settings, *, must_exist: bool = False, read_only: bool = False) -> RunStore:
    """Open the ledger that the settings name. Use as a context manager. Raises `InvalidConfig` and `LedgerError`."""
    # This imports SQLAlchemy, so it comes late: commands check their input first.
    from celeriac.ledger.run_store import RunStore

    if settings.ledger is None:
        raise InvalidConfig("ledger", "this command needs one", "give --ledger with a path or a URL")
    return RunStore(settings.ledger, must_exist=must_exist, read_only=read_only, on_locked=LockLine())


def show_progress(store: RunRecorder) -> None:
    """Show on a terminal how many tasks were read from a ledger or written to it, once that takes long."""
    line = StatusLine(delay=FIRST_PROGRESS, only_terminals=True)

    def show(what: str, number: int | None) -> None:
        if number is None:
            line.clear()
        else:
            line.show(f"{what}: {count(number, 'task')}")

    store.database.on_progress = show


class LockLine:
    """Shows on a terminal that a write waits for other processes, and prints one line when it has waited long."""

    def __init__(self) -> None:
        self._is_printed = False
        self._line = StatusLine(only_terminals=True)

    def __call__(self, error: LedgerLocked | None, waited: float) -> None:
        if error is None:
            self._line.clear()
        elif waited >= LedgerLocked.REPORT_DELAY and not self._is_printed:
            self._is_printed = True
            self._line.clear()
            print_message(f"{error}: waiting for it")
        elif waited >= FIRST_PROGRESS:
            self._line.show(f"waiting for another process that writes to the ledger: {waited:.1f} s")
