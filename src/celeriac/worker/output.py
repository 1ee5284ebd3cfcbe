"""Where a worker keeps the output of commands."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from celeriac.worker.supervisor.messages import OutputRequest

DEFAULT_OUTPUT_CAP = 10 * 1024 * 1024  # bytes kept of each stream
MAX_FILE_NAME = 200  # bytes, of the 255 that file systems allow


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputPolicy:
    """Where a worker keeps the output of commands."""

    directory: Path | None = None
    """If None, no files are written, and the result holds the last lines."""

    keep: bool = True
    """Whether to keep the files of every task, empty ones too, and to fail a task whose output cannot be written.
    Otherwise the files of tasks that succeeded are removed, and write errors are ignored."""

    cap: int = DEFAULT_OUTPUT_CAP
    """Bytes kept of each stream: its head and its end."""

    def request(self, key: str, attempt: int) -> OutputRequest:
        """Return where to keep the output of one attempt."""
        if self.directory is None:
            return OutputRequest(stdout=None, stderr=None, cap=0, keep_empty=False)
        stem = self.directory / file_name(key, attempt)
        return OutputRequest(stdout=f"{stem}.out", stderr=f"{stem}.err", cap=self.cap, keep_empty=self.keep)


def file_name(key: str, attempt: int) -> str:
    """Return a name that is safe in any folder, and different for every key and attempt."""
    name = quote(key, safe=" +,=:()[]{}'~", errors="surrogatepass")
    if len(name) > MAX_FILE_NAME:
        name = f"{name[: MAX_FILE_NAME - 17]}-{hashlib.sha256(key.encode(errors='surrogatepass')).hexdigest()[:16]}"
    if name.startswith("."):
        name = "%2E" + name[1:]
    return name if attempt == 1 else f"{name}@{attempt}"
