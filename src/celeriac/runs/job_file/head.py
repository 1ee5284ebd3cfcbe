"""Look at the first line of a file before it is read."""

from __future__ import annotations

from celeriac.runs.job_file.formats import BOM, SCRIPT_SIGN
from celeriac.runs.job_file.lines import Readable

HEAD_SIZE = 64 * 1024  # bytes of the first line
MAX_SKIPPED = 1024 * 1024  # bytes of blank lines and comments


class HeadReader:
    """A file whose first line can be seen before it is read."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self._seen: list[bytes] = []
        self._error: OSError | None = None

    def head(self) -> bytes:
        """Return the first line that is neither blank nor a comment, or its first bytes; nothing if there is none.
        The first line of a script is no comment.

        Waits for that line alone. After an `OSError`, `readline` raises it at the same place.
        """
        skipped = 0
        while skipped < MAX_SKIPPED:
            try:
                line = self._file.readline(HEAD_SIZE)
            except OSError as error:
                self._error = error
                return b""
            if not line:
                return b""
            self._seen.append(line)
            if (text := line.removeprefix(BOM).strip()) and (text.startswith(SCRIPT_SIGN) or not text.startswith(b"#")):
                return line
            skipped += len(line)
        return b""

    def readline(self, limit: int = -1, /) -> bytes:
        """Return the next line, or its first `limit` bytes."""
        if not self._seen:
            return self._read(limit)
        line = self._seen.pop(0)
        if 0 <= limit < len(line):
            self._seen.insert(0, line[limit:])
            return line[:limit]
        if line.endswith(b"\n") or len(line) == limit:
            return line
        return line + self.readline(limit - len(line) if limit >= 0 else limit)

    def _read(self, limit: int) -> bytes:
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._file.readline(limit)
