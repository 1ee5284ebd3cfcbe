"""Hold the changes of the code that break the protocol, by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from msgspec import Struct


class Change(Struct, frozen=True):
    breaks: str
    replaced: tuple[tuple[Any, str, Any], ...]
    """Each an object, the name of an attribute, and its new value."""


CHANGES: dict[str, Change] = {}


def change(name: str, breaks: str, *replaced: tuple[Any, str, Any]) -> None:
    """Add a change. `breaks` says what it does."""
    CHANGES[name] = Change(breaks, replaced)


@contextmanager
def changed(name: str | None) -> Iterator[None]:
    """Make a change, if one is named."""
    with ExitStack() as stack:
        for target, attribute, value in CHANGES[name].replaced if name is not None else ():
            stack.enter_context(patch.object(target, attribute, value))
        yield
