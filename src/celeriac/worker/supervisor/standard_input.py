"""The standard input of a command: a text, bytes, or a file.

All are files for the command, and no pipe: no process has to write while it reads, and it may read as little as it
wants.
"""

from __future__ import annotations

import binascii
import os
import stat

from celeriac.shortages import is_shortage

TYPE_CHECKING = False

if TYPE_CHECKING:
    from celeriac.worker.supervisor.messages import CommandRequest


class UnreadableInput(Exception):
    """The file cannot be read."""

    about = "stdin"

    def __init__(self, text: str, number: int | None = None) -> None:
        super().__init__(text)
        self.errno = number


def open_input(request: CommandRequest) -> int | None:
    """Return a descriptor of the input of a command; None if it has none of its own.

    Raises `UnreadableInput`, and `OSError` for a lack of descriptors or memory, or a missing `cwd`.
    """
    if request.stdin is not None:
        return nameless_file(request.stdin.encode())
    if request.stdin_data is not None:
        return nameless_file(binascii.a2b_base64(request.stdin_data))
    if request.stdin_file is None:
        return None
    try:
        return open_file(os.path.join(request.cwd or "", request.stdin_file))
    except OSError as error:
        if is_shortage(error):
            raise
        check_folder(request.cwd)
        raise UnreadableInput(error.strerror or str(error), error.errno) from None


def check_folder(path: str | None) -> None:
    """Raise `OSError` with this path if the folder cannot be entered: then that is why a file in it cannot be read."""
    if path is None:
        return
    try:
        os.stat(os.path.join(path, "."))
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None


def nameless_file(data: bytes) -> int:
    """Return the descriptor of a file in memory, at its begin. It is gone when the last process has closed it."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("stdin")
    else:
        import tempfile  # late: it takes long to import

        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(file, rest) :]
        os.lseek(file, 0, os.SEEK_SET)
    except BaseException:
        os.close(file)
        raise
    return file


def open_file(path: str) -> int:
    """Return the descriptor of a regular file. Raises `OSError`; any other file could block the supervisor."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(0, "it is not a regular file")
    return file
