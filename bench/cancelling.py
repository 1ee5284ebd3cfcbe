"""Measure how long it takes to end 100 tasks that ignore TERM, with children that ignore it, too."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from bench.crew import Driver, Place, cluster_at, crew
from bench.table import Row, at_most
from celeriac import State

TASKS, WORKERS = 100, 2
GRACE = 3.0  # seconds from TERM to KILL
BEYOND = 1.0  # seconds beyond the grace period that it may take
COMMAND = """
trap '' TERM
sh -c 'sleep 600 & echo $CELERIAC_KEY $$ $! >> {file}; wait' &
echo $CELERIAC_KEY $$ $! >> {file}
wait
"""


def cancelling(place: Place) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="celeriac-bench-") as folder:
        file = Path(folder) / "pids"
        file.touch()
        with crew(place, "cancel", WORKERS, TASKS // WORKERS), cluster_at(place) as cluster:
            driver = Driver(cluster)
            for n in range(TASKS):
                driver.executor.queue_command(str(n), COMMAND.format(file=file), queue="cancel", grace=GRACE)
            driver.drive(
                lambda: len(lines(file)) == 2 * TASKS and driver.executor.stats().tasks_running == TASKS,
                "tasks that run",
            )
            pids = pids_by_key(file)
            took, early, ends = cancel_all(driver, pids)
    said = f"{took:.2f} s beyond {GRACE:g} s grace; {ends} REVOKED, {early} of them before its last process was dead"
    what = f"{TASKS} tasks that ignore TERM, with children, revoked, until {sum(map(len, pids.values()))} are dead"
    reached = at_most(took, BEYOND) if early == 0 and ends == TASKS else 0.0
    return [Row(f"{what}: {place.name}", said, "", "", f"{BEYOND:g} s", reached)]


def cancel_all(driver: Driver, pids: dict[str, set[int]]) -> tuple[float, int, int]:
    """Return the seconds beyond the grace period, the number of events that came too early, and of all."""
    told = early = 0
    dead_at = None
    moment = time.monotonic()
    for key in pids:
        driver.executor.revoke_task(key)

    def look() -> bool:
        nonlocal told, early, dead_at
        new = driver.ends[told:]
        told += len(new)
        early += sum(any(map(lives, pids[str(event.key)])) for event in new)
        if dead_at is None and not any(lives(pid) for one in pids.values() for pid in one):
            dead_at = time.monotonic()
        return dead_at is not None and told == len(pids)

    driver.drive(look, "the end of all of it")
    assert dead_at is not None
    return dead_at - moment - GRACE, early, sum(event.state is State.REVOKED for event in driver.ends)


def pids_by_key(file: Path) -> dict[str, set[int]]:
    pids: dict[str, set[int]] = {}
    for key, *each in lines(file):
        pids.setdefault(key, set()).update(map(int, each))
    return pids


def lines(file: Path) -> list[list[str]]:
    return [line.split() for line in file.read_text().splitlines()]


def lives(pid: int) -> bool:
    """Return whether a process lives. A zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
