"""The parts of `celeriac top`, driven by textual's own pilot: tables, questions, keys and colours."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from rich.text import Text
from textual.app import App, ComposeResult
from textual.pilot import Pilot
from textual.widgets import Footer, Static

from celeriac.cli.overview_tables import Column
from celeriac.cli.top_view.app import DARK, LIGHT, TopApp
from celeriac.cli.top_view.dialogs import Question, TextInput
from celeriac.cli.top_view.list_table import ListTable, sort_value
from celeriac.cli.top_view.source import Source, Tail
from celeriac.cli.top_view.task_screen import append_tail
from celeriac.config.settings import read_settings

COLUMNS = (Column("name"), Column("tasks", is_right=True), Column("note", drop=1))
ROWS = {"a": ("[red]a[/]", "1,000", "x" * 50), "b": ("b", "9", ""), "c": ("c", "20.5 s", "")}


class TableApp(App[None]):
    """An application with one table."""

    def compose(self) -> ComposeResult:
        yield ListTable(COLUMNS, id="table")


def drive(app: App[Any], steps: Callable[[Pilot[Any]], Awaitable[None]], *, size: tuple[int, int] = (80, 24)) -> None:
    async def run() -> None:
        async with app.run_test(size=size) as pilot:
            await steps(pilot)

    asyncio.run(run())


def cells(table: ListTable) -> list[list[str]]:
    return [[str(cell) for cell in table.get_row_at(row)] for row in range(table.row_count)]


def test_a_table_keeps_its_cursor_when_rows_come_and_go_and_shows_markup_as_text():
    async def steps(pilot: Pilot[Any]) -> None:
        table = pilot.app.query_one(ListTable)
        table.focus()
        table.show(ROWS)
        await pilot.press("down", "down")
        assert table.selected == "c"
        table.show({"new": ("new", "1", ""), **ROWS})
        await pilot.pause()
        assert table.selected == "c"
        assert cells(table)[1][0] == "[red]a[/]"
        table.show({})
        await pilot.pause()
        assert table.selected is None

    drive(TableApp(), steps)


def test_a_table_is_sorted_by_one_column_after_the_other():
    async def steps(pilot: Pilot[Any]) -> None:
        table = pilot.app.query_one(ListTable)
        table.show({"c": ROWS["c"], **ROWS})
        await pilot.pause()
        orders = []
        for _ in range(len(COLUMNS) + 1):
            table.sort_next()
            await pilot.pause()
            orders.append([row[0] for row in cells(table)])
        assert orders[0] == ["[red]a[/]", "b", "c"]
        assert orders[1] == ["[red]a[/]", "c", "b"]
        assert orders[3] == ["c", "[red]a[/]", "b"]

    drive(TableApp(), steps)
    assert sort_value("", is_number=True) < sort_value("-3", is_number=True) < sort_value("1,000.5", is_number=True)


@pytest.mark.parametrize(("width", "columns"), [(80, 3), (24, 2)])
def test_a_table_shows_the_columns_that_fit(width, columns):
    async def steps(pilot: Pilot[Any]) -> None:
        table = pilot.app.query_one(ListTable)
        table.show({"a": ("a-long-name-of-a-run", "1,000", "a note")})
        await pilot.pause()
        assert len(table.columns) == columns
        assert table.virtual_size.width <= width
        assert cells(table)[0][1] == "1,000"

    drive(TableApp(), steps, size=(width, 24))


@pytest.mark.parametrize(("key", "answer"), [("y", True), ("n", False), ("escape", False)])
def test_a_question_is_answered_by_a_key(key, answer):
    answers: list[bool | None] = []

    async def steps(pilot: Pilot[Any]) -> None:
        pilot.app.push_screen(Question("[red]Cancel?[/]"), answers.append)
        await pilot.pause()
        assert "[red]Cancel?[/]" in str(pilot.app.screen.query(Static).first().render())
        await pilot.press(key)
        await pilot.pause()

    drive(TableApp(), steps)
    assert answers == [answer]


def test_a_text_is_entered_or_left():
    answers: list[str | None] = []

    async def steps(pilot: Pilot[Any]) -> None:
        for keys in (("b", "enter"), ("enter",), ("escape",)):
            pilot.app.push_screen(TextInput("Which?", "a"), answers.append)
            await pilot.pause()
            await pilot.press(*keys)
            await pilot.pause()

    drive(TableApp(), steps)
    assert answers == ["b", "a", None]


def test_the_footer_names_the_keys_and_the_colours_change(tmp_path):
    settings = read_settings({"ledger": str(tmp_path / "ledger.db")}, environment={})
    app = TopApp(Source(settings, with_ledger=False, config=None), interval=60.0, is_light=True)

    async def steps(pilot: Pilot[Any]) -> None:
        await pilot.pause()
        assert pilot.app.theme == LIGHT
        await pilot.press("t")
        assert pilot.app.theme == DARK
        assert pilot.app.screen.query(Footer)
        await pilot.press("question_mark")
        await pilot.pause()
        shown = str(pilot.app.screen.query(Static).first().render())
        assert {"c: Cancel", "d: Drain", "r: Retry", "s: Sort"} <= {*shown.splitlines()}
        assert ": Quit" in shown
        await pilot.press("x")
        await pilot.press("q")

    drive(app, steps)


def test_output_is_shown_without_what_moves_the_cursor():
    body = Text()
    append_tail(body, Tail(stream="stdout", lines=["\x1b[2J[bold]a\tb"], note="the last 9"))
    assert body.plain == "\n\nstdout (the last 9)\n\\x1b[2J[bold]a     b"
    empty = Text()
    append_tail(empty, Tail(stream="stderr", lines=[]))
    assert empty.plain == ""
