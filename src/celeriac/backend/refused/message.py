"""A refused message, without its content, and the protocol of the stores that keep some."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import msgspec

KEPT = 100
"""How many refused messages a result backend keeps: the newest."""

KEPT_FOR = 30 * 24 * 3600  # seconds after the last one


class RefusedMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The facts about a refused message. It holds neither arguments nor environment."""

    at: float
    """Seconds since the epoch."""

    queue: str
    worker: str
    id: str | None
    """None if the message has no id that can be printed."""

    why: str
    size: int | None
    """Bytes of the body, or of the whole message if it could not be decoded."""

    about: str
    """The names and types of its parts."""


class RefusedStore(Protocol):
    """Keeps the newest refused messages. A store raises the errors of its client."""

    def add(self, message: RefusedMessage) -> None: ...

    def newest(self) -> Sequence[RefusedMessage]:
        """Return the messages that are kept, the newest first."""
        ...

    def close(self) -> None: ...


def encode(message: RefusedMessage) -> str:
    return msgspec.json.encode(message).decode()


def decode_all(values: Iterable[Any]) -> list[RefusedMessage]:
    """Return the messages. Values that are not messages are left out."""
    messages = []
    for value in values:
        with contextlib.suppress(msgspec.DecodeError, TypeError, ValueError):
            messages.append(msgspec.json.decode(value, type=RefusedMessage))
    return messages
