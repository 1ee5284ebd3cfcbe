"""JSON answers, and errors as answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import asdict
from starlette.requests import Request
from starlette.responses import Response

from celeriac.errors import (
    BackendUnavailable,
    BrokerUnavailable,
    CeleriacError,
    InvalidInput,
    LedgerError,
)
from celeriac.runs.job_file import BadJobs, Problem
from celeriac.web.errors import WebError

BUG = "unexpected error, which is a bug of Celeriac; its log has the traceback"
UNAVAILABLE = (LedgerError, BrokerUnavailable, BackendUnavailable)


class JsonAnswer(Response):
    """JSON of any value that msgspec knows. Lone surrogates, which a command line may hold, are escaped."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return encode(content)


def encode(content: Any) -> bytes:
    """Return the JSON of a value."""
    try:
        return msgspec.json.encode(content)
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(content)).encode()


def error_answer(status: int, problem: str, problems: Sequence[Problem] = ()) -> JsonAnswer:
    """Return an error, in the form of `--json`."""
    fields: dict[str, Any] = {"error": problem}
    if problems:
        fields["problems"] = [asdict(each) for each in problems]
    return JsonAnswer(fields, status)


def answer_for(_: Request, error: Exception) -> Response:
    """Return the answer for an error that a route has raised. A bug gets 500."""
    match error:
        case WebError():
            return error_answer(error.status, str(error))
        case BadJobs():
            return error_answer(422, str(error), error.problems)
        case InvalidInput():
            return error_answer(422, str(error))
    if isinstance(error, UNAVAILABLE):
        return error_answer(503, str(error))
    return error_answer(500, BUG)  # Starlette raises the error again, and the gate logs it


HANDLED: tuple[type[Exception], ...] = (WebError, CeleriacError)
