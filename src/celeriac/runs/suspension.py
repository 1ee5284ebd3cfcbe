"""Ctrl-Z of a run, and `fg`.

SIGTSTP ─► the loop of the run: stop the commands ─► stop this process ─► SIGCONT ─► let the commands go on
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Suspension:
    """Stops the commands of a run with its process: they have process groups of their own, below another session."""

    def __init__(
        self, *, wake: Callable[[], None], stop_commands: Callable[[], None], continue_commands: Callable[[], None]
    ) -> None:
        """`wake` ends the executor's `wait`, and is called from a signal handler."""
        self._wake, self._stop_commands, self._continue_commands = wake, stop_commands, continue_commands
        self.is_requested = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle SIGTSTP inside a `with` block, unless it is ignored or handled already."""
        if signal.getsignal(signal.SIGTSTP) is not signal.SIG_DFL:
            yield
            return
        signal.signal(signal.SIGTSTP, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            if self.is_requested:
                self.suspend()

    def suspend(self) -> None:
        """Stop the commands and this process. Return after SIGCONT; at once in a group that no shell can continue."""
        self._stop_commands()
        try:
            self._stop_process()
        finally:
            self._continue_commands()

    def _stop_process(self) -> None:
        self.is_requested = False
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, handler)

    def _on_signal(self, *_: object) -> None:
        """Let the loop stop everything between two steps. The second signal does not wait for it."""
        if self.is_requested:
            self.suspend()
        else:
            self.is_requested = True
            self._wake()
