"""The tasks of a run, page by page, with filters."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import DataTable, Footer, Static

from celeriac.cli.overview_tables import Column
from celeriac.cli.run_view import run_facts, task_cells
from celeriac.cli.top_view.base_screen import LiveScreen
from celeriac.cli.top_view.dialogs import TextInput
from celeriac.cli.top_view.list_table import ListTable
from celeriac.cli.top_view.task_screen import TaskScreen
from celeriac.errors import InvalidTask, on_one_line
from celeriac.ledger.views import RunView, TaskView
from celeriac.task.state import State
from celeriac.task.task import Task
from celeriac.web.task_pages import TaskFilter, TaskPage

if TYPE_CHECKING:
    from celeriac.cli.top_view.app import TopApp

TASK_COLUMNS = (
    Column("key"),
    Column("state"),
    Column("attempt", is_right=True, drop=3),
    Column("reason", drop=1),
    Column("host", drop=5),
    Column("duration", is_right=True, drop=2),
    Column("started", drop=4),
)
FILTERS: dict[str, tuple[State, ...]] = {
    "all": (),
    "waiting": (State.WAITING,),
    "in flight": (State.PUBLISHING, State.QUEUED, State.RUNNING),
    "failed": (State.FAILED,),
    "succeeded": (State.SUCCESS,),
    "revoked": (State.REVOKED,),
    "skipped": (State.SKIPPED,),
}


class RunScreen(LiveScreen):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark", "keys", "Keys", key_display="?"),
        Binding("escape", "app.pop_screen", "Back"),
        Binding("slash", "find", "Find", key_display="/"),
        Binding("f", "filter(1)", "State"),
        Binding("F", "filter(-1)", "State back", show=False),
        Binding("n", "next_page", "Next"),
        Binding("p", "previous_page", "Previous", show=False),
        Binding("c", "cancel", "Cancel"),
        Binding("r", "retry", "Retry"),
        Binding("P", "priority", "Priority", show=False),
        Binding("s", "sort", "Sort", show=False),
    ]

    def __init__(self, top: TopApp, run: RunView) -> None:
        super().__init__(top)
        self._run = run
        self._filter, self._text = 0, ""
        self._positions: list[str | None] = [None]
        """Where each page up to the present one begins."""

        self._page: TaskPage | None = None
        self._problems: Sequence[str] = ()

    def compose(self) -> ComposeResult:
        yield Static(id="facts", classes="facts")
        yield ListTable(TASK_COLUMNS, id="tasks")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        super().on_mount()
        self.query_one("#tasks").focus()

    async def read_and_show(self) -> None:
        overview = await self.top.call(self.top.source.overview)
        views = {line.view.id: line.view for line in overview.runs or ()}
        self._run = views.get(self._run.id, self._run)
        name = [*FILTERS][self._filter]
        wanted = TaskFilter(states=FILTERS[name], text=self._text or None)
        position = self._positions[-1]
        page = await self.top.call(partial(self.top.source.tasks, self._run, wanted, position))
        self._page = page
        self.query_one("#tasks", ListTable).show({str(view.task.key): task_cells(view) for view in page.tasks})
        self._problems = overview.problems
        self._show_facts()

    def _show_facts(self) -> None:
        has_more = self._page is not None and self._page.next is not None
        facts = Text("  ".join(run_facts(self._run)), "bold")
        facts.append(f"\nstate: {[*FILTERS][self._filter]}")
        facts.append(f"  key has: {on_one_line(self._text)}" if self._text else "")
        facts.append(f"  page {len(self._positions)}" + (", more with n" if has_more else ""))
        if (column := self.query_one("#tasks", ListTable).sorted_by) is not None:
            is_part = has_more or len(self._positions) > 1
            facts.append(f"  sorted by {column}" + (": this page alone" if is_part else ""))
        for problem in self._problems:
            facts.append(f"\n{on_one_line(problem)}", "bold red")
        self.query_one("#facts", Static).update(facts)

    def action_sort(self) -> None:
        super().action_sort()
        self._show_facts()

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        self.action_open()

    def action_open(self) -> None:
        if (view := self._selected()) is not None:
            self.app.push_screen(TaskScreen(self.top, self._run, str(view.task.key)))

    def action_find(self) -> None:
        def find(text: str | None) -> None:
            if text is not None:
                self._text = text
                self._search_anew()

        self.app.push_screen(TextInput("Show the tasks whose key has this text:", self._text), find)

    def action_filter(self, step: int) -> None:
        self._filter = (self._filter + step) % len(FILTERS)
        self._search_anew()

    def action_next_page(self) -> None:
        if self._page is not None and self._page.next is not None:
            self._positions.append(self._page.next)
            self._page = None
            self.read_again()

    def action_previous_page(self) -> None:
        if len(self._positions) > 1:
            self._positions.pop()
            self.read_again()

    def action_cancel(self) -> None:
        if (view := self._selected()) is None:
            return
        key, run = str(view.task.key), self._run
        if view.state.is_final:
            self.app.notify(on_one_line(f"{key} has ended: {view.state.value}"), markup=False)
            return
        self.top.ask_and_do(f"Cancel task {key}?", lambda: self.top.source.cancel_task(run, key))

    def action_retry(self) -> None:
        if (view := self._selected()) is not None:
            key = str(view.task.key)
            self.top.ask_and_retry(f"Run task {key} again? It runs here, until it has ended.", self._run, (key,))

    def action_priority(self) -> None:
        if (view := self._selected()) is None:
            return
        key, before = str(view.task.key), view.task.priority

        def ask(text: str | None) -> None:
            if text is None:
                return
            try:
                priority = parse_priority(text)
            except InvalidTask as error:
                self.app.notify(on_one_line(str(error)), severity="error", markup=False)
                return
            change = partial(self.top.source.set_priority, self._run, key, priority)
            self.top.ask_and_do(f"Change the priority of task {key} from {before} to {priority}?", change)

        prompt = f"New priority of task {key}; a larger number starts first:"
        self.app.push_screen(TextInput(on_one_line(prompt), str(before)), ask)

    def _search_anew(self) -> None:
        self._positions = [None]
        self.read_again()

    def _selected(self) -> TaskView | None:
        selected = self.query_one("#tasks", ListTable).selected
        tasks = [] if self._page is None else self._page.tasks
        return next((view for view in tasks if str(view.task.key) == selected), None)


def parse_priority(text: str) -> int:
    """Return the priority that was typed. Raise `InvalidTask`."""
    number: object = text.strip()
    with suppress(ValueError):
        number = int(text)
    return Task(key="", command="true", priority=number).priority  # type: ignore[arg-type]
