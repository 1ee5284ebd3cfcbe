"""Hide secrets in what a command writes: as a whole, line by line, and without the spaces around them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

MASK = b"******"
MIN_LINE = 4  # bytes; a shorter line of a secret is hidden only as a part of more: "{" stands everywhere


class Masker:
    """The secrets of one command."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._forms = sorted({form for secret in secrets for form in forms_of(secret)}, key=len, reverse=True)
        self.longest = len(self._forms[0]) if self._forms else 0
        """Bytes of the longest secret."""

    def mask(self, text: bytes, begin: int = 0) -> bytes:
        """Return the text from an index on, without secrets. A secret that stands across the index is hidden, too."""
        parts, end = [], begin
        for first, last in merged(sorted(self._find(text, begin))):
            parts += [text[end:first], MASK]
            end = last
        return b"".join([*parts, text[end:]])

    def _find(self, text: bytes, begin: int) -> Iterator[tuple[int, int]]:
        """Yield where secrets stand in a text, also those that overlap. Skip those that end before an index."""
        for form in self._forms:
            at = text.find(form, max(0, begin - len(form) + 1))
            while at >= 0:
                yield at, at + len(form)
                at = text.find(form, at + 1)


def forms_of(secret: str) -> Iterator[bytes]:
    """Yield the forms in which a secret may be printed."""
    data = os.fsencode(secret)
    lines = [form for line in data.splitlines() for form in (line, line.strip()) if len(form) >= MIN_LINE]
    for form in (data, data.strip(), data.strip().replace(b"\r\n", b"\n"), *lines):
        if form.strip():
            yield form


def merged(places: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield places in order, with those that overlap or touch as one."""
    current: tuple[int, int] | None = None
    for first, last in places:
        if current is not None and first <= current[1]:
            current = current[0], max(current[1], last)
        else:
            if current is not None:
                yield current
            current = first, last
    if current is not None:
        yield current
