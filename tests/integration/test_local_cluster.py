"""`Embedded` as a library: in this process, several times over."""

from __future__ import annotations

from celeriac import CeleryExecutor, Config, Event, LocalCluster


def ends_of(executor: CeleryExecutor) -> dict[object, Event]:
    while executor.tasks_waiting or executor.tasks_in_flight:
        executor.wait(1)
        executor.heartbeat()
    return {event.key: event for event in executor.get_event_buffer() if event.state.is_final}


def test_one_after_the_other_in_one_process():
    for code in (3, 4):
        with LocalCluster(Config(parallelism=1)) as embedded, embedded.executor() as executor:
            executor.queue_command("k", f"exit {code}")
            assert ends_of(executor)["k"].detail == f"exit code {code}"


def test_two_at_a_time_in_one_process():
    with LocalCluster(Config(parallelism=1)) as one, LocalCluster(Config(parallelism=1)) as other:
        executors = [one.executor(), other.executor()]
        for code, executor in enumerate(executors, 3):
            executor.queue_command("k", f"exit {code}")
        assert [ends_of(executor)["k"].detail for executor in executors] == ["exit code 3", "exit code 4"]
