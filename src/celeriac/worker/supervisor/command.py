"""One command, from its request to its report."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial

from celeriac.shortages import is_shortage
from celeriac.worker.supervisor.capture import Capture
from celeriac.worker.supervisor.interpreter import missing_interpreter
from celeriac.worker.supervisor.masking import Masker
from celeriac.worker.supervisor.messages import (
    STDERR,
    STDOUT,
    CommandReport,
    CommandRequest,
    StartError,
    StopReason,
)
from celeriac.worker.supervisor.resources import RETRY_DELAY
from celeriac.worker.supervisor.spawn import spawn

TYPE_CHECKING = False

if TYPE_CHECKING:
    from celeriac.worker.supervisor.delivery import Delivery
    from celeriac.worker.supervisor.interfaces import Loop

INFINITY = float("inf")
CAPTURE_DELAY = 0.01  # seconds until the loop watches the pipes; they hold the output of a shorter command
LEFTOVER_GRACE = 0.5  # seconds that processes left in the group may take to end by themselves
KILL_TIMEOUT = 5.0  # seconds after KILL until a process that is stuck in the kernel is given up
START_TIMEOUT = 600.0  # seconds, with no other command, after which a start for lack of resources has failed for good
FILE_NAMES = (sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())
"""How `os.fsencode` encodes text. It takes three times as long, and there are ten texts in each request."""

TASK_ID_VARIABLE = "CELERIAC_TASK_ID"
TMPDIR_VARIABLE = "CELERIAC_TMPDIR"


class Command:
    """One command, from its request to its report."""

    def __init__(
        self,
        supervisor: Loop,
        reply: Callable[[CommandReport], None],
        request: CommandRequest,
        send: Callable[[bytes], None] = lambda _: None,
    ) -> None:
        """`send` sends a chunk of output to the worker."""
        self.supervisor, self._reply = supervisor, reply
        self.id = request.id
        self.grace, self.timeout = request.grace, request.timeout
        self._start_by = INFINITY if request.start_by is None else request.start_by
        """Time of the monotonic clock, which all processes of a machine share."""

        self._request, self._argv, self._cwd = request, request.argv, request.cwd
        self._scratch = supervisor.scratch_folders().next_path() if request.scratch else None
        """The folder for its temporary files."""

        own = {TASK_ID_VARIABLE: self.id, **({} if self._scratch is None else {TMPDIR_VARIABLE: self._scratch})}
        self._memory_limit = None if request.memory is None else supervisor.memory_limit(self, request.memory)
        self._env = environment_of(supervisor.environment, {**request.env, **own})
        output = request.output
        self._inherits_input, self._inherits_output = request.inherits_input, output.inherits
        secrets = [request.env[name] for name in request.secrets if name in request.env]
        if request.stdin is not None and request.stdin_is_secret:
            secrets.append(request.stdin)
        masker = Masker(secrets)
        self.stdout = Capture(output.stdout, output.cap, output.keep_empty, masker)
        self.stderr = Capture(output.stderr, output.cap, output.keep_empty, masker)
        self._delivery: Delivery | None = None
        if output.sent is not None:
            from celeriac.worker.supervisor.delivery import Delivery  # late: few commands need it

            streams = {STDOUT: self.stdout, STDERR: self.stderr}
            self._delivery = Delivery(streams, output.sent, send, self._on_free)
        self.pid: int | None = None
        self.status: int | None = None
        self.peak_memory: int | None = None
        self.stopped: StopReason | None = None
        self.leftovers_ended = False
        self.error: StartError | None = None
        self._artifacts_error: str | None = None
        self.started, self._started = time.time(), time.monotonic()
        self._watched: set[Capture] = set()
        self._unread: list[Capture] = []
        """Streams that are read again when the worker has taken a chunk."""

        self._is_killed = self.is_finished = False
        self._gives_up_at: float | None = None
        """When the command fails, unless it starts before, or another one runs."""

    def start(self) -> None:
        """Start the program. Try again later while the system is out of descriptors, processes or memory."""
        if self.is_finished:
            return
        if self.supervisor.is_paused:
            self.supervisor.waiting.add(self)
            self.supervisor.call_at(time.monotonic(), self.start)
            return
        if time.monotonic() >= self._start_by and not self._came_in_time():
            self.stopped = StopReason.TOO_LATE
            self.finish()
            return
        try:
            for stream in (self.stdout, self.stderr):
                stream.open()
            pid = self._spawn()
        except Exception as error:  # noqa: BLE001 - one command that cannot be started must not end the others
            self._on_start_error(error)
            return
        self.supervisor.waiting.discard(self)
        self.pid = pid
        self.started, self._started = time.time(), time.monotonic()
        self._close_write_ends()
        self.supervisor.leaders[self.pid] = self
        if self._memory_limit is not None:
            self._memory_limit.on_start()
        self.supervisor.call_at(self._started + CAPTURE_DELAY, self._watch_output)
        if self.timeout is not None:
            self.supervisor.call_at(self._started + self.timeout, lambda: self.stop(StopReason.TIMEOUT))

    def _spawn(self) -> int:
        """Start the program, and return its process id."""
        request = self._request
        if request.artifacts and request.artifacts_to is None:
            from celeriac.worker.supervisor.artifacts import NoArtifactsFolder  # late: few commands have artifacts

            raise NoArtifactsFolder
        if self._scratch is not None:
            self.supervisor.scratch_folders().make(self._scratch)
        enter = None if self._memory_limit is None else self._memory_limit.prepare()
        if request.stdin is None and request.stdin_file is None and request.stdin_data is None:
            stdin = None if self._inherits_input else self.supervisor.null
            return spawn(self._argv, self._env, self._cwd, (stdin, *self._outputs()), enter)
        from celeriac.worker.supervisor.standard_input import open_input  # late: most commands have no input

        file = open_input(request)
        try:
            return spawn(self._argv, self._env, self._cwd, (file, *self._outputs()), enter)
        finally:
            if file is not None:
                os.close(file)

    def _outputs(self) -> tuple[int | None, int | None]:
        """Return the descriptors of the program's output; None for those of the supervisor."""
        return (None, None) if self._inherits_output else (self.stdout.write_end, self.stderr.write_end)

    def stop(self, reason: StopReason, grace: float | None = None) -> None:
        """Send TERM to the process group now, and KILL after the grace. The first reason counts, and the shortest
        grace."""
        if self.is_finished or (self.stopped and grace is None):
            return
        if self.stopped is None:
            self._signal(signal.SIGTERM)
            if reason is StopReason.WORKER_GONE and self.status is not None:  # the command had ended; leftovers run
                self.leftovers_ended = True
            else:
                self.stopped = reason
        if self.pid is None:  # the command waits for its next attempt to start
            self.finish()
            return
        self.supervisor.call_at(time.monotonic() + (self.grace if grace is None else grace), self.kill)

    def leave_out(self, length: float) -> None:
        """Leave seconds in which the command was stopped out of its duration."""
        self._started += length

    def kill(self) -> None:
        """Send KILL to the process group."""
        if self.is_finished:
            return
        self._is_killed = True
        self._signal(signal.SIGKILL)
        self.supervisor.call_at(time.monotonic() + KILL_TIMEOUT, self.finish)

    def on_exit(self, status: int, peak_memory: int) -> None:
        """Handle the end of the command's own process. Processes left in its group get a short time, then TERM, then
        KILL."""
        self.status, self.peak_memory = status, max(peak_memory, self.peak_memory or 0)
        if self._memory_limit is not None:
            self._memory_limit.on_exit(status)
        self.supervisor.closing.add(self)  # first: so the loop tries again to finish the command after a bug
        if self._group_is_empty():
            self.finish()
        else:
            self.supervisor.call_at(time.monotonic() + LEFTOVER_GRACE, self._end_leftovers)

    def finish_if_group_is_empty(self) -> None:
        """Finish once no process is left in the group."""
        if not self.is_finished and self._group_is_empty():
            self.finish()

    def finish(self) -> None:
        """Close the pipes and report how the command ended."""
        if self.is_finished:
            return
        self.is_finished = True
        self.supervisor.waiting.discard(self)
        if self._delivery is None:
            self._conclude()
        else:
            self.supervisor.closing.add(self)  # until its output is delivered
            self._unwatch_output()
            self._on_free()

    def abandon_output(self) -> None:
        """Send no more output: the worker has gone."""
        if self._delivery is None:
            return
        self._end_delivery()
        if self.is_finished:
            self._conclude()
        else:
            self._watch_again()

    def on_taken(self) -> None:
        """Go on after the worker has taken a chunk of output."""
        if self._delivery is not None:
            self._delivery.on_taken()

    def _on_free(self) -> None:
        if not self.is_finished:
            self._watch_again()
        elif self._delivery is not None and self._delivery.drain():
            self._end_delivery()
            self._conclude()

    def _end_delivery(self) -> None:
        self._delivery = self.stdout.on_data = self.stderr.on_data = None

    def _conclude(self) -> None:
        self.supervisor.closing.discard(self)
        try:
            self._close_streams()
        except Exception as error:  # noqa: BLE001 - the worker waits for the report
            self.stdout.error = self.stdout.error or str(error)
        if self._memory_limit is not None:
            self._memory_limit.close()
        duration = time.monotonic() - self._started
        if self._scratch is None and not self._request.artifacts:
            self._reply(self._report(duration))
        else:
            self.supervisor.run_beside(self._clean_up, lambda: self._reply(self._report(duration)))

    def _clean_up(self) -> None:
        """Copy the artifacts, and then remove the scratch folder. Another thread does it: it may take long."""
        try:
            if self._request.artifacts and self.status is not None and self.stopped in (None, StopReason.TIMEOUT):
                from celeriac.worker.supervisor.artifacts import keep_artifacts

                self._artifacts_error = keep_artifacts(self._request, self._scratch)
        finally:
            if self._scratch is not None:
                self.supervisor.scratch_folders().remove(self._scratch)

    def _close_streams(self) -> None:
        self._close_write_ends()
        self._unwatch_output()
        for stream in (self.stdout, self.stderr):
            stream.drain()
            stream.close()

    def _report(self, duration: float) -> CommandReport:
        return CommandReport(
            pid=self.pid,
            status=self.status,
            started=self.started,
            duration=duration,
            peak_memory=self.peak_memory,
            stopped=self.stopped,
            leftovers_ended=self.leftovers_ended,
            error=self.error,
            output_error=self.stdout.error or self.stderr.error,
            stdout=self.stdout.report(),
            stderr=self.stderr.report(),
            artifacts_error=self._artifacts_error,
        )

    def _on_start_error(self, error: Exception) -> None:
        if is_shortage(error) and self._waits():
            for stream in (self.stdout, self.stderr):
                stream.close_pipe()
            self.supervisor.report_shortage(error)
            self.supervisor.waiting.add(self)
            self.supervisor.call_at(time.monotonic() + RETRY_DELAY, self.start)
            return
        number = getattr(error, "errno", None)
        is_about_cwd = self._cwd is not None and getattr(error, "filename", None) == self._cwd
        about, text = "cwd" if is_about_cwd else getattr(error, "about", "program"), str(error)
        if about == "program" and number == errno.ENOENT and (problem := self._missing_interpreter()) is not None:
            about, text = "interpreter", problem
        self.error = StartError(errno=number, about=about, text=text)
        self.finish()

    def _waits(self) -> bool:
        """Return whether the start is tried again: other commands run, whose end may help, or the time is not over."""
        if self.supervisor.leaders or self._gives_up_at is None:
            self._gives_up_at = time.monotonic() + START_TIMEOUT
        return time.monotonic() < self._gives_up_at

    def _came_in_time(self) -> bool:
        """Return whether the request came in time and has waited since. Then the worker's heartbeats count, as for a
        command that runs."""
        return self in self.supervisor.waiting and self.supervisor.has_lease()

    def _missing_interpreter(self) -> str | None:
        path = self._env.get(b"PATH", os.fsencode(os.defpath))
        return missing_interpreter(self._argv[0], self._cwd or "", os.fsdecode(path))

    def _watch_output(self) -> None:
        for stream in (self.stdout, self.stderr):
            self._watch(stream)

    def _watch(self, stream: Capture) -> None:
        if self.is_finished:
            return
        try:
            self.supervisor.watch(stream.read_end, partial(self._on_output, stream))
        except OSError as error:
            if not is_shortage(error):
                raise
            self.supervisor.report_shortage(error)
            self.supervisor.call_at(time.monotonic() + RETRY_DELAY, partial(self._watch, stream))
        else:
            self._watched.add(stream)

    def _on_output(self, stream: Capture) -> None:
        try:
            has_more = stream.pump()
        except OSError as error:
            has_more, stream.error = False, stream.error or str(error)
        if not has_more:
            self.supervisor.unwatch(stream.read_end)
            self._watched.discard(stream)
        if self._delivery is not None and self._delivery.is_busy:
            self._unread += self._unwatch_output()

    def _unwatch_output(self) -> list[Capture]:
        """Read no more output for now. Return the streams that had not ended."""
        streams, self._watched = list(self._watched), set()
        for stream in streams:
            self.supervisor.unwatch(stream.read_end)
        return streams

    def _watch_again(self) -> None:
        streams, self._unread = self._unread, []
        for stream in streams:
            self._watch(stream)

    def _end_leftovers(self) -> None:
        if self.is_finished or self._group_is_empty():
            return
        self.leftovers_ended = True
        if not self._is_killed:
            self._signal(signal.SIGTERM)
            self.supervisor.call_at(time.monotonic() + self.grace, self.kill)

    def _signal(self, number: int) -> None:
        if self.pid is None:
            return
        self.signal_group(number)
        self.supervisor.signal_orphans(self.id, number)

    def signal_group(self, number: int) -> None:
        """Send a signal to the process group, if the command has started."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended, or changed its user
                os.killpg(self.pid, number)

    def _group_is_empty(self) -> bool:
        try:
            os.killpg(self.pid or 0, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False

    def _close_write_ends(self) -> None:
        for stream in (self.stdout, self.stderr):
            stream.close_write_end()


def environment_of(inherited: Mapping[bytes, bytes], changes: Mapping[str, str]) -> dict[bytes, bytes]:
    """Return the whole environment of a command. Raises `ValueError` if a name or a value cannot be passed on."""
    encoded = {name.encode(*FILE_NAMES): value.encode(*FILE_NAMES) for name, value in changes.items()}
    for name, value in encoded.items():
        if not name or b"=" in name or b"\0" in name or b"\0" in value:
            raise ValueError("a variable has a name or a value that no environment can hold")
    return {**inherited, **encoded}
