"""`LocalCluster` as a library: several clusters in this process."""

from __future__ import annotations

import time

import psutil
import pytest

from celeriac import CeleryExecutor, Config, Event, LocalCluster, Secret
from celeriac.cluster.local import local_cluster


def run_to_end(executor: CeleryExecutor) -> dict[object, Event]:
    """Run all tasks, and return the last event of each."""
    while executor.tasks_waiting or executor.tasks_in_flight:
        executor.wait(1)
        executor.heartbeat()
    return {event.key: event for event in executor.get_event_buffer() if event.state.is_final}


def test_clusters_work_one_after_the_other():
    for code in (3, 4):
        with LocalCluster(parallelism=1) as cluster, cluster.executor() as executor:
            executor.queue_command("k", f"exit {code}")
            assert run_to_end(executor)["k"].detail == f"exit code {code}"


def test_a_command_has_an_input_and_a_scratch_folder():
    with LocalCluster(parallelism=1) as cluster, cluster.executor() as executor:
        executor.queue_command("open", "cat; test -d $CELERIAC_TMPDIR", stdin="hello\n", scratch=True)
        executor.queue_command("secret", "cat", stdin=Secret("hunter22\n"))
        ended = run_to_end(executor)
    tails = {key: event.execution.stdout.tail for key, event in ended.items() if event.execution is not None}
    assert tails == {"open": "hello\n", "secret": "******"}


def test_two_clusters_work_at_the_same_time():
    with LocalCluster(parallelism=1) as one, LocalCluster(parallelism=1) as other:
        executors = [one.executor(), other.executor()]
        for code, executor in enumerate(executors, 3):
            executor.queue_command("k", f"exit {code}")
        assert [run_to_end(executor)["k"].detail for executor in executors] == ["exit code 3", "exit code 4"]


def test_parallelism_and_queue_limits_override_the_config():
    config = Config(parallelism=1, queue_limits={"network": 7}, first_look=0.5)
    with LocalCluster(parallelism=3, queue_limits={"network": 1}, config=config) as cluster:
        executor = cluster.executor()
        for key in ("a", "b"):
            executor.queue_command(key, "sleep 60", queue="network")
        for key in ("c", "d", "e"):
            executor.queue_command(key, "sleep 60")
        executor.heartbeat()
        assert (executor.tasks_in_flight, executor.tasks_waiting) == (3, 2)


def test_wake_ends_a_wait():
    with LocalCluster(parallelism=1) as cluster, cluster.executor() as executor:
        cluster.wake()
        began = time.monotonic()
        executor.wait(60)
        assert time.monotonic() - began < 30


def test_an_interrupted_start_leaves_no_process_and_frees_the_journal(tmp_path, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    before = set(psutil.Process().children())
    with monkeypatch.context() as patch:
        patch.setattr(local_cluster, "LocalWorker", interrupt)
        with pytest.raises(KeyboardInterrupt):
            LocalCluster(journal=tmp_path)
    assert not set(psutil.Process().children()) - before
    LocalCluster(journal=tmp_path).close()
