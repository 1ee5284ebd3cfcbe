"""`celeriac run -- COMMAND...`: what the command said is the result, and is shown."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import BinaryIO

from celeriac.cli.formatting import failure
from celeriac.cli.progress import Failures
from celeriac.task.event import Event
from celeriac.task.result import Output
from celeriac.task.state import State


class OneCommand(Failures):
    def on_event(self, event: Event) -> None:
        if event.state.is_final and event.execution is not None:
            show(event.execution.stdout, sys.stdout.buffer)
            show(event.execution.stderr, sys.stderr.buffer)
        if event.state is State.FAILED:
            self.say(f"failed: {failure(event)}")


def show(output: Output, file: BinaryIO) -> None:
    if output.path is not None:
        with Path(output.path).open("rb") as kept:
            shutil.copyfileobj(kept, file)
    elif output.tail:  # of a worker elsewhere
        file.write(output.tail.encode())
    file.flush()
