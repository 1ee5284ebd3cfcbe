"""The application of `celeriac top`."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, TypeVar

from textual.app import App
from textual.binding import Binding, BindingType

from celeriac.cli.top_view.call_thread import CallThread
from celeriac.cli.top_view.dialogs import Question
from celeriac.cli.top_view.overview_screen import OverviewScreen
from celeriac.cli.top_view.source import Source
from celeriac.errors import CeleriacError, on_one_line
from celeriac.ledger.views import RunView

T = TypeVar("T")

DARK, LIGHT = "textual-dark", "textual-light"
MESSAGE_TIME = 8.0  # seconds
STYLES = """
Screen { layout: vertical; }
.facts { height: auto; max-height: 8; padding: 0 1; }
.title { height: 1; padding: 0 1; text-style: bold; }
ListTable { height: auto; max-height: 40%; }
#runs, #tasks { height: 1fr; max-height: 100%; min-height: 3; }
ModalScreen { align: center middle; }
.dialog { width: 60; max-width: 95%; height: auto; max-height: 90%; padding: 1 2; }
.dialog { border: round $accent; background: $surface; }
"""


class TopApp(App[None]):
    """Shows queues, workers and runs, and acts on them."""

    ENABLE_COMMAND_PALETTE = False
    CSS = STYLES
    TITLE = "celeriac"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("ctrl+c", "quit", show=False, priority=True),
        Binding("t", "switch_theme", "Light or dark", show=False),
    ]

    def __init__(self, source: Source, *, interval: float, is_light: bool) -> None:
        super().__init__()
        self.source, self.interval = source, interval
        self.theme = LIGHT if is_light else DARK
        self._calls = CallThread()

    def on_mount(self) -> None:
        self.push_screen(OverviewScreen(self))

    def on_unmount(self) -> None:
        self._calls.close()

    def action_switch_theme(self) -> None:
        self.theme = DARK if self.theme == LIGHT else LIGHT

    async def call(self, function: Callable[[], T]) -> T:
        """Make a blocking call beside the screen. Raises what it raises."""
        return await self._calls.call(function)

    # — actions —

    def ask_and_do(self, question: str, action: Callable[[], str]) -> None:
        """Ask; if the answer is yes, act, and show the effect."""

        async def act(answer: bool | None) -> None:
            if not answer:
                return
            try:
                self._show(await self.call(action), is_error=False)
            except CeleriacError as error:
                self._show(str(error), is_error=True)

        self.push_screen(Question(on_one_line(question)), act)

    def ask_and_retry(self, question: str, run: RunView, keys: Sequence[str]) -> None:
        """Ask; if the answer is yes, run tasks again on the terminal, and come back when that has ended. The tasks of a
        live run are in the memory of its owner."""
        if run.owner is not None:
            self._show(f"run {run.name} is running in {run.owner}; retry it when it has ended", is_error=True)
            return

        def retry(answer: bool | None) -> None:
            if answer:
                command, environment = self.source.retry_command(run, keys)
                with self.suspend(), interrupts_ignored():
                    subprocess.run(command, env=environment, check=False)
                    input("Enter goes back to celeriac top ")
                self.refresh(layout=True)

        self.push_screen(Question(on_one_line(question)), retry)

    def _show(self, message: str, *, is_error: bool) -> None:
        self.notify(
            on_one_line(message), severity="error" if is_error else "information", timeout=MESSAGE_TIME, markup=False
        )


@contextmanager
def interrupts_ignored() -> Iterator[None]:
    """Let Ctrl-C reach the command alone. Unlike an ignored signal, a handler is not inherited."""
    former = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)
