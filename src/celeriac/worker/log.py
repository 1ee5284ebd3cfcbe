"""The worker's log: one line for each event of a task, with its key, as text or JSON. No commands, no secrets."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

from celeriac.errors import on_one_line
from celeriac.log_lines import logger_for
from celeriac.server_errors import is_server_error

logger = logger_for("celeriac.worker")


def log_event(event: str, *, level: int = logging.INFO, logger: logging.Logger = logger, **facts: Any) -> None:
    """Log an event. Facts that are None are left out."""
    logger.log(level, event, extra={"facts": {name: fact for name, fact in facts.items() if fact is not None}})


def begin_log(format: str, level: str) -> None:
    """Log to standard error. From Celery and its libraries, only warnings and worse are shown."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if format == "json" else TextLines())
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level.upper()]))
    logging.getLogger("celeriac").setLevel(level.upper())


class NoServerTraceback(logging.Filter):
    """Drops the traceback of an error of a server: its text says all."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if error is not None and is_server_error(error):
            record.exc_info = record.exc_text = None
        return True


class NoSecondLine(logging.Filter):
    """Drops Celery's line about a message that is handed back: the worker has logged that, with the reason."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "reject requeue=True" not in str(record.args)


def drop_noise_of_libraries() -> None:
    """Log the errors of servers without a traceback, also those that Celery and Kombu log, and each event once."""
    logging.getLogger("celery.app.trace").addFilter(NO_SECOND_LINE)
    for name in LOGGERS_OF_LIBRARIES:
        logging.getLogger(name).addFilter(NO_SERVER_TRACEBACK)


NO_SERVER_TRACEBACK = NoServerTraceback()
NO_SECOND_LINE = NoSecondLine()

LOGGERS_OF_LIBRARIES = (
    *("celery.app.trace", "celery.backends.base", "celery.backends.redis", "celery.bootsteps", "celery.pool"),
    *("celery.worker.consumer.consumer", "celery.worker.loops", "celery.worker.pidbox", "celery.worker.request"),
    *("kombu.asynchronous.hub", "kombu.asynchronous.timer", "kombu.pidbox", "kombu.transport.redis"),
)
"""The loggers of the modules that catch errors of a server and log them with a traceback."""


class Lines(logging.Formatter):
    """Base of both formats."""

    def facts(self, record: logging.LogRecord) -> Mapping[str, Any]:
        """Return time, level, event and facts. The event is the first line of the message: the other lines of Celery's
        messages may contain commands and secrets. So may a traceback, unless the record allows it to be shown."""
        facts: Mapping[str, Any] = getattr(record, "facts", {})
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z"
        event = (record.getMessage().strip() or record.name).splitlines()[0]
        return {"time": moment, "level": record.levelname.lower(), "event": event, **facts}

    def traceback_of(self, record: logging.LogRecord) -> str | None:
        """Return the traceback of a bug."""
        shown = record.exc_info if getattr(record, "shows_traceback", False) else None
        return self.formatException(shown) if shown else None


class JsonLines(Lines):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        traceback = self.traceback_of(record)
        return json.dumps({**self.facts(record), **({"traceback": traceback} if traceback else {})}, default=str)


class TextLines(Lines):
    """Time, level and event, then the facts as NAME=VALUE."""

    def format(self, record: logging.LogRecord) -> str:
        facts = dict(self.facts(record))
        head = self.head(facts.pop("time"), facts.pop("level"))
        line = " ".join(
            [head, on_one_line(facts.pop("event")), *(f"{name}={quoted(fact)}" for name, fact in facts.items())]
        )
        traceback = self.traceback_of(record)
        return "\n".join([line, *map(on_one_line, traceback.split("\n"))]) if traceback else line

    def head(self, moment: str, level: str) -> str:
        """Return the beginning of a line, before the event."""
        return f"{moment} {level:<7}"


def quoted(fact: Any) -> str:
    """Return a single word unchanged, and any other text in quotes, with escapes."""
    text = f"{fact:.3f}" if isinstance(fact, float) else str(fact)
    return text if text.isprintable() and text and not set(text) & set(' "=') else json.dumps(text)
