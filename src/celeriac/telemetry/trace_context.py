"""The place of a task in a trace, as W3C's Trace Context writes it into TRACEPARENT.

The ids of a task's span are derived from the id of the task. So they survive a restart and each retry, and no format
has to store them. A task that continues a trace has the caller's span in its environment.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol

from msgspec import Struct

TRACEPARENT, TRACESTATE = "TRACEPARENT", "TRACESTATE"
FORM = r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
SAMPLED = 0x01


class TraceContext(Struct, frozen=True):
    """One span in one trace."""

    trace: int
    span: int
    is_sampled: bool

    def __str__(self) -> str:
        return f"00-{self.trace:032x}-{self.span:016x}-{SAMPLED if self.is_sampled else 0:02x}"


def parse_traceparent(text: str | None) -> TraceContext | None:
    """Return the span that a TRACEPARENT names; None if it names none."""
    found = re.fullmatch(FORM, text or "")
    if found is None:
        return None
    version, trace, span, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or not int(trace, 16) or not int(span, 16):
        return None
    return TraceContext(int(trace, 16), int(span, 16), bool(int(flags, 16) & SAMPLED))


def variables_in(environment: Mapping[str, str]) -> dict[str, str]:
    """Return TRACEPARENT and TRACESTATE of an environment, if they name a span."""
    if parse_traceparent(environment.get(TRACEPARENT)) is None:
        return {}
    return {name: environment[name] for name in (TRACEPARENT, TRACESTATE) if name in environment}


def ids_of_task(task_id: str, parent: TraceContext | None) -> tuple[int, int]:
    """Return the ids of the trace and of the span of a task: the trace of its parent, or one of its own."""
    digest = digest_of(task_id)
    trace = int.from_bytes(digest[:16]) or 1
    return trace if parent is None else parent.trace, int.from_bytes(digest[16:24]) or 1


def digest_of(task_id: str) -> bytes:
    """Return the digest from which the ids of a task's span are made."""
    from hashlib import sha256  # late: it loads OpenSSL, and most tasks are in no trace

    return sha256(f"celeriac {task_id}".encode()).digest()


def new_trace(task_id: str) -> str:
    """Return the TRACEPARENT of a task that continues no trace and is sampled, with the ids of `ids_of_task`."""
    digest = digest_of(task_id).hex()
    return f"00-{digest[:32]}-{digest[32:48]}-{SAMPLED:02x}"


class TaskTraces(Protocol):
    """A sink of traces, as the executor uses it. No call waits."""

    def caller(self) -> Mapping[str, str]:
        """Return TRACEPARENT and TRACESTATE for the span in which the calling thread is; nothing outside a span."""
        ...

    def variables(self, task_id: str, environment: Mapping[str, str]) -> Mapping[str, str] | None:
        """Return the variables that make the spans of a command children of its task's span. `environment` is the
        task's. None stands for those of `new_trace`, which a worker can make itself: so a message needs not carry
        them."""
        ...
