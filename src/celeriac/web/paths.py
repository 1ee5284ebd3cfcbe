"""Names in paths: a run or a key may hold any character, also a slash, which is written as %2F."""

from __future__ import annotations

from urllib.parse import unquote

SLASH = "\0"
"""Stands for a slash in a name while a path is matched. No name holds it."""


def routed_path(raw: bytes) -> str:
    """Return the path for the routes. A slash in a name stays apart from those between names."""
    parts = raw.partition(b"?")[0].decode("latin-1").split("/")
    return "/".join(unquote(part).replace(SLASH, "\N{REPLACEMENT CHARACTER}").replace("/", SLASH) for part in parts)


def stored_query(raw: bytes) -> bytes:
    """Return the parameters of an address without NUL, which no ledger can hold: PostgreSQL would refuse to search."""
    return raw.replace(b"%00", b"%EF%BF%BD")


def name_of(part: str) -> str:
    """Return the name in a part of a routed path."""
    return part.replace(SLASH, "/")
