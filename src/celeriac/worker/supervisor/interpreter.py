"""Find out why the system has not found a program that exists: what is to run it is missing."""

from __future__ import annotations

import os

HASH_BANG_SIZE = 256  # bytes of the first line of a script that Linux reads


def missing_interpreter(program: str, cwd: str, path: str) -> str | None:
    """Say which interpreter of an existing program is missing. Return None if there is no program."""
    folders = [""] if "/" in program else path.split(os.pathsep)
    for file in (os.path.join(cwd, folder, program) for folder in folders):
        try:
            with open(file, "rb") as opened:
                line = opened.readline(HASH_BANG_SIZE)
        except (OSError, ValueError):
            continue
        if not line.startswith(b"#!"):
            return "the loader that it was built for is missing"
        interpreter = line[2:].rstrip(b"\n").replace(b"\t", b" ").lstrip(b" ").partition(b" ")[0]
        return f"its first line names {os.fsdecode(interpreter)!r}, and there is no such program"
    return None
