"""Result readers that are closed when a test ends: a module that uses them imports `close_readers`, too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from celery import Celery

from celeriac.backend.results.one_by_one import OneByOneResults

READERS = ExitStack()


def one_by_one_reader(app: Celery, *, timeout: float) -> OneByOneResults:
    """Return a reader. `timeout`, in seconds, bounds one `read`."""
    return READERS.enter_context(OneByOneResults(app, timeout=timeout))


@pytest.fixture(autouse=True)
def close_readers() -> Iterator[None]:
    with READERS:
        yield
