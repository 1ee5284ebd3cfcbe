"""Hypothesis profiles: few examples by default, many with CELERIAC_LONG=1."""

from __future__ import annotations

import os

import celery
import kombu
from hypothesis import settings

settings.register_profile("short", max_examples=40, stateful_step_count=50, deadline=None, print_blob=True)
settings.register_profile("long", max_examples=1_000, stateful_step_count=100, deadline=None, print_blob=True)
settings.load_profile("long" if os.environ.get("CELERIAC_LONG") == "1" else "short")


def pytest_report_header() -> str:
    return f"Celery {celery.__version__}, Kombu {kombu.__version__}"
