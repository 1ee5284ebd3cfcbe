"""The errors of a request, with their HTTP status."""

from __future__ import annotations


class WebError(Exception):
    """A request that cannot be answered."""

    status = 400


class TooBusy(WebError):
    """The server does as much as it may already."""

    status = 503


class BadRequest(WebError):
    """A request that cannot be parsed."""


class NotFound(WebError):
    """There is no such run, task, worker or source."""

    status = 404


class Conflict(WebError):
    """The state of a run or a task does not allow the change."""

    status = 409


class TooLarge(WebError):
    """The body has too many bytes."""

    status = 413


class WrongMediaType(WebError):
    """The body is not of a type that the endpoint reads."""

    status = 415


class BadValue(WebError):
    """A value that is wrong."""

    status = 422
