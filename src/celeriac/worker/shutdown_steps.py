"""Decide what a worker does next when it has to shut down: no threads, no I/O.

RUN ── request ─► DRAIN ── second request, or the grace is over ─► END ── timeout ─► EXIT
                    └── no task runs ─► the event loop stops ◄──────┘
"""

from __future__ import annotations

from enum import Enum, auto

END_TIMEOUT = 10.0  # seconds for results and acknowledgements, once all commands have ended


class Step(Enum):
    RUN = auto()
    """No shutdown was requested."""

    DRAIN = auto()
    """Running tasks may finish; no message is accepted."""

    END = auto()
    """Running tasks are ended."""

    EXIT = auto()
    """The event loop did not stop in time: the process must exit."""


class ShutdownSteps:
    """The current step of one worker. All times are seconds of one monotonic clock."""

    def __init__(self, grace: float) -> None:
        """`grace` is the time, in seconds, that running tasks get to finish."""
        self._grace = grace
        self._deadline = float("inf")
        self.step = Step.RUN

    def advance(self, now: float, *, is_requested: bool) -> bool:
        """Enter the next step if it is due, and return whether it was. `is_requested`: a shutdown request has come."""
        if self.step is Step.RUN and is_requested:
            self.step, self._deadline = Step.DRAIN, now + self._grace
        elif self.step is Step.DRAIN and (is_requested or now >= self._deadline):
            self.step, self._deadline = Step.END, float("inf")
        elif self.step is Step.END and now >= self._deadline:
            self.step = Step.EXIT
        else:
            return False
        return True

    def commands_ended(self, now: float) -> None:
        """Record that all commands have ended. The event loop must stop within `END_TIMEOUT` from now."""
        self._deadline = now + END_TIMEOUT

    def may_stop(self, *, is_busy: bool) -> bool:
        """Return whether the event loop should stop. `is_busy`: a task runs, or is not acknowledged."""
        return self.step is not Step.RUN and not is_busy
