"""Bytes with gaps: the common parts of all messages of a kind, parsed once and filled in for each message."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Self


class Gap(NamedTuple):
    """A range of bytes that each message replaces by its own value."""

    start: int
    end: int
    value: int
    """The index of the value that fills the gap."""


class Template:
    """The bytes between the gaps, and which value fills each gap."""

    __slots__ = ("_pieces", "_values")

    def __init__(self, text: bytes, gaps: Iterable[Gap]) -> None:
        self._pieces: list[bytes] = []
        self._values: list[int] = []
        end = 0
        for gap in sorted(gaps):
            self._pieces += text[end : gap.start], b""
            self._values.append(gap.value)
            end = gap.end
        self._pieces.append(text[end:])

    @classmethod
    def parse(cls, text: bytes, placeholders: Sequence[bytes]) -> Self:
        """Return a template with a gap in place of each placeholder. A placeholder has the index of its value."""
        gaps = (gap for value, placeholder in enumerate(placeholders) for gap in find_gaps(text, placeholder, value))
        return cls(text, gaps)

    def fill(self, values: Sequence[bytes]) -> bytes:
        """Return the bytes with each gap filled."""
        pieces = self._pieces.copy()
        pieces[1::2] = [values[number] for number in self._values]
        return b"".join(pieces)


def find_gaps(text: bytes, placeholder: bytes, value: int, start: int = 0, end: int | None = None) -> Iterator[Gap]:
    """Yield a gap for each occurrence of the placeholder between `start` and `end`."""
    while (gap_start := text.find(placeholder, start, end)) >= 0:
        start = gap_start + len(placeholder)
        yield Gap(gap_start, start, value)
