"""A file whose content travels in the message of its task."""

from __future__ import annotations

import binascii
from pathlib import Path

MAX_SIZE = 5 * 1024 * 1024  # bytes: in base64, with the rest of a message, less than a worker takes by default


class SentFile(str):
    """The path of a file on the machine of the executor. As the `stdin_file` of a task, it is read each time that the
    task is sent, and its content goes to the worker."""

    __slots__ = ()

    def read(self) -> str:
        """Return the content in base64. Raises `OSError`."""
        return binascii.b2a_base64(Path(self).read_bytes(), newline=False).decode()
