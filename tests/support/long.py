"""Tell whether this is a long run: `make test-long` and `make test-faults` set CELERIAC_LONG=1.

Tests that only a long run has bear the marker `slow`; tests with more rounds in a long run read `LONG`.
"""

from __future__ import annotations

import os

import pytest

LONG = os.environ.get("CELERIAC_LONG") == "1"


def slow(*params: object) -> object:
    """Return parameters of a test that only a long run uses."""
    return pytest.param(*params, marks=pytest.mark.slow)
