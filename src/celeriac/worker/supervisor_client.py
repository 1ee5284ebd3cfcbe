"""The supervisor process, and the worker's connections to it. `celeriac.worker.supervisor` describes the messages."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from celeriac.worker.leftovers import kill_leftovers_of
from celeriac.worker.supervisor.capture import READ_SIZE
from celeriac.worker.supervisor.messages import (
    CONTINUE_ALL,
    FRAME,
    HEARTBEAT,
    NEW_CONNECTION,
    STDERR,
    STDOUT,
    STOP_ALL,
    TIME,
    CommandReport,
    CommandRequest,
    StopReason,
)
from celeriac.worker.supervisor.setup import send_setup
from celeriac.worker.supervisor_start import take

NOTICE_SIZE = 1024  # bytes that one notice of a supervisor may have, at most
END_TIMEOUT = 1.0  # seconds until the end of a supervisor is observed after its sockets have closed
SHUTDOWN_TIMEOUT = 15.0  # seconds for the supervisor to end all commands, and itself

ENCODER, DECODER = msgspec.json.Encoder(), msgspec.json.Decoder()
"""They take a fifth of the time of `json`."""


class SupervisorDied(Exception):
    """The supervisor was killed while it ran a command. The message says what was killed."""

    def __init__(self, detail: str = "the process that ran it was killed") -> None:
        super().__init__(detail)


class JournalPlace(Struct, frozen=True):
    """Where supervisors keep their journal."""

    folder: Path
    """Absolute."""

    lock: int
    """Descriptor of the folder's lock, which is locked. A supervisor inherits it, and holds it until it ends."""


class CommandChannel:
    """A socket to the supervisor, for one command at a time."""

    def __init__(self, owner: SupervisorProcess, sock: socket.socket) -> None:
        self.owner, self._socket = owner, sock
        self.is_superseded = False
        """Whether the task of the current command may run elsewhere by now."""

    def fileno(self) -> int:
        return self._socket.fileno()

    def start(self, request: CommandRequest) -> None:
        """Start a command. Raises `OSError` if the supervisor has ended."""
        self.is_superseded = False
        self._send({"run": request.to_json()})

    def report(self, take_output: Callable[[int, bytes], None] = lambda *_: None) -> CommandReport:
        """Wait for the end of the command, and return its report. Raises `OSError` if the supervisor has ended.

        `take_output` gets the output that the request asks for: the number of the stream, 1 or 2, and a chunk. The
        next chunk comes when it returns.
        """
        while True:
            data = self._receive(b"", FRAME.size)
            end = FRAME.size + FRAME.unpack_from(data)[0]
            frame = self._receive(data, end)[FRAME.size :]
            if frame[:1] not in (STDOUT, STDERR):
                return CommandReport.from_json(decode(frame))
            take_output(frame[0], frame[1:])
            self._send({"more": True})

    def stop(self, task_id: str, reason: StopReason) -> None:
        """End the command, if it still runs. Does not wait."""
        self.is_superseded |= reason is StopReason.SUPERSEDED
        with contextlib.suppress(OSError):  # the supervisor has ended, and the command with it: `report` raises
            self._send({"stop": reason, "id": task_id})

    def close(self) -> None:
        self._socket.close()

    def _send(self, message: dict[str, Any]) -> None:
        data = encode(message)
        self._socket.sendall(FRAME.pack(len(data)) + data)

    def _receive(self, data: bytes, size: int) -> bytes:
        """Add received bytes to `data` until it has at least `size`, and return it.

        The supervisor sends nothing after a report until the next command.
        """
        while len(data) < size:
            received = self._socket.recv(READ_SIZE)
            if not received:
                raise ConnectionResetError("the supervisor has ended")
            data += received
        return data


def encode(message: dict[str, Any]) -> bytes:
    """Return JSON. Lone surrogates, which a command line may hold, are escaped."""
    try:
        return ENCODER.encode(message)
    except UnicodeEncodeError:
        return json.dumps(message).encode()


