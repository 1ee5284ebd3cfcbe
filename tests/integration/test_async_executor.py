"""`AsyncExecutor` with real commands: results, cancelled waits, events, and the end of the block."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import BrokenExecutor
from pathlib import Path

import pytest

from celeriac import AsyncExecutor, Cluster, Event, Result, State, TaskFuture
from celeriac.errors import InvalidTask, LedgerLost
from celeriac.ledger import MemoryLedger
from tests.support.cli_runner import WAIT_TIMEOUT
from tests.support.workers import worker


def output(result: Result) -> str:
    assert result.execution is not None
    return result.execution.stdout.tail


async def exists(path: Path) -> None:
    async with asyncio.timeout(WAIT_TIMEOUT):
        while not path.exists():
            await asyncio.sleep(0.01)


async def collect(events: AsyncIterator[Event]) -> list[Event]:
    return [event async for event in events]


def test_results_are_awaited():
    async def main() -> list[str]:
        async with AsyncExecutor(parallelism=2) as executor:
            results = await asyncio.gather(*(executor.submit(["echo"], str(n)) for n in range(5)))
            return [output(result) for result in results]

    assert asyncio.run(main()) == [f"{n}\n" for n in range(5)]


def test_the_end_of_the_block_awaits_all_tasks(tmp_path):
    async def main() -> None:
        async with AsyncExecutor(parallelism=1) as executor:
            for n in range(3):
                executor.submit(f"sleep 0.1; echo {n} >> {tmp_path / 'log'}")

    asyncio.run(main())
    assert (tmp_path / "log").read_text().split() == ["0", "1", "2"]


def test_the_event_loop_runs_while_the_end_is_awaited():
    async def main() -> int:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        async with AsyncExecutor(parallelism=1) as executor:
            executor.submit("sleep 0.5")
        ticking.cancel()
        return ticks

    assert asyncio.run(main()) > 1


def test_a_timeout_ends_the_command(tmp_path):
    async def main() -> TaskFuture:
        async with AsyncExecutor(parallelism=1) as executor:
            future = executor.futures.submit(f"touch {tmp_path / 'begun'}; sleep 600", key="a")
            await exists(tmp_path / "begun")
            future.revoke()
            await asyncio.wrap_future(future)
            waiting = executor.submit(f"touch {tmp_path / 'second'}; sleep 600")
            await exists(tmp_path / "second")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(waiting, 0.05)
            return future

    assert asyncio.run(main()).result(0).state is State.REVOKED


def test_a_cancelled_wait_keeps_a_task_from_starting(tmp_path):
    async def main() -> None:
        async with AsyncExecutor(parallelism=1) as executor:
            executor.submit(f"touch {tmp_path / 'begun'}; while [ ! -e {tmp_path / 'go'} ]; do sleep 0.02; done")
            await exists(tmp_path / "begun")
            second = asyncio.create_task(await_command(executor, f"touch {tmp_path / 'second'}"))
            await asyncio.sleep(0)
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            (tmp_path / "go").touch()

    asyncio.run(main())
    assert not (tmp_path / "second").exists()


async def await_command(executor: AsyncExecutor, command: str) -> None:
    await executor.submit(command)


def test_an_exception_in_the_block_ends_all_tasks(tmp_path):
    async def main() -> None:
        async with AsyncExecutor(parallelism=1) as executor:
            executor.submit(f"touch {tmp_path / 'begun'}; sleep 600")
            executor.submit(f"touch {tmp_path / 'never'}")
            await exists(tmp_path / "begun")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(main())
    assert not (tmp_path / "never").exists()


def test_a_cancelled_end_of_the_block_ends_all_tasks(tmp_path):
    async def block() -> None:
        async with AsyncExecutor(parallelism=1) as executor:
            executor.submit(f"touch {tmp_path / 'begun'}; sleep 600")

    async def main() -> None:
        task = asyncio.create_task(block())
        await exists(tmp_path / "begun")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_events_are_iterated_until_the_end():
    async def main() -> list[Event]:
        async with AsyncExecutor(parallelism=2) as executor:
            events = asyncio.create_task(collect(executor.events()))
            await asyncio.sleep(0)
            for key in "abc":
                executor.submit("true", key=key)
        return await events

    events = asyncio.run(main())
    states = {key: [event.state for event in events if event.key == key] for key in "abc"}
    assert states == {key: [State.QUEUED, State.RUNNING, State.SUCCESS] for key in "abc"}


def test_several_readers_see_all_events_and_a_late_one_ends_at_once():
    async def main() -> tuple[Counter[State], Counter[State], list[Event]]:
        executor = AsyncExecutor(parallelism=1)
        one, other = executor.events(), executor.events()
        dropped = executor.events()
        del dropped
        await executor.submit("true")
        await executor.shutdown()
        late = executor.events()
        states = [Counter(event.state for event in await collect(each)) for each in (one, other)]
        return states[0], states[1], await collect(late)

    one, other, late = asyncio.run(main())
    assert one == other == Counter([State.QUEUED, State.RUNNING, State.SUCCESS])
    assert late == []


def test_an_iterator_that_has_ended_stays_ended():
    async def main() -> None:
        async with AsyncExecutor(parallelism=1) as executor:
            events = executor.events()
        assert await collect(events) == await collect(events) == []

    asyncio.run(main())


def test_a_wrong_task_is_refused_at_once():
    async def main() -> None:
        async with AsyncExecutor(parallelism=1) as executor:
            with pytest.raises(InvalidTask):
                executor.submit("")

    asyncio.run(main())


def test_a_failed_executor_ends_the_wait_and_the_events(monkeypatch):
    ledger = MemoryLedger()

    def refuse(_: object) -> None:
        raise LedgerLost("sqlite:///x", "belongs to another executor")

    async def main() -> list[Event]:
        async with AsyncExecutor(parallelism=1, ledger=ledger) as executor:
            events = executor.events()
            monkeypatch.setattr(ledger, "write", refuse)
            with pytest.raises(BrokenExecutor, match="cannot go on"):
                await executor.submit("true")
        return await collect(events)

    assert asyncio.run(main()) == []


def test_commands_run_on_a_worker_elsewhere(tmp_path, shared_redis):
    async def main() -> list[str]:
        with Cluster(shared_redis.url) as cluster:
            async with AsyncExecutor(cluster=cluster) as executor:
                results = await asyncio.gather(*(executor.submit(["echo"], str(n)) for n in range(5)))
        return [output(result) for result in results]

    with worker(tmp_path, (shared_redis.url, shared_redis.url)):
        assert asyncio.run(main()) == [f"{n}\n" for n in range(5)]
