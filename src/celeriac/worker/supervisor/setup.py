"""The setup of a supervisor: the first message on its control socket, a frame like those of a connection.

`{"mark": …, "journal": FOLDER or null, "closes_streams": …, "renewed_at": TIME or null}`: the last is when the worker's
lease was renewed, by the monotonic clock of the machine. With a journal, the descriptor of its lock comes with the
frame. If the socket ends instead, the worker needs no supervisor.
"""

from __future__ import annotations

import json
import os
import socket

from celeriac.worker.supervisor.journal import Journal
from celeriac.worker.supervisor.messages import FRAME

TYPE_CHECKING = False

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def send_setup(control: socket.socket, setup: bytes, lock: int | None) -> None:
    """Send the JSON of a setup, with the descriptor of a lock. Raises `OSError` if the supervisor has ended."""
    data = FRAME.pack(len(setup)) + setup
    if lock is None:
        control.sendall(data)
    else:
        socket.send_fds(control, [data], [lock])


def receive_setup(control: socket.socket) -> Mapping[str, Any] | None:
    """Wait for the setup. Return None if the worker has gone."""
    try:
        data, descriptors, _, _ = socket.recv_fds(control, FRAME.size, 1)
        while data and len(data) < FRAME.size + (FRAME.unpack_from(data)[0] if len(data) >= FRAME.size else 0):
            received = control.recv(FRAME.size + FRAME.unpack_from(data)[0] - len(data))
            data = data + received if received else b""
    except ConnectionError:
        return None
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)  # commands must not inherit the lock
    return json.loads(data[FRAME.size :]) if data else None


def apply_setup(setup: Mapping[str, Any]) -> Journal | None:
    """Close the standard streams if the setup says so. Return the journal, if there is one."""
    if setup["closes_streams"]:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1):
            os.dup2(null, stream)
        os.close(null)
    return None if setup["journal"] is None else Journal(setup["journal"], setup["mark"])