def decode(data: bytes) -> Any:
    """Return the value of JSON that a supervisor has written. `json` alone reads a path that is not UTF-8."""
    try:
        return DECODER.decode(data)
    except msgspec.DecodeError:
        return json.loads(data)


class SupervisorProcess:
    """A supervisor, started or taken by the constructor. All its processes are dead once `close` or `clean_up`
    returns."""

    def __init__(
        self,
        journal: JournalPlace | None = None,
        folder: Path | None = None,
        *,
        inherits_streams: bool = False,
        renewed_at: float | None = None,
    ) -> None:
        """`folder` is the working folder of the commands, by default that of this process. `inherits_streams` says
        whether commands may use the standard streams of this process. `renewed_at` is the time of the monotonic clock
        at which the worker's lease was renewed, and counts as the first heartbeat; None if there is no lease."""
        started = take(None if folder is None else str(folder), inherits_streams=inherits_streams)
        self.mark, self._control, self._process = started.mark, started.control, started.process
        setup = {
            "mark": self.mark,
            "journal": None if journal is None else str(journal.folder),
            "closes_streams": started.inherits_streams and not inherits_streams,
            "renewed_at": renewed_at,
        }
        with contextlib.suppress(OSError):  # it has ended: each channel to it raises
            send_setup(self._control, encode(setup), None if journal is None else journal.lock)

    @property
    def pid(self) -> int:
        return self._process.pid

    def open_channel(self) -> CommandChannel:
        """Return a new channel. If the supervisor has ended, the channel raises on its first use."""
        our_end, other_end = socket.socketpair()
        with other_end, contextlib.suppress(OSError):
            socket.send_fds(self._control, [NEW_CONNECTION], [other_end.fileno()])
        return CommandChannel(self, our_end)

    def heartbeat(self, sent_at: float) -> None:
        """Tell the supervisor that the worker's lease was good at this time of the monotonic clock. Does not wait.

        After the first heartbeat, the supervisor ends all commands when the next one does not come in time.
        """
        with contextlib.suppress(OSError):  # the supervisor has ended; or it is frozen, and the buffer is full
            self._control.send(HEARTBEAT + TIME.pack(sent_at), socket.MSG_DONTWAIT)

    def pause(self) -> None:
        """Stop the processes of all commands, and the clocks of their timeouts. Does not wait.

        A supervisor that gets heartbeats does not do it."""
        self._tell(STOP_ALL)

    def resume(self) -> None:
        """Let the processes and clocks of all commands go on. Does not wait."""
        self._tell(CONTINUE_ALL)

    def _tell(self, message: bytes) -> None:
        with contextlib.suppress(OSError):  # the supervisor has ended
            self._control.send(message)

    def fileno(self) -> int:
        """Return the descriptor to watch: it is readable when the supervisor has a notice or has ended."""
        return self._control.fileno()

    def take_notice(self) -> str | None:
        """Return why commands cannot start for now, "" if there is no news, or None if the supervisor has ended."""
        try:
            return self._control.recv(NOTICE_SIZE, socket.MSG_DONTWAIT).decode("utf-8", "replace") or None
        except BlockingIOError:
            return ""
        except OSError:
            return None

    def has_ended(self) -> bool:
        """Return whether the supervisor has ended; otherwise it had no descriptor for a channel that it closed."""
        try:
            self._process.wait(END_TIMEOUT)
        except subprocess.TimeoutExpired:
            return False
        return True

    def begin_shutdown(self) -> None:
        """Make the supervisor end all commands: TERM, a short grace, KILL. Does not wait."""
        self._control.close()

    def close(self) -> None:
        """End all commands, and wait until they are dead."""
        self.begin_shutdown()
        try:
            self._process.wait(SHUTDOWN_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self.clean_up()

    def clean_up(self) -> None:
        """Wait for the end of the supervisor. If it was killed, kill the processes that it left behind."""
        self._control.close()
        if self._process.wait() != 0:
            kill_leftovers_of(self.mark, session=self._process.pid)
