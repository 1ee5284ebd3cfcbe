"""A table that shows as many columns as fit, keeps its cursor when its rows change, and is sorted by a key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.events import Resize
from textual.widgets import DataTable
from textual.widgets.data_table import RowDoesNotExist

from celeriac.cli.overview_tables import Column, crop, layout

PADDING = 2  # columns that the table adds to each cell
SCROLLBAR = 2
NUMBER = re.compile(r"-?[\d,]+(?:\.\d+)?")
ORDER_SIGNS = {False: "▲", True: "▼"}


class ListTable(DataTable[Text]):
    """Rows of text, each with a name of its own."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "select_cursor", "Open")]

    def __init__(self, columns: Sequence[Column], *, id: str) -> None:
        super().__init__(id=id, cursor_type="row", zebra_stripes=True)
        self._all_columns = columns
        self._rows: Mapping[str, Sequence[str]] = {}
        self._sorted_by: int | None = None
        self._drawn: object = None

    @property
    def selected(self) -> str | None:
        """The name of the row under the cursor."""
        if not self.row_count:
            return None
        return self.coordinate_to_cell_key(self.cursor_coordinate).row_key.value

    @property
    def sorted_by(self) -> str | None:
        """The heading of the column by which the rows are sorted; None in the order of the source."""
        return None if self._sorted_by is None else self._all_columns[self._sorted_by].heading

    def show(self, rows: Mapping[str, Sequence[str]]) -> None:
        """Show these rows, by name."""
        self._rows = rows
        self._draw()

    def on_resize(self, event: Resize) -> None:
        self._draw()

    def sort_next(self) -> None:
        """Sort by the next column; after the last one, keep the order of the source."""
        last = len(self._all_columns) - 1
        self._sorted_by = 0 if self._sorted_by is None else None if self._sorted_by == last else self._sorted_by + 1
        self._draw()

    def _draw(self) -> None:
        width = self.size.width - PADDING - SCROLLBAR
        if width <= 0:
            return
        rows = self._in_order()
        headings = [self._heading(number) for number in range(len(self._all_columns))]
        shown, widths = layout(self._all_columns, [headings, *rows.values()], width)
        drawn = (shown, widths, headings, rows)
        if drawn == self._drawn:
            return
        self._drawn = drawn
        selected, scroll = self.selected, self.scroll_y
        self.clear(columns=True)
        for number in shown:
            column = self._all_columns[number]
            text = Text(crop(headings[number], widths[number]), justify="right" if column.is_right else "left")
            self.add_column(text, width=widths[number], key=column.heading)
        for name, row in rows.items():
            self.add_row(*(self._cell(number, row[number], widths[number]) for number in shown), key=name)
        self._restore(selected, scroll)

    def _restore(self, selected: str | None, scroll: float) -> None:
        if selected is None:
            return
        try:
            self.move_cursor(row=self.get_row_index(selected), animate=False, scroll=False)
        except RowDoesNotExist:
            return
        self.scroll_to(y=scroll, animate=False)

    def _cell(self, number: int, text: str, width: int) -> Text:
        return Text(crop(text, width), justify="right" if self._all_columns[number].is_right else "left", no_wrap=True)

    def _heading(self, number: int) -> str:
        column = self._all_columns[number]
        return f"{column.heading} {ORDER_SIGNS[column.is_right]}" if number == self._sorted_by else column.heading

    def _in_order(self) -> Mapping[str, Sequence[str]]:
        number = self._sorted_by
        if number is None:
            return self._rows
        is_number = self._all_columns[number].is_right
        return dict(
            sorted(self._rows.items(), key=lambda item: sort_value(item[1][number], is_number), reverse=is_number)
        )


def sort_value(text: str, is_number: bool) -> tuple[float, str]:
    """Return the value by which a cell is sorted: its number, or its text. An empty one counts as the least."""
    if not is_number:
        return (0.0, text.casefold())
    match = NUMBER.match(text)
    return (float(match[0].replace(",", "")) if match is not None else float("-inf"), "")
