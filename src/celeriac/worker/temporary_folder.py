"""Temporary folders and files."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from celeriac.errors import InvalidConfig
from celeriac.shortages import is_shortage

SETTING = "TMPDIR"
REMEDY = "set it to a writable folder"


def make_temporary_folder(prefix: str, remedy: str = REMEDY) -> Path:
    """Make a folder that only its owner can enter. Raises `InvalidConfig` with the remedy, and `OSError` for a lack of
    descriptors or memory."""
    try:
        return Path(tempfile.mkdtemp(prefix=prefix))
    except OSError as error:
        if is_shortage(error):
            raise
        raise cannot_be_made("folder", error, remedy) from None


def make_nameless_file() -> int:
    """Return the descriptor of a file to append to. Raises `InvalidConfig`, and `OSError` for a lack of descriptors or
    memory."""
    try:
        with tempfile.TemporaryFile("ab") as file:
            return os.dup(file.fileno())
    except OSError as error:
        if is_shortage(error):
            raise
        raise cannot_be_made("file", error, REMEDY) from None


def cannot_be_made(what: str, error: OSError, remedy: str) -> InvalidConfig:
    return InvalidConfig(SETTING, f"no temporary {what} can be made: {error.strerror or error}", remedy)
