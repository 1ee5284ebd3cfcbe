"""Values as text for people. A text from outside may hold control characters: they are shown, not obeyed."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from html import escape
from typing import Any
from urllib.parse import urlencode

from celeriac.task.task import Command

CONTROL_PICTURES = 0x2400  # the block of Unicode with a symbol for each control character
DELETE_PICTURE = "\N{SYMBOL FOR DELETE}"
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
END_OF_TIME = 2.0**37  # seconds: the year 6325


def visible(text: str) -> str:
    """Return a text with symbols in place of its control characters, and numbers in place of what else is invisible:
    lone surrogates, and marks that reverse the direction of writing."""
    return text if text.isprintable() else "".join(map(visible_character, text))


def visible_lines(text: str) -> str:
    """Do the same, and keep line breaks and tabs."""
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join("\t".join(map(visible, line.split("\t"))) for line in lines)


def visible_character(character: str) -> str:
    number = ord(character)
    if number < 0x20:
        return chr(CONTROL_PICTURES + number)
    if number == 0x7F:
        return DELETE_PICTURE
    return character if character.isprintable() else f"\\u{{{number:x}}}"


class Escaped(str):
    """HTML. Templates escape all texts but those with this method."""

    __slots__ = ()

    def __html__(self) -> str:
        return str(self)


def finalize(value: Any) -> Any:
    """Return a value as a template shows it."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return "" if value is None else value
    return visible(value)


def raw(text: str) -> Escaped:
    """Return a text for an attribute that a program reads: escaped, with all of its characters."""
    return Escaped(escape(text.encode("utf-8", "replace").decode()))


def multiline(text: str) -> Escaped:
    """Return a text for an element that keeps white space."""
    return Escaped(escape(visible_lines(text)))


def command_text(command: Command) -> str:
    return command if isinstance(command, str) else shlex.join(command)


def shell_word(text: str) -> str:
    """Return a text for a command that a person may copy into a shell."""
    return shlex.quote(text)


def first_line(text: str, limit: int = 120) -> str:
    """Return the beginning of a text, for one line."""
    lines = text.strip().split("\n", 1)
    return f"{lines[0][: limit - 1]}…" if len(lines) > 1 or len(lines[0]) > limit else lines[0]


def duration(seconds: float | None) -> str:
    """Return a duration as a person would write it."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{max(0.0, seconds):.2f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def age(seconds: float | None) -> str:
    """Return an age in whole units, so that a live page does not change all the time."""
    return "" if seconds is None else duration(seconds) if seconds >= 120 else f"{max(0, round(seconds))} s"


def number(value: int | float) -> str:
    return f"{value:,}"


def rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def size(value: int) -> str:
    """Return a number of bytes."""
    amount, unit = float(value), 0
    while amount >= 1024 and unit < len(UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    return f"{value} B" if not unit else f"{amount:.1f} {UNITS[unit]}"


def moment(when: float) -> datetime:
    return datetime.fromtimestamp(min(max(when, 0.0), END_OF_TIME), tz=UTC)


def iso_time(when: float) -> str:
    """Return seconds since the epoch for a program: the page shows it in the viewer's own time."""
    return moment(when).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def utc_time(when: float) -> str:
    """Return the text of a time where no script runs."""
    return f"{moment(when):%Y-%m-%d %H:%M:%S}"


def link(path: str, **parameters: Any) -> str:
    """Return an address on this server. Parameters without a value are left out."""
    given = {name: value for name, value in parameters.items() if value not in (None, "", (), [])}
    query = urlencode(given, doseq=True, errors="replace")
    return f"{path}?{query}" if query else path
