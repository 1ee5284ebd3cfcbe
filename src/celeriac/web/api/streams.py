"""Changes as server-sent events: each viewer gets the present state at once, and then each new one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.responses import StreamingResponse

from celeriac.ledger.fields import run_fields, task_view_fields
from celeriac.web.answers import encode
from celeriac.web.api.endpoint import Call, Endpoint
from celeriac.web.api.runs import DEFAULT_RUNS, statistics_fields
from celeriac.web.errors import BadValue, TooBusy
from celeriac.web.poller import Poller, Read, Viewer
from celeriac.web.reads import Reads

KEEP_ALIVE = 15.0  # seconds between two comments that keep proxies from closing the connection


class ChangesQuery(msgspec.Struct, forbid_unknown_fields=True):
    """The things to watch."""

    runs: Annotated[bool, Meta(description="The latest runs, as events `runs`.")] = False
    broker: Annotated[bool, Meta(description="The queues and workers, as events `broker`.")] = False
    run: Annotated[str | None, Meta(description="This run, as events `run` and `statistics`.")] = None
    key: Annotated[str | None, Meta(description="This task of the run, as events `task`.")] = None


def read_runs(reads: Reads) -> bytes:
    return encode([run_fields(view) for view in reads.runs(limit=DEFAULT_RUNS)])


def read_broker(reads: Reads) -> bytes:
    return encode(reads.broker())


def read_run(reads: Reads, name: str) -> bytes:
    return encode(run_fields(reads.run(name)))


def read_run_statistics(reads: Reads, name: str) -> bytes:
    statistics = reads.statistics(name)
    return encode(None if statistics is None else statistics_fields(name, statistics))


def read_task(reads: Reads, name: str, key: str) -> bytes:
    return encode(task_view_fields(reads.task(name, key)[1]))


def topics_of(reads: Reads, query: ChangesQuery) -> dict[str, tuple[str, Read]]:
    """Return, by the name of its events, each topic: its own name, and the function that reads it. Raises `NotFound`
    and `BadValue`."""
    topics: dict[str, tuple[str, Read]] = {}
    if query.runs:
        reads.sources.some_ledger  # noqa: B018 - raises
        topics["runs"] = ("runs", partial(read_runs, reads))
    if query.broker:
        reads.sources.some_connection  # noqa: B018 - raises
        topics["broker"] = ("broker", partial(read_broker, reads))
    if query.run is not None and query.key is None:
        reads.run(query.run, wait=False)
        topics["run"] = (f"run {query.run}", partial(read_run, reads, query.run))
        topics["statistics"] = (f"statistics {query.run}", partial(read_run_statistics, reads, query.run))
    if query.run is not None and query.key is not None:
        reads.task(query.run, query.key)
        topics["task"] = (f"task {query.run}\0{query.key}", partial(read_task, reads, query.run, query.key))
    if not topics:
        raise BadValue("query: nothing is named; give runs=true, broker=true, a run, or a run and a key")
    return topics


def get_changes(poller: Poller, call: Call) -> Any:
    return stream(poller, topics_of(call.reads, call.query))


def stream(poller: Poller, topics: dict[str, tuple[str, Read]]) -> StreamingResponse:
    """Return the response with the events of these topics. Raises `TooBusy`."""
    poller.check_room(name for name, _ in topics.values())
    return StreamingResponse(changes(poller, topics), media_type="text/event-stream")


async def changes(poller: Poller, topics: dict[str, tuple[str, Read]]) -> AsyncIterator[bytes]:
    """Yield the events of the topics until the viewer has gone, or the server ends."""
    loop, changed = asyncio.get_running_loop(), asyncio.Event()

    def notify() -> None:
        loop.call_soon_threadsafe(changed.set)

    watched: dict[str, Viewer] = {}
    try:
        for event, (name, read) in topics.items():
            watched[event] = poller.watch(name, read, notify)
        yield b": watching\n\n"
        while not poller.has_ended:
            changed.clear()
            for event, viewer in watched.items():
                if (news := viewer.take_news()) is not None:
                    yield b"event: " + event.encode() + b"\ndata: " + news + b"\n\n"
            try:
                async with asyncio.timeout(KEEP_ALIVE):
                    await changed.wait()
            except TimeoutError:
                yield b": still here\n\n"
    except TooBusy:  # others came between: the client asks again
        return
    finally:
        for viewer in watched.values():
            poller.leave(viewer)


def endpoints(poller: Poller) -> tuple[Endpoint, ...]:
    return (
        Endpoint(
            method="GET",
            path="/changes",
            name="changes",
            summary="Watch runs, a run, a task, or the broker: server-sent events with the same JSON as above.",
            handler=partial(get_changes, poller),
            query=ChangesQuery,
            media_type="text/event-stream",
            errors=(400, 404),
        ),
    )
