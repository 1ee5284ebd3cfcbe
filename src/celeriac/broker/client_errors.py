"""Classify the errors of one broker's client, also of a broker that `celeriac.server_errors` does not know."""

from __future__ import annotations

from typing import Any

from celeriac.server_errors import ServerProblem, problem_of

KNOWN_DRIVERS = ("redis", "amqp")


class ClientErrors:
    """The errors that the client of one broker raises."""

    def __init__(self, never_opened: Any) -> None:
        """`never_opened` is a connection to the broker. Only its transport's lists of errors are read."""
        errors = (*never_opened.connection_errors, *never_opened.channel_errors)
        # Kombu lists KeyError for its own poller, and redis-py's DataError, which is an error of the message.
        self._errors = tuple(error for error in errors if error is not KeyError and error.__name__ != "DataError")
        is_known = never_opened.transport.driver_type in KNOWN_DRIVERS
        self._default = ServerProblem.REFUSED if is_known else ServerProblem.UNREACHABLE

    def problem_of(self, error: BaseException) -> ServerProblem | None:
        """Return what an error means; None if it is not an error of the broker.

        An unknown reply of Redis or RabbitMQ counts as a refusal. An unknown error of another broker counts as an
        outage.
        """
        problem = problem_of(error)
        return self._default if problem is None and isinstance(error, self._errors) else problem
