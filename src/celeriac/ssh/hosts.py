"""Read a file of hosts: `[user@]host [slots=N] [python=PATH]` on each line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from celeriac.errors import InvalidConfig

HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:%-]*")  # none begins like an option of ssh


@dataclass(frozen=True, slots=True)
class Host:
    """A machine, and its worker."""

    name: str
    """As ssh takes it, with the user."""

    slots: int | None = None
    """How many commands its worker runs at once; None for one per CPU there."""

    python: str | None = None
    """The interpreter with Celeriac; None for the program `celeriac` on the PATH there."""


def read_hosts(path: str) -> list[Host]:
    """Return the hosts in a file. Raises `InvalidConfig`."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError):
        raise InvalidConfig("--ssh", f"{path!r} cannot be read", "name a readable file of hosts") from None
    hosts = [*parse_hosts(text, path)]
    if not hosts:
        raise InvalidConfig(path, "it has no host", "write one host a line, such as user@host slots=4")
    return hosts


def parse_hosts(text: str, path: str) -> Iterator[Host]:
    """Yield the hosts of a text. Raises `InvalidConfig` for the first line that is wrong."""
    seen: set[str] = set()
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        place, name = f"{path}:{number}", words[0]
        if HOST.fullmatch(name) is None:
            raise InvalidConfig(place, f"{name!r} is not a host", "write host or user@host")
        if name in seen:
            raise InvalidConfig(place, f"{name!r} is there twice", "give it once, with more slots")
        seen.add(name)
        yield host_with(name, words[1:], place)


def host_with(name: str, words: list[str], place: str) -> Host:
    """Return a host with the fields in the words. Raises `InvalidConfig`."""
    slots, python = None, None
    for word in words:
        field, _, value = word.partition("=")
        if field == "slots" and re.fullmatch("[1-9][0-9]{0,5}", value):
            slots = int(value)
        elif field == "slots":
            raise InvalidConfig(place, f"slots: {value!r} is not a number from 1", "write for example slots=4")
        elif field == "python" and value:
            python = value
        else:
            raise InvalidConfig(place, f"{word!r} is not known", "write slots=N or python=PATH")
    return Host(name, slots, python)
