"""What supervisors write down, seen from the worker: what those of a killed process had to tell, and when it may go.

open ─► lock: wait until nothing of a former process lives ─► its segments ─► take(id): how that command ended
commit of the ledger ─► prune: segments in which nothing is wanted any more

What stands in a segment is told in `celeriac.worker.supervisor.journal`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from celeriac.control.folder import is_private
from celeriac.errors import InvalidConfig
from celeriac.worker.leftovers import kill_left_behind
from celeriac.worker.supervisor.journal import LOCK, OWNER_ONLY, SUFFIX, completed
from celeriac.worker.supervisor.messages import CommandReport
from celeriac.worker.supervisor_client import JournalPlace, SupervisorDied, SupervisorProcess

logger = logging.getLogger(__name__)

FOLDER_FOR_THE_OWNER = 0o700
LOCK_POLL = 0.02  # seconds between two tries to lock
QUIET_WAIT = 1.0  # seconds of such tries until they are worth a word

NOT_ENDED = msgspec.Raw()


class Line(msgspec.Struct):
    id: str
    ended: msgspec.Raw = NOT_ENDED
    """The report, which is decoded when somebody asks for it."""


LINE = msgspec.json.Decoder(Line)
NAME = re.compile(rf"(?P<mark>[0-9a-f-]+)\.(?P<pid>\d+)\.(?P<number>\d+){re.escape(SUFFIX)}")


@dataclass(slots=True)
class Segment:
    path: Path
    mark: str
    """Of its supervisor."""

    pid: int
    number: int
    ids: list[str] | None = None
    """Those that may still be wanted; None while it has not been read."""

    def read(self) -> list[Line]:
        """Its lines, without what was written in part. Raises `OSError`."""
        with self.path.open("rb") as file:
            lines = [line for line in map(line_of, file) if line is not None]
        self.ids = list({line.id: None for line in lines})
        return lines

    def prune(self, is_wanted: Callable[[str], bool]) -> bool:
        """Remove it if nothing in it is wanted. Answers whether it has gone. Raises `OSError`."""
        if self.ids is None:
            self.read()
        while self.ids and not is_wanted(self.ids[-1]):
            self.ids.pop()
        if self.ids:
            return False
        self.path.unlink()
        return True


class Journal:
    """Of one process at a time. `close` it when its supervisors are dead."""

    def __init__(self, folder: Path) -> None:
        """Returns when all that an earlier process ran is dead. Raises `InvalidConfig` for a folder of no use."""
        self._folder = folder.absolute()
        self._lock: int | None = None
        self._finished: list[Segment] = []
        self._old: dict[str, msgspec.Raw] = {}
        """How what an earlier process started has ended, by id."""

        self.broken = False
        """Whether something could not be written down. A warning has told."""

        try:
            self._lock = locked(self._folder)
            self._read_old()
        except OSError as error:
            self.close()
            raise InvalidConfig(
                "journal", f"{folder}: {error.strerror}", "name a folder to write in, on a disk that is not full"
            ) from None

    @property
    def place(self) -> JournalPlace:
        if self._lock is None:
            raise ValueError("the journal is closed")
        return JournalPlace(self._folder, self._lock)

    def take(self, task_id: str) -> CommandReport | SupervisorDied | None:
        """How a command of an earlier process ended; None if that did not start it. Each is told once."""
        if task_id not in self._old:
            return None
        ended = self._old.pop(task_id)
        if not ended:
            return SupervisorDied("celeriac was killed while it ran")
        return CommandReport.from_json(completed(json.loads(bytes(ended))))

    def may_tell(self, task_id: str) -> bool:
        """Whether `take` would answer."""
        return task_id in self._old

    def hear(self, report: CommandReport) -> None:
        """What a supervisor has to say of its journal comes with the report of a command."""
        error, segment = report.journal_error, report.segment
        if error is not None and not self.broken:
            self.broken = True
            logger.warning("if celeriac is killed, commands may be run again, for the journal is not kept: %s", error)
        if segment is not None:
            self._finish(lambda each: str(each.path) == segment)

    def bury(self, dead: SupervisorProcess) -> None:
        """Its last segment is written no more."""
        self._finish(lambda each: each.mark == dead.mark)

    def prune(self, is_wanted: Callable[[str], bool]) -> None:
        """Remove the segments in which nothing is wanted. Costs nothing as long as none is full.

        `is_wanted` is asked by message id, and must say yes until the end of that attempt is remembered elsewhere;
        when it has said no it is not asked again.
        """
        if self._finished:
            self._finished = [segment for segment in self._finished if not gone(segment, is_wanted)]

    def discard(self) -> None:
        """Remove all of it: nothing here is wanted any more. Without effect while another process has it."""
        with contextlib.suppress(OSError):
            lock = self._lock if self._lock is not None else os.open(self._folder / LOCK, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ours already, unless this one is closed
                for segment in segments_in(self._folder):
                    segment.path.unlink()
                (self._folder / LOCK).unlink()
                self._folder.rmdir()
            finally:
                if lock != self._lock:
                    os.close(lock)
        self._finished.clear()

    def close(self) -> None:
        """Everything stays where it is, for whoever comes next."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _finish(self, is_finished: Callable[[Segment], bool]) -> None:
        known = {segment.path for segment in self._finished}
        with contextlib.suppress(OSError):  # somebody has removed the folder
            segments = segments_in(self._folder)
            self._finished += [each for each in segments if is_finished(each) and each.path not in known]

    def _read_old(self) -> None:
        segments = segments_in(self._folder)
        if segments:
            kill_left_behind({segment.mark: segment.pid for segment in segments})
        for segment in segments:
            for line in segment.read():
                if line.ended or line.id not in self._old:
                    self._old[line.id] = line.ended
        self._finished = segments


