"""Bring the output of commands on workers elsewhere to files on this machine, as it is written.

    executor: begin ─► thread: OutputStore ─► files ─► acknowledge
              complete ◄─ the last chunk: a result waits until the output before it is in its files

The position in the output of an attempt is the size of its files. So a process that takes over goes on there: chunks
that its predecessor has written but not acknowledged come again, and are skipped.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from msgspec.structs import replace

from celeriac.backend.outputs import END, Chunk, OutputStore, Progress
from celeriac.cluster.output_file import OutputFiles
from celeriac.server_errors import is_client_error
from celeriac.surviving_loop import SurvivingLoop
from celeriac.task.result import Execution, Output, Reason, Result
from celeriac.task.state import State
from celeriac.task.task import Task
from celeriac.worker.output import OutputPolicy

MIN_PAUSE, MAX_PAUSE = 0.01, 0.1  # seconds between two looks while nothing comes; doubled each time
UNAVAILABLE_PAUSE = 0.5  # seconds until a store that fails is called again
LOOK_BATCH = 500  # attempts in one look
READ_BATCH = 16  # attempts whose chunks are read at once: at most `WINDOW` bytes of each
MAX_SILENCE = 3600.0  # seconds
CLOSE_TIMEOUT = 5.0  # seconds


class Attempt:
    """The output of one attempt on its way here. Only the collector's thread changes it after `begin`."""

    def __init__(self, files: OutputFiles) -> None:
        self.files = files
        self.token: int | None = None
        self.has_result = False
        """Whether the attempt has ended. Set by the executor's thread."""

        self.is_abandoned = False
        """Whether the attempt was lost: what is there is read, and nothing more is expected."""

        self.has_end = self.is_done = False
        self.news_at = time.monotonic()
        """When something came last."""


