"""Decide what a worker does next when it has to shut down: no threads, no I/O.

RUN ── request ─► DRAIN ── QUIT, a second signal, or the grace is over ─► END ── timeout ─► EXIT
                    └── no task runs ─► the event loop stops ◄─────────────┘
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


class Request(Enum):
    DRAIN = auto()
    """A command asks for it. Repeating it changes nothing."""

    IDLE = auto()
    """The worker has had no task for long. A task that arrives meanwhile may run to its end."""

    TERM = auto()
    """A signal asks to drain; the second one asks to end the running tasks."""

    QUIT = auto()
    """A signal asks to end the running tasks at once."""


class ShutdownSteps:
    """The current step of one worker. All times are seconds of one monotonic clock."""

    def __init__(self, grace: float) -> None:
        """`grace` is the time, in seconds, that running tasks get to finish."""
        self._grace = grace
        self._deadline = float("inf")
        self._is_requested = self._has_deadline = False
        self._signals = 0
        self.step = Step.RUN

    def request(self, request: Request) -> None:
        """Record a request. `advance` then enters the steps that it asks for."""
        self._is_requested = True
        self._has_deadline |= request is not Request.IDLE
        match request:
            case Request.TERM:
                self._signals += 1
            case Request.QUIT:
                self._signals = 2

    def advance(self, now: float) -> bool:
        """Enter the next step if it is due, and return whether it was."""
        if self.step in (Step.RUN, Step.DRAIN) and self._has_deadline:
            self._deadline = min(self._deadline, now + self._grace)
        if self.step is Step.RUN and self._is_requested:
            self.step = Step.DRAIN
        elif self.step is Step.DRAIN and (self._signals > 1 or now >= self._deadline):
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
