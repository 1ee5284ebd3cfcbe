"""Hypothesis profiles: few examples by default, many with CELERIAC_LONG=1."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("short", max_examples=40, stateful_step_count=50, deadline=None, print_blob=True)
settings.register_profile("long", max_examples=1_000, stateful_step_count=100, deadline=None, print_blob=True)
settings.load_profile("long" if os.environ.get("CELERIAC_LONG") == "1" else "short")
