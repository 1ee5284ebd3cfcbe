"""Open a ledger in a file for reading, also without the permission to write.

file and folder are writable   ─► open as always: SQLite then also removes its log after the last process closes
a process has it open          ─► read-only, with the shared files that the writers created
no process has it open         ─► read-only and immutable: SQLite could not create the shared files
a log, but no shared file      ─► read-only in a writable folder: SQLite creates the shared file there; else refused
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from urllib.parse import quote

from celeriac.errors import InvalidConfig


def connect_to_read(path: Path, timeout: float) -> sqlite3.Connection:
    """Return a connection that reads only. `timeout`, in seconds, is the longest wait for a lock.

    Raises `InvalidConfig` if SQLite cannot read the file.
    """
    log, shared = (path.with_name(path.name + end) for end in ("-wal", "-shm"))
    folder_is_writable = os.access(path.parent, os.W_OK | os.X_OK)
    if os.access(path, os.W_OK) and folder_is_writable:
        mode = "mode=rw"
    elif shared.exists():
        mode = "mode=ro"
    elif not log.exists() or not log.stat().st_size:
        mode = "mode=ro&immutable=1"
    elif folder_is_writable:
        mode = "mode=ro"
    else:
        problem = f"{path} can only be read together with {log.name}, and in a folder that can be written"
        raise InvalidConfig("ledger", problem, "copy both files to such a folder, and name the copy")
    url = f"file:{quote(os.fsencode(path.absolute()))}?{mode}"
    connection = sqlite3.connect(url, uri=True, timeout=timeout, check_same_thread=False)
    connection.isolation_level = None
    connection.execute("PRAGMA query_only = ON")
    return connection
