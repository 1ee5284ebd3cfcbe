"""Checks of each broker of a list. The broker that is used is examined besides."""

from __future__ import annotations

from celery import Celery

from celeriac.broker.broker_list import connect
from celeriac.config.masking import masked
from celeriac.doctor.check import Subject
from celeriac.doctor.server import LOGIN_CHECK, REACHABLE, WRITABLE, ServerFacts, attempt

CHECKS = (REACHABLE, LOGIN_CHECK, WRITABLE)


def read_broker(app: Celery, url: str, timeout: float) -> ServerFacts:
    """Connect to one broker of the app's list."""
    return ServerFacts(error=attempt(lambda: connect(app, url, timeout=timeout).collect()))


def one_of_several_subject(app: Celery, url: str, timeout: float) -> Subject[ServerFacts]:
    return Subject(f"one of several brokers: {masked(url)}", lambda: read_broker(app, url, timeout), CHECKS)
