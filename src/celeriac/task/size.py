"""Parse sizes as a person writes them: 500M, 1.5G."""

from __future__ import annotations

import re

SIZE = re.compile(r"(\d{1,19}(?:\.\d{1,18})?)(?:([kmgt])(?:i?b)?|b)?", re.ASCII | re.IGNORECASE)
BYTES = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def parse_size(text: str) -> float | None:
    """Return the bytes of a size, in which K is 1,024 bytes; None for another text."""
    if not (match := SIZE.fullmatch(text)):
        return None
    number, unit = match.groups()
    return (float(number) if "." in number else int(number)) * BYTES[(unit or "").lower()]


def format_size(size: int) -> str:
    """Return bytes with one digit after the point, in the unit that a person would take."""
    units = ("bytes", "KiB", "MiB", "GiB", "TiB")
    place = min((max(size, 1).bit_length() - 1) // 10, len(units) - 1)
    return f"{size / 2 ** (10 * place):,.{1 if place else 0}f} {units[place]}".replace(".0 ", " ")
