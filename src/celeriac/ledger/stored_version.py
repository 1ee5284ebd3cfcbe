"""The version of a ledger as its file or server has it."""

from __future__ import annotations

from typing import Any


def version_of(stored: Any) -> int | None:
    """Return the version of a ledger. None if none is stored; 0 for a value that is no number."""
    try:
        return None if stored is None else int(stored)
    except (ValueError, OverflowError):
        return 0
