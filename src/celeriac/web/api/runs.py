"""The runs of the ledger."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from celeriac.json_types.runs import Run
from celeriac.ledger.fields import run_fields
from celeriac.ledger.views import list_runs
from celeriac.web.api.endpoint import Endpoint, site_of


def get_runs(request: Request) -> Any:
    return [run_fields(view) for view in list_runs(site_of(request).sources.some_ledger, limit=20)]


ENDPOINTS = (
    Endpoint(
        method="GET",
        path="/runs",
        name="runs",
        summary="List runs, the latest first.",
        handler=get_runs,
        result=list[Run],
        errors=(404, 503),
    ),
)
