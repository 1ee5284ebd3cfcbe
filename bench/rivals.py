"""Drive further rivals: plain Celery, and Dramatiq (in `.venv-incumbent`).

python -m bench.rivals celery|dramatiq BROKER [BACKEND]
"""

from __future__ import annotations

import sys
from typing import Any

from bench.player import cost_of, serve

ARGUMENT = "x" * 1000


def no_op(argument: str) -> None:
    """A task that is sent and never runs."""


class PlainCelery:
    def __init__(self, broker: str, backend: str | None = None) -> None:
        from celery import Celery

        self._app = Celery("plain", broker=broker, backend=backend, set_as_current=False)
        self._task = self._app.task(name="plain.task")(no_op)

    def publish(self, count: int) -> dict[str, float]:
        def send() -> None:
            for _ in range(count):
                self._task.apply_async((ARGUMENT,), queue="plain")

        return cost_of(send)

    def run_no_ops(self, count: int, way: str) -> dict[str, float]:
        """Send a group of no-ops and wait for it; `way` is "join" or "join_native"."""
        from celery import group

        from bench.worker import NO_OP, QUEUE

        no_op = self._app.signature(NO_OP, queue=QUEUE, immutable=True)

        def run() -> None:
            result = group([no_op] * count, app=self._app).apply_async()
            getattr(result, way)(timeout=120)
            result.forget()

        return cost_of(run)


class Dramatiq:
    def __init__(self, broker: str) -> None:
        import dramatiq

        if broker.startswith("redis"):
            from dramatiq.brokers.redis import RedisBroker

            self._broker: Any = RedisBroker(url=broker)
        else:
            from dramatiq.brokers.rabbitmq import RabbitmqBroker

            self._broker = RabbitmqBroker(url=f"{broker.rstrip('/')}/%2F")
        dramatiq.set_broker(self._broker)
        self._actor = dramatiq.actor(no_op, actor_name="plain", queue_name="dramatiq")

    def publish(self, count: int) -> dict[str, float]:
        def send() -> None:
            for _ in range(count):
                self._actor.send(ARGUMENT)

        return cost_of(send)


if __name__ == "__main__":
    kind, *urls = sys.argv[1:]
    rival: Any = {"celery": PlainCelery, "dramatiq": Dramatiq}[kind](*urls)
    serve({name: getattr(rival, name) for name in ("publish", "run_no_ops") if hasattr(rival, name)})
