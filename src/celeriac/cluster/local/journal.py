"""The worker's side of the journal: read the reports that the supervisors of a killed process recorded, and prune them.

    open ─► lock: wait until all children of the killed process are dead ─► read its segments ─► take_report(id)
    commit of the ledger ─► prune: remove the segments that are no longer needed

`celeriac.worker.supervisor.journal` writes the segments, and describes their content.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from celeriac.control.folder import is_private
from celeriac.errors import InvalidConfig
from celeriac.log_lines import logger_for
from celeriac.worker.leftovers import kill_left_behind
from celeriac.worker.supervisor.journal import LOCK, OWNER_ONLY, SUFFIX, completed
from celeriac.worker.supervisor.messages import CommandReport
from celeriac.worker.supervisor_client import JournalPlace, SupervisorDied, SupervisorProcess

logger = logger_for(__name__)

FOLDER_MODE = 0o700
LOCK_POLL_INTERVAL = 0.02  # seconds between two attempts to lock
LOCK_WARNING_DELAY = 1.0  # seconds without the lock until a warning

NOT_ENDED = msgspec.Raw()


class Line(msgspec.Struct):
    """One line of a segment."""

    id: str
    ended: msgspec.Raw = NOT_ENDED
    """The report of a command that has ended. `take_report` decodes it."""


LINE = msgspec.json.Decoder(Line)
NAME = rf"(?P<mark>[0-9a-f-]+)\.(?P<pid>\d+)\.(?P<number>\d+){re.escape(SUFFIX)}"


class Segment(Struct):
    """One file of the journal."""

    path: Path
    mark: str
    """The mark of its supervisor."""

    pid: int
    number: int
    ids: list[str] | None = None
    """The ids of the tasks that may still be needed; None until the file has been read."""

    def read(self) -> list[Line]:
        """Return the complete lines. Raise `OSError`."""
        with self.path.open("rb") as file:
            lines = [line for line in map(line_of, file) if line is not None]
        self.ids = list({line.id: None for line in lines})
        return lines

    def prune(self, is_needed: Callable[[str], bool]) -> bool:
        """Remove the file if none of its tasks is needed. Return whether it was removed. Raise `OSError`."""
        if self.ids is None:
            self.read()
        while self.ids and not is_needed(self.ids[-1]):
            self.ids.pop()
        if self.ids:
            return False
        self.path.unlink()
        return True


class Journal:
    """The journal of one process at a time. Call `close` when its supervisors are dead."""

    def __init__(self, folder: Path) -> None:
        """Wait until all commands of an earlier process are dead. Raise `InvalidConfig` for an unusable folder."""
        self._folder = folder.absolute()
        self._lock: int | None = None
        self._finished: list[Segment] = []
        self._reports: dict[str, msgspec.Raw] = {}
        """By task id, the reports of the commands that an earlier process started; `NOT_ENDED` without one."""

        self.has_failed = False
        """Whether a supervisor could not write. A warning was logged."""

        try:
            self._lock = lock_folder(self._folder)
            self._read_segments()
        except OSError as error:
            self.close()
            raise InvalidConfig(
                "journal", f"{folder}: {error.strerror}", "name a writable folder, on a disk that is not full"
            ) from None

    @property
    def place(self) -> JournalPlace:
        """The folder and its lock, for a new supervisor."""
        if self._lock is None:
            raise ValueError("the journal is closed")
        return JournalPlace(self._folder, self._lock)

    def take_report(self, task_id: str) -> CommandReport | SupervisorDied | None:
        """Return the report of a command that an earlier process started, once. None if no process started it."""
        if task_id not in self._reports:
            return None
        report = self._reports.pop(task_id)
        if not report:
            return SupervisorDied("celeriac was killed while it ran")
        try:
            return CommandReport.from_json(completed(json.loads(bytes(report))))
        except Exception as error:  # noqa: BLE001 - the file may be damaged
            logger.warning("journal %s: the report of task %s is malformed: %s", self._folder, task_id, error)
            return SupervisorDied("its report in the journal is malformed")

    def has_report(self, task_id: str) -> bool:
        """Return whether `take_report` would return a report."""
        return task_id in self._reports

    def record_news(self, report: CommandReport) -> None:
        """Take note of a journal error or of a complete segment: the report of a command contains them."""
        error, segment = report.journal_error, report.segment
        if error is not None and not self.has_failed:
            self.has_failed = True
            logger.warning("cannot write the journal; if celeriac is killed now, commands may run again: %s", error)
        if segment is not None:
            self._finish(lambda finished: str(finished.path) == segment)

    def finish_segments_of(self, supervisor: SupervisorProcess) -> None:
        """Take note that a supervisor has ended: its last segment is complete."""
        self._finish(lambda finished: finished.mark == supervisor.mark)

    def prune(self, is_needed: Callable[[str], bool]) -> None:
        """Remove the complete segments of which no task is needed.

        `is_needed` takes a message id. It must return True until the end of that attempt is stored elsewhere. Once it
        returns False, it is not called again for that id.
        """
        if self._finished:
            self._finished = [segment for segment in self._finished if not is_removed(segment, is_needed)]

    def discard(self) -> None:
        """Remove the journal: no report is needed any more. Do nothing while another process has the journal open."""
        with contextlib.suppress(OSError):
            lock = self._lock if self._lock is not None else os.open(self._folder / LOCK, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # succeeds at once if this object holds the lock
                for segment in segments_in(self._folder):
                    segment.path.unlink()
                (self._folder / LOCK).unlink()
                self._folder.rmdir()
            finally:
                if lock != self._lock:
                    os.close(lock)
        self._finished.clear()

    def close(self) -> None:
        """Unlock the folder. The segments stay, for the next process."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _finish(self, is_finished: Callable[[Segment], bool]) -> None:
        known_paths = {segment.path for segment in self._finished}
        with contextlib.suppress(OSError):  # the user has removed the folder
            segments = segments_in(self._folder)
            self._finished += [
                segment for segment in segments if is_finished(segment) and segment.path not in known_paths
            ]

    def _read_segments(self) -> None:
        segments = segments_in(self._folder)
        if segments:
            kill_left_behind({segment.mark: segment.pid for segment in segments})
        for segment in segments:
            for line in segment.read():
                if line.ended or line.id not in self._reports:
                    self._reports[line.id] = line.ended
        self._finished = segments


