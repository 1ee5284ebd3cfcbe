"""The pages that people look at: the address, the values and the templates of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from starlette.datastructures import QueryParams

from celeriac.web.page.overview import overview_values
from celeriac.web.page.run import run_values
from celeriac.web.page.runs import runs_values
from celeriac.web.page.task import task_values
from celeriac.web.reads import Reads


class ReadValues(Protocol):
    """Reads the values of a page. `is_live` says that no viewer waits for them."""

    def __call__(self, reads: Reads, given: QueryParams, /, *, is_live: bool) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class View:
    """One page."""

    name: str
    path: str
    values: ReadValues
    live_template: str
    """The parts of the page that change."""

    parameters: tuple[str, ...] = ()
    """The names in an address that choose what it shows. Addresses that differ in others share their reads."""


VIEWS = (
    View("overview", "/", overview_values, "overview_live.html"),
    View("runs", "/runs", runs_values, "runs_live.html", ("text", "state", "before")),
    View("run", "/run", run_values, "run_page_live.html", ("run", "text", "queue", "state", "after", "back")),
    View("task", "/task", task_values, "task_page_live.html", ("run", "key")),
)
