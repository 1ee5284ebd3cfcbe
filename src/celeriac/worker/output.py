"""Where a worker keeps what commands write."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

DEFAULT_OUTPUT_CAP = 10 * 1024 * 1024  # bytes kept of each stream
LONGEST_FILE_NAME = 200  # bytes, of the 255 that file systems allow


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputPolicy:
    """Where a worker keeps what commands write."""

    directory: Path | None = None
    """None keeps the last lines only."""

    keep: bool = True
    """Keep the files of every task, empty ones too, and fail a task whose output cannot be written. Otherwise files
    are a courtesy: those of tasks that ended well are removed."""

    cap: int = DEFAULT_OUTPUT_CAP
    """Bytes kept of each stream: its head and its end."""

    def request(self, key: str, attempt: int) -> dict[str, Any]:
        if self.directory is None:
            return {"stdout": None, "stderr": None, "cap": 0, "keep_empty": False}
        stem = self.directory / file_name(key, attempt)
        return {"stdout": f"{stem}.out", "stderr": f"{stem}.err", "cap": self.cap, "keep_empty": self.keep}


def file_name(key: str, attempt: int) -> str:
    """A name that is safe in any folder and different for every key and attempt."""
    name = quote(key, safe=" +,=:()[]{}'~")
    if len(name) > LONGEST_FILE_NAME:
        name = f"{name[: LONGEST_FILE_NAME - 17]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if name.startswith("."):
        name = "%2E" + name[1:]
    return name if attempt == 1 else f"{name}@{attempt}"
