"""The part that all screens share: they read again at each interval, while they are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text
from textual.screen import Screen
from textual.widgets import Static

from celeriac.cli.top_view.dialogs import Message
from celeriac.cli.top_view.list_table import ListTable
from celeriac.errors import CeleriacError, on_one_line
from celeriac.web.errors import WebError

if TYPE_CHECKING:
    from celeriac.cli.top_view.app import TopApp


class LiveScreen(Screen[None]):
    """A screen that shows what it reads, again and again. An error of a server is one line until it is over."""

    def __init__(self, top: TopApp) -> None:
        super().__init__()
        self.top = top
        self._is_reading = False

    def action_sort(self) -> None:
        """Sort the table that has the focus by its next column."""
        if isinstance(self.focused, ListTable):
            self.focused.sort_next()

    def action_keys(self) -> None:
        """Show all keys of this screen."""
        shown = {
            key: each.binding.description for key, each in self.active_bindings.items() if each.binding.description
        }
        by_text: dict[str, list[str]] = {}
        for key, text in shown.items():
            by_text.setdefault(text, []).append(self.app.get_key_display(self.active_bindings[key].binding))
        lines = [f"{' or '.join(dict.fromkeys(keys))}: {text}" for text, keys in by_text.items()]
        self.app.push_screen(Message("\n".join(lines)))

    def on_mount(self) -> None:
        self.read_again()
        self.set_interval(self.top.interval, self.read_again)

    def on_screen_resume(self) -> None:
        self.read_again()

    def read_again(self) -> None:
        """Read and show, unless the screen is hidden or a read is under way."""
        if self.is_current and not self._is_reading:
            self._is_reading = True
            self.run_worker(self._read_and_show(), exit_on_error=True)

    async def _read_and_show(self) -> None:
        try:
            await self.read_and_show()
        except (CeleriacError, WebError) as error:
            self.show_problem(str(error))
        finally:
            self._is_reading = False

    async def read_and_show(self) -> None:
        """Read in the thread of calls, and show the result. Raises `CeleriacError` and `WebError`."""
        raise NotImplementedError  # each screen has its own; Textual screens cannot be abstract classes

    def show_problem(self, problem: str) -> None:
        self.query_one("#facts", Static).update(Text(on_one_line(problem), "bold red"))
