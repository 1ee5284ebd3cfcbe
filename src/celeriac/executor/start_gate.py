"""Hold back starts while the machine is busy, and for a time after each start: no threads, no I/O.

    a task could start ─► Readings, at most once a second ─► StartGate.admits ─► it starts
                                                                             └─► it waits, and `waits` says why

Nothing that runs is stopped. The load average follows what runs with a delay of a minute. So slots that were taken
lately count as load until the average can show them. Likewise each start counts as `min_free_memory` until the free
memory is read again.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp

from msgspec import Struct

from celeriac.config.executor_config import PER_CENT
from celeriac.executor.requests import WaitReason
from celeriac.log_lines import logger_for
from celeriac.task.size import format_size

logger = logger_for(__name__)

READ_INTERVAL = 1.0  # seconds between two readings
LOAD_PERIOD = 60.0  # seconds: the time constant of the load average
SHORT_TIME = 5.0  # seconds, for most of which slots were in use that are open at their end
NEGLIGIBLE = 1e-3  # slots that were taken lately, and that the load average shows by now


class Readings(Struct, frozen=True):
    """How busy a machine is. What is not known is None, and limits nothing."""

    load: float | None
    """The load average of the last minute."""

    cpus: int
    """The processors, of which `max_load` may be a per cent."""

    free_memory: int | None
    """Bytes that are available."""


class Hold(Struct, frozen=True):
    """Why no task starts now."""

    reason: WaitReason
    words: str
    facts: dict[str, int | float | str]


class StartGate:
    """Decides whether one more task may start. All times are seconds of one monotonic clock."""

    def __init__(
        self,
        read: Callable[[], Readings] | None,
        *,
        max_load: float | str | None = None,
        min_free_memory: int | None = None,
        delay: float = 0.0,
    ) -> None:
        """`read` returns how busy the machine is; with None, only the delay counts."""
        self._read = read if max_load is not None or min_free_memory is not None else None
        self._max_load, self._min_free_memory, self._delay = max_load, min_free_memory, delay
        self._readings = Readings(None, 1, None)
        self._read_at = self._averaged_at = self._delayed_until = float("-inf")
        self._starts_since_reading = 0
        self._average = 0.0
        """The slots in use as the load average shows them."""

        self._in_use = 0
        """The slots in use at the last call."""

        self._is_logged = False
        self.waits: Hold | None = None
        """Why the last task that could have started did not."""

        self.retry_at = 0.0
        """When that task may be tried again."""

    def admits(self, in_use: int, now: float) -> bool:
        """Return whether a task may start while so many slots are in use. Ask only for a task that could start."""
        self.waits = self._delay_left(now) or self._pressure(in_use, now)
        return self.waits is None

    def started(self, in_use: int, now: float) -> None:
        """Take note that a task has started, with which so many slots are in use."""
        self._in_use, self._delayed_until = in_use, now + self._delay
        self._starts_since_reading += 1

    def _delay_left(self, now: float) -> Hold | None:
        if now >= self._delayed_until:
            return None
        self.retry_at, left = self._delayed_until, round(self._delayed_until - now, 3)
        return Hold(WaitReason.DELAY, f"the next start is in {left:.1f} s", {"seconds": left})

    def _pressure(self, in_use: int, now: float) -> Hold | None:
        """Return the limit of the machine that holds tasks back, if there is one."""
        if self._read is None:
            return None
        self._follow(in_use, now)
        if now - self._read_at >= READ_INTERVAL:
            self._readings, self._read_at, self._starts_since_reading = self._read(), now, 0
        hold = self._load(in_use) or self._memory()
        if hold is not None:
            self.retry_at = self._read_at + READ_INTERVAL
            if in_use == 0 and not self._is_logged:
                self._is_logged = True
                logger.warning("nothing runs, and nothing starts: %s", hold.words)
        return hold

    def _follow(self, in_use: int, now: float) -> None:
        """Bring the average of the slots in use up to now, as the system does with its load average."""
        elapsed = now - self._averaged_at
        if elapsed > 0:
            level = max(in_use, self._in_use) if elapsed < SHORT_TIME else in_use
            self._average = level + (self._average - level) * exp(-elapsed / LOAD_PERIOD)
            self._averaged_at = now
        self._in_use = in_use

    def _load(self, in_use: int) -> Hold | None:
        load = self._readings.load
        if self._max_load is None or load is None:
            return None
        limit, latest = limit_of(self._max_load, self._readings.cpus), in_use - self._average
        facts: dict[str, int | float | str] = {"load": round(load, 2), "max_load": round(limit, 2)}
        if load > limit:
            return Hold(WaitReason.LOAD, f"load {load:.1f} is above {limit:g}", facts)
        if latest < NEGLIGIBLE or load + latest < limit:
            return None
        words = f"load {load:.1f} and the tasks that have just started come to {limit:g}"
        return Hold(WaitReason.LOAD, words, {**facts, "started": round(latest, 2)})

    def _memory(self) -> Hold | None:
        free, least = self._readings.free_memory, self._min_free_memory
        if least is None or free is None or free >= least * (1 + self._starts_since_reading):
            return None
        facts: dict[str, int | float | str] = {"free_memory": free, "min_free_memory": least}
        if free >= least:
            return Hold(WaitReason.MEMORY, "the free memory is measured again first", facts)
        return Hold(WaitReason.MEMORY, f"free memory {format_size(free)} is below {format_size(least)}", facts)


def limit_of(max_load: float | str, cpus: int) -> float:
    """Return a limit of the load as a number."""
    if isinstance(max_load, str):
        return float(max_load.removesuffix(PER_CENT)) / 100 * cpus
    return max_load
