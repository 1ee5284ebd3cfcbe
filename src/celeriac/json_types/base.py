"""The base of all objects that --json prints, and types for fields that may be absent."""

from __future__ import annotations

from typing import TypeAlias

import msgspec
from msgspec import UnsetType

MaybeText: TypeAlias = str | UnsetType
MaybeNumber: TypeAlias = int | UnsetType
MaybeSeconds: TypeAlias = float | UnsetType
Command: TypeAlias = str | list[str]


class Strict(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """An object whose fields are all documented here."""
