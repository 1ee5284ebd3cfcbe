"""The first screen: queues, workers and runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import DataTable, Footer, Static

from celeriac.cli.formatting import format_time
from celeriac.cli.overview_tables import (
    QUEUE_COLUMNS,
    RUN_COLUMNS,
    WORKER_COLUMNS,
    queue_rows,
    run_row,
    unserved_warnings,
    worker_row,
)
from celeriac.cli.top_view.base_screen import LiveScreen
from celeriac.cli.top_view.list_table import ListTable
from celeriac.cli.top_view.run_screen import RunScreen
from celeriac.errors import on_one_line
from celeriac.ledger.views import RunState, RunView
from celeriac.runs.overview import Overview

if TYPE_CHECKING:
    from celeriac.cli.top_view.app import TopApp


class OverviewScreen(LiveScreen):
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark", "keys", "Keys", key_display="?"),
        Binding("tab", "app.focus_next", "Next table"),
        Binding("c", "cancel", "Cancel"),
        Binding("r", "retry", "Retry"),
        Binding("d", "drain", "Drain"),
        Binding("s", "sort", "Sort"),
    ]

    def __init__(self, top: TopApp) -> None:
        super().__init__(top)
        self._overview: Overview | None = None

    def compose(self) -> ComposeResult:
        yield Static(id="facts", classes="facts")
        yield ListTable(QUEUE_COLUMNS, id="queues")
        yield ListTable(WORKER_COLUMNS, id="workers")
        yield ListTable(RUN_COLUMNS, id="runs")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        super().on_mount()
        self.query_one("#facts", Static).update(Text("reading …"))
        has_broker, has_ledger = self.top.source.has_broker, self.top.source.has_ledger
        self.query_one("#queues").display = self.query_one("#workers").display = has_broker
        self.query_one("#runs").display = has_ledger
        self.query_one("#runs" if has_ledger else "#workers").focus()

    async def read_and_show(self) -> None:
        self._overview = overview = await self.top.call(self.top.source.overview)
        status, runs = overview.status, overview.runs
        facts = Text(f"celeriac  {format_time(overview.when).partition(' ')[2]}", "bold")
        for problem in overview.problems:
            facts.append(f"\n{on_one_line(problem)}", "bold red")
        if status is not None:
            for warning in unserved_warnings(status):
                facts.append(f"\n{warning}", "yellow")
            queues = {queue.name: row for queue, row in zip(status.queues, queue_rows(status), strict=True)}
            self.query_one("#queues", ListTable).show(queues)
            workers = {worker.name: worker_row(worker, overview.keys) for worker in status.workers}
            self.query_one("#workers", ListTable).show(workers)
        if runs is not None:
            self.query_one("#runs", ListTable).show({line.view.name: run_row(line) for line in runs})
        self.query_one("#facts", Static).update(facts)

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        self.action_open()

    def action_open(self) -> None:
        if (run := self._selected_run()) is not None:
            self.app.push_screen(RunScreen(self.top, run))

    def action_cancel(self) -> None:
        if (run := self._selected_run()) is None:
            return
        if run.state is RunState.ENDED:
            self.app.notify(f"run {run.name} has ended", markup=False)
            return
        question = f"Cancel all tasks of run {run.name} that have not ended?"
        self.top.ask_and_do(question, lambda: self.top.source.cancel_run(run))

    def action_retry(self) -> None:
        if (run := self._selected_run()) is not None:
            question = f"Run the tasks of {run.name} again that did not succeed? They run here, until they have ended."
            self.top.ask_and_retry(question, run, ())

    def action_drain(self) -> None:
        table = self.query_one("#workers", ListTable)
        if not table.has_focus or (worker := table.selected) is None:
            self.app.notify("select a worker first: Tab goes to the next table")
            return
        question = f"Drain worker {worker}? It finishes its tasks, takes nothing more, and stops."
        self.top.ask_and_do(question, lambda: self.top.source.drain(worker))

    def _selected_run(self) -> RunView | None:
        table = self.query_one("#runs", ListTable)
        if not table.has_focus or self._overview is None:
            self.app.notify("select a run first: Tab goes to the next table")
            return None
        lines = self._overview.runs or ()
        return next((line.view for line in lines if line.view.name == table.selected), None)