def lock_folder(folder: Path) -> int:
    """Wait for the lock of the folder. Return its file descriptor. Create the folder if necessary. Raise `OSError`."""
    while True:
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        if not is_private(folder):
            raise PermissionError(0, "it must be a folder of this user with mode 0700")
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, OWNER_ONLY)
        try:
            wait_for_lock(descriptor, folder)
            if is_file_of(descriptor, folder / LOCK):
                os.truncate(descriptor, 0)
                os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)  # the pid is for people; this fails on a full disk
                return descriptor
        except BaseException:  # also after Ctrl-C the lock must not stay
            os.close(descriptor)
            raise
        os.close(descriptor)  # another process has discarded the journal in the meantime


def wait_for_lock(descriptor: int, folder: Path) -> None:
    """Lock the file. Log a warning if that takes long."""
    warn_at = time.monotonic() + LOCK_WARNING_DELAY
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= warn_at:
                logger.warning("waiting until the commands of an earlier process have ended: journal %s", folder)
                warn_at = float("inf")
            time.sleep(LOCK_POLL_INTERVAL)  # instead of a blocking lock, which Ctrl-C could not interrupt
        else:
            return


def is_file_of(descriptor: int, path: Path) -> bool:
    """Return whether the descriptor refers to the file at this path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def segments_in(folder: Path) -> list[Segment]:
    """Return the segments of all supervisors. Those of one supervisor are in order. Raise `OSError`."""
    files = (path for path in folder.iterdir() if path.is_file() and not path.is_symlink())  # a FIFO would block
    names = ((path, re.fullmatch(NAME, path.name)) for path in files)
    segments = [Segment(path, name["mark"], int(name["pid"]), int(name["number"])) for path, name in names if name]
    return sorted(segments, key=lambda segment: (segment.mark, segment.number))


def line_of(data: bytes) -> Line | None:
    """Return the decoded line. Return None if it was only partly written, or is not a line of a journal."""
    try:
        return LINE.decode(data)
    except msgspec.ValidationError:
        return None
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        entry = json.loads(data)  # ten times as slow, but accepts a path that is not UTF-8
    except (ValueError, RecursionError):
        return None
    match entry:
        case {"id": str() as task_id}:
            return Line(task_id, msgspec.Raw(json.dumps(entry["ended"]).encode()) if "ended" in entry else NOT_ENDED)
    return None


def is_removed(segment: Segment, is_needed: Callable[[str], bool]) -> bool:
    """Remove the segment if none of its tasks is needed. Return whether `prune` is done with the segment."""
    try:
        return segment.prune(is_needed)
    except FileNotFoundError:  # the user has removed the file
        return True
    except OSError as error:
        logger.debug("cannot remove the journal's segment %s: %s", segment.path, error)
        return True
