"""Measure on real servers, beside the incumbent, plain Celery, Dramatiq and the raw limit.

publish-redis, publish-rabbitmq ─► publishing
signing-…                       ─► signing
sync-redis, sync-postgresql     ─► following
end-to-end                      ─► end_to_end
remote-output                   ─► remote_output
claims-…                        ─► claiming
limits-…                        ─► limiting
lease-writes-…, worker-…        ─► leases
cancel-…                        ─► cancelling
takeover                        ─► takeover
airflow-worker                  ─► airflow_worker
airflow-…                       ─► door
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import cached_property
from importlib.metadata import version

from tests.support.servers import PostgresServer, RabbitServer, RedisServer

from bench import airflow_worker, claiming, door, leases, limiting, remembering, remote_output
from bench.backends import OnPostgres, OnRedis
from bench.brokers import RabbitBroker, RedisBroker
from bench.cancelling import cancelling
from bench.crew import Place
from bench.end_to_end import end_to_end
from bench.following import following
from bench.player import INCUMBENTS, ROOT, Player
from bench.publishing import publishing
from bench.signing import signing
from bench.table import Row
from bench.takeover import takeovers

OUR_LIBRARIES = ("celery", "kombu", "redis", "amqp")
WORKER_ROUNDS = 3  # of each worker in one deployment: its start takes longer than a round


class Servers(ExitStack):
    """The servers: each starts when it is first needed, and all are stopped at the end."""

    @cached_property
    def redis(self) -> RedisServer:
        return self.enter_context(closing(RedisServer()))

    @cached_property
    def rabbit(self) -> RabbitServer:
        return self.enter_context(closing(RabbitServer()))

    @cached_property
    def postgres(self) -> PostgresServer:
        return self.enter_context(closing(PostgresServer()))


def parts(servers: Servers, rounds: int, sizes: list[int]) -> dict[str, Callable[[], list[Row]]]:
    def redis() -> RedisBroker:
        return RedisBroker(servers.redis.url)

    def rabbit() -> RabbitBroker:
        return RabbitBroker(servers.rabbit.url, servers.rabbit.port)

    def postgres() -> OnPostgres:
        return OnPostgres(servers.postgres.url, servers.postgres.dsn, servers.redis.url)

    def on_redis() -> Place:
        return Place("Redis", servers.redis.url, servers.redis.url)

    def on_rabbit() -> Place:
        return Place("RabbitMQ and PostgreSQL", servers.rabbit.url, servers.postgres.url)

    return {
        "publish-redis": lambda: publishing(redis(), servers.postgres.url, rounds),
        "publish-rabbitmq": lambda: publishing(rabbit(), servers.postgres.url, rounds),
        "signing-redis": lambda: signing(redis(), rounds),
        "signing-rabbitmq": lambda: signing(rabbit(), rounds),
        "sync-redis": lambda: following(OnRedis(servers.redis.url), servers.redis.url, sizes),
        # psycopg 3, its default, cannot put 100,000 ids into one statement; psycopg2 can, and is faster.
        "sync-postgresql": lambda: following(
            postgres(), servers.postgres.url.replace("+psycopg:", "+psycopg2:"), sizes
        ),
        "end-to-end": lambda: end_to_end(servers.redis.url, rounds),
        "remote-output": lambda: remote_output.in_order(on_redis(), rounds),
        "claims-redis": lambda: claiming.commands(on_redis(), rounds),
        "claims-rabbitmq": lambda: claiming.commands(on_rabbit(), rounds),
        "claims-no-ops": lambda: claiming.no_ops(on_redis(), rounds),
        "limits-redis": lambda: limiting.commands(on_redis(), rounds),
        "limits-rabbitmq": lambda: limiting.commands(on_rabbit(), rounds),
        "lease-writes-redis": lambda: leases.writes_on_redis(servers.redis),
        "lease-writes-postgresql": lambda: leases.writes_on_postgres(servers.postgres, servers.redis.url),
        "worker-death-redis": lambda: leases.deaths(on_redis(), rounds),
        "worker-death-rabbitmq": lambda: leases.deaths(on_rabbit(), rounds),
        "worker-going-redis": lambda: leases.goings(on_redis(), rounds),
        "worker-going-rabbitmq": lambda: leases.goings(on_rabbit(), rounds),
        "takeover": lambda: takeovers(on_redis(), servers.postgres, rounds),
        "ledger-cost": lambda: remembering.cost(rounds),
        "ledger-recovery": lambda: remembering.recovery(servers.redis.url, servers.redis.url, servers.redis.port),
        "cancel-redis": lambda: cancelling(on_redis()),
        "cancel-rabbitmq": lambda: cancelling(on_rabbit()),
        "airflow-trigger-redis": lambda: door.trigger(redis(), servers.postgres.url, rounds, 20.0),
        "airflow-trigger-rabbitmq": lambda: door.trigger(rabbit(), servers.postgres.url, rounds, 8.0),
        "airflow-sync-redis": lambda: door.sync(OnRedis(servers.redis.url), rounds),
        "airflow-sync-postgresql": lambda: door.sync(postgres(), rounds),
        "airflow-adopt-redis": lambda: door.adopt(OnRedis(servers.redis.url)),
        "airflow-adopt-postgresql": lambda: door.adopt(postgres()),
        "airflow-black-hole": lambda: door.black_hole(servers.redis.port),
        "airflow-import": door.importing,
        "airflow-worker": lambda: airflow_worker.workers(rounds if rounds == 1 else max(rounds, WORKER_ROUNDS)),
    }


def versions(servers: Servers) -> list[str]:
    ours = [f"{name} {version(name)}" for name in OUR_LIBRARIES]
    if not (ROOT / INCUMBENTS).exists():
        return ours
    with closing(Player(INCUMBENTS, "bench.scheduler", "incumbent", "memory://", servers.redis.url, "1")) as incumbent:
        theirs = incumbent.ask("versions")
    return [*ours, "incumbent: " + " ".join(f"{name} {number}" for name, number in theirs.items())]
