"""The errors of a request, with their HTTP status."""

from __future__ import annotations


class WebError(Exception):
    """A request that cannot be answered. `status` is that of HTTP."""

    status = 400


class NotFound(WebError):
    status = 404


class Conflict(WebError):
    """The state of a run or a task does not allow the change."""

    status = 409
