"""The report of an error that Celeriac should have handled: the traceback, and where to send it."""

from __future__ import annotations

import sys
from types import TracebackType

from celeriac.cli.messages import print_message

ISSUES = "Issues"  # label of the issue tracker in [project.urls]


def report_bug(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Print the traceback and ask for a report. An exception hook: see `sys.excepthook`."""
    sys.__excepthook__(kind, error, traceback)
    if not issubclass(kind, KeyboardInterrupt):
        print_message(f"this is a bug in Celeriac; please report it{place_to_report()}")


def place_to_report() -> str:
    """Return the address of the issue tracker, if the package's metadata has it; else name the maintainers."""
    from importlib.metadata import PackageNotFoundError, metadata  # takes 30 ms, which no command should wait for

    try:
        urls = metadata("celeriac").get_all("Project-URL") or []
    except PackageNotFoundError:  # run from a folder of sources
        urls = []
    for label, _, url in (entry.partition(", ") for entry in urls):
        if label == ISSUES:
            return f": {url}"
    return " to its maintainers, with the lines above"
