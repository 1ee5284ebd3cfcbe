"""Measure what a lease costs its store, and how soon tasks of a dead or stopped worker run elsewhere."""

from __future__ import annotations

import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from redis import Redis
from tests.support.servers import PostgresServer, RedisServer

from bench.crew import Driver, Place, Worker, cluster_at, crew
from bench.table import Row, at_most
from celeriac.config.lease import RENEWAL_INTERVAL

RUNNING = (1, 64)  # tasks, while writes are counted
WINDOW = 10 * RENEWAL_INTERVAL  # seconds of counting
WRITES = ("evalsha", "hset", "hincrby", "sadd", "expire", "set")  # commands of Redis that a renewal may need
STATISTICS_LATE = 10.0  # seconds until an idle session of PostgreSQL reports its statistics
TASKS = 4  # that a worker runs when it dies
DEATH, GOING = 15.0, 2.0  # seconds that the tasks may take to run elsewhere, in every round
GRACE = 2.0  # seconds, for workers that shut down


# — writes —


def writes_on_redis(server: RedisServer) -> list[Row]:
    def count() -> dict[str, int]:
        with Redis(port=server.port) as client:
            stats = client.info("commandstats")
        return {name: stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in WRITES}

    def told(each: dict[str, float]) -> str:
        within = ", ".join(f"{each[name]:.1f} {name}" for name in WRITES[1:] if each[name] > 0.05)
        return f"{each['evalsha']:.2f} scripts, in them {within}"

    place = Place("Redis", server.url, server.url)
    return [writes(place, running, count, told, "evalsha") for running in RUNNING]


def writes_on_postgres(server: PostgresServer, broker: str) -> list[Row]:
    tables = ("celeriac_lease", "celeriac_claim", "celery_taskmeta")

    def count() -> dict[str, int]:
        rows = server.sql("SELECT relname, n_tup_ins + n_tup_upd + n_tup_del FROM pg_stat_user_tables")
        found = dict(rows)
        return {name: found.get(name, 0) for name in tables}

    def told(each: dict[str, float]) -> str:
        return ", ".join(f"{each[name]:.2f} in {name}" for name in tables)

    place = Place("PostgreSQL", broker, server.url)
    settling = STATISTICS_LATE + RENEWAL_INTERVAL
    return [writes(place, running, count, told, tables[0], settling) for running in RUNNING]


def writes(
    place: Place,
    running: int,
    count: Callable[[], dict[str, int]],
    told: Callable[[dict[str, float]], str],
    renewals: str,
    settling: float = 2 * RENEWAL_INTERVAL,
) -> Row:
    """`settling`, in seconds, is the time before the counting begins."""
    queue = f"writes-{running}"
    with crew(place, queue, 1, max(RUNNING)):
        with cluster_at(place) as cluster:
            driver = Driver(cluster)
            for n in range(running):
                driver.executor.queue_command(n, "sleep 600", queue=queue)
            driver.drive(lambda: driver.executor.stats().tasks_running == running, "tasks that run")
        time.sleep(settling)
        before = count()
        time.sleep(WINDOW)
        after = count()
    each = {name: (after[name] - before[name]) * RENEWAL_INTERVAL / WINDOW for name in after}
    what = f"writes of one worker every {RENEWAL_INTERVAL:g} s, while it runs {running} tasks: {place.name}"
    return Row(what, told(each), "", "", "1", at_most(each[renewals], 1.1))


# — the end of a worker —


def deaths(place: Place, rounds: int) -> list[Row]:
    took = [one_end(place, f"death-{n}", "30", kill) for n in range(rounds)]
    return [row(f"`kill -9` of a worker with {TASKS} tasks, until they run elsewhere: {place.name}", took, DEATH)]


def goings(place: Place, rounds: int) -> list[Row]:
    at_once = [one_end(place, f"going-{n}", "0", terminate) for n in range(rounds)]
    later = [one_end(place, f"grace-{n}", f"{GRACE:g}", terminate) for n in range(rounds)]
    what = f"TERM to a worker with {TASKS} tasks"
    return [
        row(f"{what} and no grace, until they run elsewhere: {place.name}", at_once, GOING),
        row(f"{what}, from the end of {GRACE:g} s grace: {place.name}", [seconds - GRACE for seconds in later], GOING),
    ]


def kill(worker: Worker) -> None:
    worker.process.kill()


def terminate(worker: Worker) -> None:
    worker.process.send_signal(signal.SIGTERM)


def one_end(place: Place, queue: str, grace: str, end: Callable[[Worker], None]) -> float:
    """Return the seconds until the last of the worker's tasks has started on another one."""
    with tempfile.TemporaryDirectory(prefix="celeriac-bench-") as folder, cluster_at(place) as cluster:
        file = Path(folder) / "begun"
        file.touch()
        driver = Driver(cluster)
        with crew(place, queue, 1, TASKS, "--grace", grace) as (first,):
            command = f"echo $CELERIAC_KEY $CELERIAC_ATTEMPT $(date +%s.%N) >> {file}; exec sleep 600"
            for n in range(TASKS):
                driver.executor.queue_command(n, command, queue=queue)
            driver.drive(lambda: len(begun(file)) == driver.executor.stats().tasks_running == TASKS, "tasks that run")
            with crew(place, queue, 1, TASKS):
                moment = time.time()
                end(first)
                driver.drive(lambda: len(begun(file)) >= 2 * TASKS, "tasks that run elsewhere")
                elsewhere = begun(file)[TASKS:]
    if sorted(key for key, _, _ in elsewhere) != [str(n) for n in range(TASKS)]:
        raise RuntimeError(f"not each task ran once more: {elsewhere}")
    return max(float(at) for _, _, at in elsewhere) - moment


def begun(file: Path) -> list[list[str]]:
    """Return key, attempt and moment of each start, in order."""
    return [line.split() for line in file.read_text().splitlines()]


def row(what: str, took: list[float], bar: float) -> Row:
    told = f"{statistics.median(took):.1f} s (longest {max(took):.1f} s in {len(took)} rounds)"
    return Row(what, told, "", "", f"{bar:g} s", at_most(max(took), bar))
