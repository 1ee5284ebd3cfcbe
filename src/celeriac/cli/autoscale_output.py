"""The output of `celeriac autoscale`: a line for each event, the numbers on a terminal, or JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from celeriac.cli.formatting import count, format_time
from celeriac.cli.messages import print_line
from celeriac.cli.status_line import StatusLine

if TYPE_CHECKING:
    from celeriac.autoscale.decision import Decision
    from celeriac.autoscale.events import AutoscaleEvent, Numbers


class AutoscaleOutput:
    """Prints events: as text on standard error, or as JSON on standard output."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._line = StatusLine(only_terminals=True)

    def report(self, event: AutoscaleEvent) -> None:
        """Print an event."""
        from celeriac.autoscale.events import EventKind

        if self._as_json:
            self._print_json(event.kind.value, event.at, event.words, event.allocations, event.numbers)
        elif event.kind is EventKind.STATE:
            self._line.show(event.words)
        else:
            self.clear()
            print_line(f"{format_time(event.at)}  {event.words}")

    def plan(self, decision: Decision, numbers: Numbers, *, command: str, script: str) -> None:
        """Print what would be done now."""
        words = "nothing to do"
        if decision.submit:
            words = f"would submit {count(decision.submit, 'allocation')}"
        elif decision.cancel:
            words = f"would cancel {count(decision.cancel, 'pending allocation')}"
        if self._as_json:
            more = {"submit": decision.submit, "cancel": decision.cancel, "command": command, "script": script}
            self._print_json("planned", time.time(), words, (), numbers, **more)
            return
        self.clear()
        click.echo(f"{words}\n\n{command} <<'END'\n{script}END")

    def end(self, words: str, cancelled: Sequence[str]) -> None:
        """Print the end."""
        if self._as_json:
            self._print_json("stopped", time.time(), words, cancelled, None)
        else:
            print_line(f"{format_time(time.time())}  {words}")

    def clear(self) -> None:
        """Erase the numbers from the terminal."""
        self._line.clear()

    def _print_json(
        self,
        event: str,
        at: float,
        words: str,
        allocations: Sequence[str],
        numbers: Numbers | None,
        **more: Any,
    ) -> None:
        names = ("pending", "running", "waiting", "unserved")
        fields = {name: None if numbers is None else getattr(numbers, name) for name in names}
        line = {"event": event, "at": at, "words": words, "allocations": [*allocations], **fields, **more}
        click.echo(json.dumps(line))
        sys.stdout.flush()
