"""Runs that take too long for every day: `make test-long` and `make test-faults` have them."""

from __future__ import annotations

import os

import pytest

LONG = os.environ.get("CELERIAC_LONG") == "1"
long_run = pytest.mark.skipif(not LONG, reason="it is one of the long runs")


def but_long(*params: object) -> object:
    """Parameters whose run is a long one."""
    return pytest.param(*params, marks=long_run)
