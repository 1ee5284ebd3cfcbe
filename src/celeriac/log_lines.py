"""The loggers of this package. Each of their messages is one line, whatever names and errors it contains.

Not every program sets up a log: then Python prints warnings as they are.
"""

from __future__ import annotations

import contextlib
import logging

from celeriac.errors import on_one_line


class OneLine(logging.Filter):
    """Escapes the message of a record. One that cannot be formatted is left to the handler, which reports that."""

    def filter(self, record: logging.LogRecord) -> bool:
        with contextlib.suppress(Exception):
            record.msg, record.args = on_one_line(record.getMessage()), None
        return True


ONE_LINE = OneLine()


def logger_for(name: str) -> logging.Logger:
    """Return the logger of a module."""
    logger = logging.getLogger(name)
    logger.addFilter(ONE_LINE)
    return logger