def locked(folder: Path) -> int:
    """The descriptor of its lock, once that is ours; the folder is made if need be. Raises `OSError`."""
    while True:
        folder.mkdir(mode=FOLDER_FOR_THE_OWNER, parents=True, exist_ok=True)
        if not is_private(folder):
            raise PermissionError(0, "it is not a folder of this user's alone (mode 0700)")
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, OWNER_ONLY)
        try:
            wait_for_lock(descriptor, folder)
            if is_file_of(descriptor, folder / LOCK):
                os.truncate(descriptor, 0)
                os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)  # for whoever wonders; and to see that one can write
                return descriptor
        except BaseException:  # Ctrl-C too leaves no lock
            os.close(descriptor)
            raise
        os.close(descriptor)  # somebody has discarded it while we waited


def wait_for_lock(descriptor: int, folder: Path) -> None:
    warn_at = time.monotonic() + QUIET_WAIT
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= warn_at:
                logger.warning("waiting for commands of an earlier run to end, whose journal is %s", folder)
                warn_at = float("inf")
            time.sleep(LOCK_POLL)  # asked anew, and not blocking: Ctrl-C ends it
        else:
            return


def is_file_of(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def segments_in(folder: Path) -> list[Segment]:
    """Those of any supervisor, each one's in order. Raises `OSError`."""
    names = ((path, NAME.fullmatch(path.name)) for path in folder.iterdir())
    found = [Segment(path, name["mark"], int(name["pid"]), int(name["number"])) for path, name in names if name]
    return sorted(found, key=lambda segment: (segment.mark, segment.number))


def line_of(data: bytes) -> Line | None:
    """None if it was written in part, or by somebody else."""
    try:
        return LINE.decode(data)
    except msgspec.ValidationError:
        return None
    except msgspec.DecodeError:
        pass
    try:
        entry = json.loads(data)  # ten times as slow, and content with a path that is no UTF-8
    except ValueError:
        return None
    return Line(entry["id"], msgspec.Raw(json.dumps(entry["ended"]).encode()) if "ended" in entry else NOT_ENDED)


def gone(segment: Segment, is_wanted: Callable[[str], bool]) -> bool:
    try:
        return segment.prune(is_wanted)
    except FileNotFoundError:  # somebody has removed it
        return True
    except OSError as error:
        logger.debug("the journal's %s stays where it is: %s", segment.path, error)
        return True
