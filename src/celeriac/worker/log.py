"""The worker's log: one line for each move of a task, with its key; text or JSON. Never a command, never a secret."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger("celeriac.worker")


def log_event(event: str, *, level: int = logging.INFO, **facts: Any) -> None:
    """`facts` that are None are left out."""
    logger.log(level, event, extra={"facts": {name: fact for name, fact in facts.items() if fact is not None}})


def begin_log(format: str, level: str) -> None:
    """Log to standard error. What Celery and its libraries say is shown from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if format == "json" else TextLines())
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level.upper()]))
    logging.getLogger("celeriac").setLevel(level.upper())


class Lines(logging.Formatter):
    def facts(self, record: logging.LogRecord) -> Mapping[str, Any]:
        """The first line of what others say: below it Celery shows whole messages, commands and secrets included."""
        ours: Mapping[str, Any] = getattr(record, "facts", {})
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z"
        event = (record.getMessage().strip() or record.name).splitlines()[0]
        return {"time": moment, "level": record.levelname.lower(), "event": event, **ours}


class JsonLines(Lines):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(self.facts(record), default=str)


class TextLines(Lines):
    def format(self, record: logging.LogRecord) -> str:
        facts = dict(self.facts(record))
        head = f"{facts.pop('time')} {facts.pop('level'):<7} {facts.pop('event')}"
        return " ".join([head, *(f"{name}={plain(fact)}" for name, fact in facts.items())])


def plain(fact: Any) -> str:
    """As it is if it is one word, otherwise in quotes and with escapes."""
    text = f"{fact:.3f}" if isinstance(fact, float) else str(fact)
    return text if text.isprintable() and text and not set(text) & set(' "=') else json.dumps(text)
