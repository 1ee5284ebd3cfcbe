"""Bytes with holes: what all messages of a kind have in common, cut once and put together for each of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Self


class Gap(NamedTuple):
    first: int
    end: int
    value: int
    """Which of the values belongs there."""


class Template:
    __slots__ = ("_pieces", "_values")

    def __init__(self, text: bytes, holes: Iterable[Gap]) -> None:
        self._pieces: list[bytes] = []
        self._values: list[int] = []
        after = 0
        for hole in sorted(holes):
            self._pieces += text[after : hole.first], b""
            self._values.append(hole.value)
            after = hole.end
        self._pieces.append(text[after:])

    @classmethod
    def cut(cls, text: bytes, marks: Sequence[bytes]) -> Self:
        """With a hole wherever a mark stands, for the value of the mark's number."""
        return cls(text, (hole for value, mark in enumerate(marks) for hole in places(text, mark, value)))

    def filled(self, values: Sequence[bytes]) -> bytes:
        pieces = self._pieces.copy()
        pieces[1::2] = [values[number] for number in self._values]
        return b"".join(pieces)


def places(text: bytes, mark: bytes, value: int, first: int = 0, end: int | None = None) -> Iterator[Gap]:
    """Wherever the mark stands between `first` and `end`."""
    while (at := text.find(mark, first, end)) >= 0:
        first = at + len(mark)
        yield Gap(at, first, value)
