"""Check the standard input of a task."""

from __future__ import annotations

from celeriac.errors import InvalidTask
from celeriac.task.task import MAX_STDIN, describe, is_unicode


def check_input(stdin: object, stdin_file: object) -> None:
    """Raise `InvalidTask` unless one of the two is None, and the other one is usable."""
    if stdin is not None:
        check_stdin(stdin)
    if stdin_file is not None:
        check_stdin_file(stdin_file, stdin)


def check_stdin(text: object) -> None:
    """Raise `InvalidTask` unless the text can travel in a message. No error shows it."""
    remedy = "write it to a file, and name that in stdin_file"
    if not isinstance(text, str):
        raise InvalidTask("stdin", f"{describe(text)} is not a text", 'write a string such as "a\\nb\\n"')
    plain = str.__str__(text)
    if "\0" in plain or not is_unicode(plain):
        raise InvalidTask("stdin", "it is not Unicode without NUL", remedy)
    if len(plain) > MAX_STDIN or len(plain.encode()) > MAX_STDIN:
        raise InvalidTask("stdin", f"it is longer than {MAX_STDIN:,} bytes", remedy)


def check_stdin_file(path: object, stdin: object) -> None:
    """Raise `InvalidTask` unless the path is a name, and the only input."""
    if not isinstance(path, str) or not path or "\0" in path:
        raise InvalidTask("stdin_file", f"{describe(path)} is not a file name", 'write a name such as "in.txt"')
    if stdin is not None:
        raise InvalidTask("stdin_file", "the job has stdin, too", "keep one of them")
