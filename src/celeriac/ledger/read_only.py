"""A ledger in a file, opened by somebody who only reads it, and may have no right to do more.

may be written    ─► opened as always: then it is also tidied up behind the last one who leaves
nobody has it open ─► as what never changes: a reader without rights cannot make the files that readers share
else              ─► with the files that those who write have made
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from urllib.parse import quote

from celeriac.errors import InvalidConfig


def connect_to_read(path: Path, patience: float) -> sqlite3.Connection:
    """`patience` is in seconds. Raises `InvalidConfig` where SQLite could not read it."""
    log, shared = (path.with_name(path.name + end) for end in ("-wal", "-shm"))
    folder_is_writable = os.access(path.parent, os.W_OK | os.X_OK)
    if os.access(path, os.W_OK) and folder_is_writable:
        how = "mode=rw"
    elif shared.exists():
        how = "mode=ro"
    elif not log.exists() or not log.stat().st_size:
        how = "mode=ro&immutable=1"
    elif folder_is_writable:
        how = "mode=ro"
    else:
        problem = f"{path} can only be read with its {log.name}, in a folder that may be written"
        raise InvalidConfig("ledger", problem, "copy both to one, and name the copy")
    url = f"file:{quote(os.fsencode(path.absolute()))}?{how}"
    connection = sqlite3.connect(url, uri=True, timeout=patience, check_same_thread=False)
    connection.isolation_level = None
    connection.execute("PRAGMA query_only = ON")
    return connection


def check_readable(path: Path) -> None:
    """Raises `InvalidConfig` if there is no such file, or it may not be read."""
    try:
        with path.open("rb"):
            pass
    except FileNotFoundError:
        raise InvalidConfig("ledger", f"there is no {path}", "run something first, or name another one") from None
    except OSError as error:
        raise InvalidConfig("ledger", f"{path}: {error.strerror}", "name a file that can be read") from None
