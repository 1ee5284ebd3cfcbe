"""One task: its life, what it waits for now, and the end of its output."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Footer, Static

from celeriac.cli.explain import place, reason
from celeriac.cli.overview_tables import Column, table
from celeriac.cli.top_view.base_screen import LiveScreen
from celeriac.cli.top_view.source import Tail, TaskDetails
from celeriac.errors import on_one_line
from celeriac.executor.requests import Explanation
from celeriac.executor.stored_status import in_milliseconds
from celeriac.ledger.views import RunView
from celeriac.values_as_text import shorten_command

if TYPE_CHECKING:
    from celeriac.cli.top_view.app import TopApp

LIFE_COLUMNS = (
    Column("time"),
    Column("attempt", is_right=True, drop=2),
    Column("state"),
    Column("place", drop=1),
    Column("reason"),
)
MARGIN = 4  # columns beside the text


class TaskScreen(LiveScreen):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark", "keys", "Keys", key_display="?"),
        Binding("escape", "app.pop_screen", "Back"),
        Binding("c", "cancel", "Cancel"),
        Binding("r", "retry", "Retry"),
    ]

    def __init__(self, top: TopApp, run: RunView, key: str) -> None:
        super().__init__(top)
        self._run, self._key = run, key
        self._details: TaskDetails | None = None

    def compose(self) -> ComposeResult:
        yield Static(id="facts", classes="facts")
        with VerticalScroll(id="body"):
            yield Static(id="life")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        super().on_mount()
        self.query_one("#body").focus()

    async def read_and_show(self) -> None:
        details = await self.top.call(partial(self.top.source.task, self._run, self._key))
        self._details = details
        explanation, task = details.explanation, details.attempts.task.task
        facts = Text(on_one_line(f"{self._run.name}  {self._key}  {explanation.state.value}"), "bold")
        for line in (
            shorten_command(task.command),
            f"queue {task.queue!r}, priority {task.priority}, id {explanation.id}",
        ):
            facts.append(f"\n{on_one_line(line)}", "not bold")
        self.query_one("#facts", Static).update(facts)
        body = Text(on_one_line(f"now: {explanation.now.words}"), "bold")
        body.append("\n\n")
        body.append("\n".join(life_lines(explanation, max(1, self.size.width - MARGIN))))
        for tail in details.tails:
            append_tail(body, tail)
        self.query_one("#life", Static).update(body)

    def action_cancel(self) -> None:
        if self._details is None or self._details.attempts.task_has_ended:
            self.app.notify("the task has ended")
            return
        self.top.ask_and_do(f"Cancel task {self._key}?", lambda: self.top.source.cancel_task(self._run, self._key))

    def action_retry(self) -> None:
        question = f"Run task {self._key} again? It runs here, until it has ended."
        self.top.ask_and_retry(question, self._run, (self._key,))


def life_lines(explanation: Explanation, width: int) -> list[str]:
    """Return the events of a task as a table."""
    rows = []
    if explanation.arrived is not None:
        rows.append((in_milliseconds(explanation.arrived), "", "arrived", "", ""))
    for number, event in enumerate(explanation.moves):
        rows.append((in_milliseconds(event.when), str(event.attempt), event.state.value, place(event), reason(event)))
        if number == 0 and explanation.left_out:
            rows.append(("…", "", "", "", f"{explanation.left_out:,} more events"))
    return table(LIFE_COLUMNS, rows, width)


def append_tail(body: Text, tail: Tail) -> None:
    """Add the end of an output. Characters that would move the cursor are escaped."""
    if not tail.lines and tail.note is None:
        return
    body.append(f"\n\n{tail.stream}" + (f" ({tail.note})" if tail.note is not None else ""), "bold")
    for line in tail.lines:
        body.append("\n" + on_one_line(line.expandtabs()))