class OutputCollector:
    """The executor's `OutputReader`: the executor's thread calls it, another thread reads."""

    def __init__(
        self, store: OutputStore, policy: OutputPolicy, on_complete: Callable[[Collection[str]], object]
    ) -> None:
        """`on_complete` gets the ids of results that `complete` has held back and that it returns now."""
        self._store, self._policy, self._on_complete = store, policy, on_complete
        self._attempts: dict[str, Attempt] = {}
        self._news = threading.Event()
        self._is_closing = False
        self._pause = MIN_PAUSE
        self._loop = SurvivingLoop("celeriac-output", self._run_round, wait=self._news.wait)
        self._has_begun = False

    # — for the executor —

    def begin(self, task: Task) -> None:
        if task.message_id in self._attempts:
            return
        if not self._has_begun:
            self._has_begun = True
            self._loop.start()
        request = self._policy.request(str(task.key), task.attempt)
        self._policy.remove_later_attempts(str(task.key), task.attempt)
        self._attempts[task.message_id] = Attempt(OutputFiles(request))

    def complete(self, task: Task, result: Result) -> Result | None:
        self.begin(task)
        attempt = self._attempts[task.message_id]
        if not attempt.is_done:
            if not attempt.has_result:
                attempt.has_result = True
                self._news.set()
            return None
        del self._attempts[task.message_id]
        return result if result.execution is None else self._with_files(attempt, result, result.execution)

    def lost(self, task: Task, result: Result) -> Result:
        attempt = self._attempts.get(task.message_id)
        if attempt is None:
            return result
        attempt.is_abandoned = attempt.has_result = True
        self._news.set()
        if result.execution is None:
            return result
        outputs = {name: attempt.files.output(name, Output(), 0) for name in ("stdout", "stderr")}
        return replace(result, execution=replace(result.execution, **outputs))

    def is_held(self, message_id: str) -> bool:
        attempt = self._attempts.get(message_id)
        return attempt is not None and attempt.has_result

    def close(self) -> None:
        self._is_closing = True
        self._news.set()
        if self._has_begun:
            self._loop.join(CLOSE_TIMEOUT)
        self._store.close()

    def _with_files(self, attempt: Attempt, result: Result, execution: Execution) -> Result:
        """Return a result that names the files here. One whose output could not be kept says so."""
        files, cap = attempt.files, self._policy.cap
        if result.state is State.SUCCESS and not (self._policy.keep or self._policy.is_read):
            files.remove()
            return result
        streams = {"stdout": execution.stdout, "stderr": execution.stderr}
        if self._policy.keep and execution.pid is not None:
            files.make_missing()
        outputs = {name: files.output(name, output, cap) for name, output in streams.items()}
        missing = 0 if attempt.has_end else max(0, sum(min(each.size, cap) for each in streams.values()) - files.size)
        problem = files.error or (f"{missing:,} bytes of its output did not arrive" if missing else None)
        changed = replace(result, execution=replace(execution, **outputs))
        if problem is None or result.state is not State.SUCCESS:
            return changed
        if self._policy.keep:
            detail = f"its output was not kept: {problem}"
            return replace(changed, state=State.FAILED, reason=Reason.OUTPUT, detail=detail)
        return replace(changed, detail=problem)

    # — the thread —

    def _run_round(self) -> bool:
        if self._is_closing:
            return False
        self._news.clear()
        try:
            moved = self._look()
        except Exception as error:
            if not is_client_error(error):
                raise
            self._news.wait(UNAVAILABLE_PAUSE)
            return True
        self._pause = MIN_PAUSE if moved else min(2 * self._pause, MAX_PAUSE)
        if not moved:
            self._news.wait(self._pause)
        return True

    def _look(self) -> bool:
        """Read what has come. Return whether there was something."""
        self._forget_silent(time.monotonic())
        attempts = dict(self._attempts)
        open_ids = [task_id for task_id, attempt in attempts.items() if not attempt.is_done]
        ended = {task_id for task_id in open_ids if attempts[task_id].has_result}
        moved = False
        for ids in batches(open_ids, LOOK_BATCH):
            progress = self._store.progress(ids)
            due = [task_id for task_id in ids if task_id in ended or has_unread(progress.get(task_id))]
            for batch in batches(due, READ_BATCH):
                moved |= self._read({task_id: attempts[task_id] for task_id in batch}, ended)
        return moved

    def _forget_silent(self, now: float) -> None:
        """Forget attempts that are silent for long: they may have ended without a result. A reconcile begins the others
        again."""
        for task_id, attempt in list(self._attempts.items()):
            if not attempt.has_result and now - attempt.news_at > MAX_SILENCE:
                self._attempts.pop(task_id, None)

    def _read(self, attempts: Mapping[str, Attempt], ended: Collection[str]) -> bool:
        """Read chunks of attempts, and write them to their files. `ended` had a result before."""
        found = self._store.chunks(list(attempts))
        for task_id, (progress, chunks) in found.items():
            take_chunks(attempts[task_id], progress, chunks)
            if chunks:
                attempts[task_id].news_at = time.monotonic()
        self._store.acknowledge(found)
        done = [
            task_id
            for task_id, attempt in attempts.items()
            if attempt.has_end or (task_id in ended and not (task_id in found and found[task_id][1]))
        ]
        self._finish({task_id: attempts[task_id] for task_id in done})
        return any(chunks for _, chunks in found.values())

    def _finish(self, attempts: Mapping[str, Attempt]) -> None:
        ended = [task_id for task_id, attempt in attempts.items() if attempt.has_result]
        self._store.delete(ended)
        for task_id in ended:
            attempts[task_id].is_done = True
            if attempts[task_id].is_abandoned:
                self._attempts.pop(task_id, None)
        if ended:
            self._on_complete(ended)


def batches(ids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (ids[start : start + size] for start in range(0, len(ids), size))


def has_unread(progress: Progress | None) -> bool:
    return progress is not None and progress.written > progress.read


def take_chunks(attempt: Attempt, progress: Progress, chunks: Sequence[Chunk]) -> None:
    """Write what the files of an attempt do not have yet."""
    if attempt.token != progress.token:
        is_new = attempt.token is not None or progress.read == 0  # else a predecessor has read a part of it
        attempt.token, attempt.has_end = progress.token, False
        attempt.files.begin(anew=is_new)
    for chunk in chunks:
        attempt.has_end |= chunk.stream == END
        attempt.files.write(chunk)
