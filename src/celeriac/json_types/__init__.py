"""The JSON of --json and of the REST interface, as types. `celeriac schema` prints their JSON Schema.

Fields are added within a version; a field that is removed, or means something else, needs the next one. The values of
`state` and `reason` are those of `celeriac.task`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from celeriac.json_types.autoscale import AutoscaleLine
from celeriac.json_types.running import (
    CancelledRun,
    CancelOutput,
    DoctorOutput,
    Drained,
    ExplainOutput,
    PauseOutput,
    Pruned,
    RefusedOutput,
    SetOutput,
    Setting,
    Status,
    StatusChange,
    WorkerCheck,
)
from celeriac.json_types.runs import Error, Event, FailedAttempt, Job, Notice, Run, Schedule, Submitted, Summary, Task

VERSION = 1

OUTPUTS: dict[str, Any] = {
    "autoscale": AutoscaleLine,
    "cancel": CancelOutput,
    "cancel-run": CancelledRun,
    "check": WorkerCheck,
    "config": dict[str, Setting],
    "doctor": DoctorOutput,
    "drain": Drained,
    "error": Error,
    "event": Event,
    "explain": ExplainOutput,
    "job": Job,
    "logs": FailedAttempt,
    "notice": Notice,
    "pause": PauseOutput,
    "prune": Pruned,
    "refused": RefusedOutput,
    "resume": PauseOutput,
    "retry": Summary,
    "run": Summary,
    "runs": list[Run],
    "schedules": list[Schedule],
    "set": SetOutput,
    "show": Task,
    "status": Status,
    "submit": Submitted,
    "watch": StatusChange,
}
"""The types by name: the name of the command, or of what it prints with some options."""


def schema_of(name: str) -> dict[str, Any]:
    """Return the JSON Schema of an output. It allows unknown fields: a later Celeriac may add some."""
    schema = msgspec.json.schema(OUTPUTS[name])
    allow_unknown_fields(schema)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:celeriac:json:{name}:{VERSION}",
        "x-version": VERSION,
        **schema,
    }


def allow_unknown_fields(schema: Any) -> None:
    """Remove the rule that an object has no other fields."""
    if isinstance(schema, dict):
        if schema.get("additionalProperties") is False:
            del schema["additionalProperties"]
        for value in schema.values():
            allow_unknown_fields(value)
    elif isinstance(schema, list):
        for value in schema:
            allow_unknown_fields(value)
