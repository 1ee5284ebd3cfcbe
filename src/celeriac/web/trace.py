"""The trace in which a client makes a request, as W3C's Trace Context writes it into headers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from celeriac.telemetry.trace_context import TRACEPARENT, TRACESTATE, parse_traceparent

STATE = re.compile(r"[\x20-\x7e]{1,512}")  # a longer one may be dropped


def trace_of(traceparents: Sequence[str], tracestates: Sequence[str]) -> Mapping[str, str]:
    """Return TRACEPARENT and TRACESTATE for the headers of a request. What is malformed is ignored, as the standard
    asks."""
    context = parse_traceparent(traceparents[0].strip()) if len(traceparents) == 1 else None
    if context is None:
        return {}
    state = ",".join(tracestates).strip()
    return {TRACEPARENT: str(context)} | ({TRACESTATE: state} if STATE.fullmatch(state) else {})
