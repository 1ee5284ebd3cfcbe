"""A scheduler in thirty lines: queue commands, iterate over events, queue more."""

from __future__ import annotations

from celeriac import CeleryExecutor, Event, LocalCluster, State


def on_end(event: Event, executor: CeleryExecutor) -> None:
    print(f"{event.key}: {event.state.value}" + (f" ({event.detail})" if event.detail else ""))
    if event.key == "measure" and event.state is State.SUCCESS and event.execution is not None:
        lines = int(event.execution.stdout.tail)
        executor.queue_command("report", ["echo", f"{lines} lines"], priority=10)


def main() -> None:
    with LocalCluster(parallelism=2, queue_limits={"network": 1}) as cluster, cluster.executor() as executor:
        executor.queue_command("measure", "wc -l < /etc/services || echo 0", priority=5)
        executor.queue_command("slow", "sleep 60", timeout=0.5, queue="network")
        executor.queue_command("flaky", "exit 3", retries=2, retry_delay=0.1)
        for event in executor.run_until_idle():
            if event.state.is_final:
                on_end(event, executor)


if __name__ == "__main__":
    main()
