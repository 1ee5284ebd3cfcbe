"""A program: an executor with Airflow's configuration sends two tasks, and beats until standard input ends.

Metrics are configured once in a process, so the tests of metrics need one of their own.
"""

from __future__ import annotations

import sys
import threading
import time

from celeriac.airflow import CeleryExecutor
from tests.airflow import workloads


def main() -> None:
    team = {"team_name": sys.argv[1]} if len(sys.argv) > 1 else {}
    executor = CeleryExecutor(parallelism=8, **team)
    executor.start()
    for name, queue in (("a", "gpu"), ("b", "a b")):
        executor.queue_workload(workloads.task(name, queue=queue), session=None)
    ended = threading.Event()
    threading.Thread(target=end_with_input, args=(ended,)).start()
    while not ended.is_set():
        executor.heartbeat()
        time.sleep(0.05)
    executor.end()


def end_with_input(ended: threading.Event) -> None:
    sys.stdin.read()
    ended.set()


main()
