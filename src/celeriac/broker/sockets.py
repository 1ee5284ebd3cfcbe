"""Sockets that other code owns."""

from __future__ import annotations

import contextlib
import os
import socket


def shut_down(descriptor: int) -> None:
    """Shut a socket down. Code that reads from it reads the end of the stream at once."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as sock:
        sock.shutdown(socket.SHUT_RDWR)
