"""The queues and the workers of the broker."""

from __future__ import annotations

from typing import Any

from celeriac.json_types.running import Queue, Worker
from celeriac.web.api.endpoint import Call, Endpoint


def get_queues(call: Call) -> Any:
    return call.reads.broker().queues


def get_workers(call: Call) -> Any:
    return call.reads.broker().workers


ENDPOINTS = (
    Endpoint(
        method="GET",
        path="/queues",
        name="queues",
        summary="List the queues: how many tasks wait, for how long, and how many run at once.",
        handler=get_queues,
        result=list[Queue],
        errors=(404,),
    ),
    Endpoint(
        method="GET",
        path="/workers",
        name="workers",
        summary="List the workers: what they serve, how many tasks they run, and the age of their last heartbeat.",
        handler=get_workers,
        result=list[Worker],
        errors=(404,),
    ),
)
