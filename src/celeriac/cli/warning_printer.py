"""The warnings of a command that sets up no log: each as one line on standard error, as other messages."""

from __future__ import annotations

import logging

import click

from celeriac.worker.log import TextLines


class WarningLines(TextLines):
    """The event and its facts."""

    def head(self, moment: str, level: str) -> str:
        return "celeriac:"


class WarningPrinter(logging.Handler):
    """Prints warnings and errors that no other handler takes."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(WarningLines())

    def emit(self, record: logging.LogRecord) -> None:
        try:
            click.echo(self.format(record), err=True)
        except Exception:  # noqa: BLE001 - as each handler does
            self.handleError(record)


def print_unhandled_warnings() -> None:
    """Print warnings in place of Python, which would print them as they are, and without their facts."""
    logging.lastResort = WarningPrinter()
