"""Malformed messages among good ones, before three workers: a thousand of each in a long run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import cycle, islice

import pytest

from celeriac.config.lease import LEASE_DURATION
from celeriac.config.signing import SigningKeys
from celeriac.task.task import Task
from tests.support.cli_runner import run, until
from tests.support.long import LONG, slow
from tests.support.malformed import MALFORMED, MAX_SIZE, Message, message_of
from tests.support.raw_brokers import RawRabbit, RawRedis
from tests.support.servers import Server
from tests.support.worker_host import WorkerHost

pytestmark = pytest.mark.fault

NUMBER = 1_000 if LONG else 100
KEY = "a signing key of more than sixteen characters"
DEADLINE = 300.0  # seconds


@pytest.fixture(params=["redis key", slow("redis"), slow("rabbit"), slow("rabbit key")])
def site(request: pytest.FixtureRequest) -> Iterator[tuple[RawRedis | RawRabbit, Server, Server, str | None]]:
    kind, *has_key = request.param.split()
    broker: Server = request.getfixturevalue(kind)
    raw = RawRedis(broker) if kind == "redis" else RawRabbit(broker)
    yield raw, broker, broker if kind == "redis" else request.getfixturevalue("postgres"), KEY if has_key else None
    raw.close()


def bad_messages() -> Iterator[Message]:
    """Yield malformed messages without end, each with an id of its own."""
    for number, (name, change) in enumerate(cycle(MALFORMED.items())):
        yield change(message_of(Task(key=f"{name} {number}", command="echo bad >> log")))


def test_every_good_message_runs_once_and_three_workers_survive_the_bad_ones(site, tmp_path):
    raw, broker, backend, key = site
    strange = raw.strange(lambda: message_of(Task(key="k", command="echo bad >> log")))
    forms = raw.carriable(list(islice(bad_messages(), 2 * NUMBER)))
    bad = [*strange, *forms][:NUMBER]
    good = [Task(key=f"good-{n}", command="echo $CELERIAC_KEY >> log", cwd=str(tmp_path)) for n in range(NUMBER)]
    env = {"CELERIAC_MAX_MESSAGE_SIZE": str(MAX_SIZE), **({} if key is None else {"CELERIAC_SIGNING_KEY": key})}
    urls = ("--broker", broker.url, "--backend", backend.url)

    def counts(column: str) -> list[int]:
        workers = json.loads(run("status", *urls, "--json", cwd=tmp_path).out)["workers"]
        alive = [worker for worker in workers if worker["heartbeat_age"] < LEASE_DURATION]  # not those of other tests
        return [worker[column] for worker in alive]

    def runs() -> Counter[str]:
        log = tmp_path / "log"
        return Counter(log.read_text().split() if log.exists() else [])

    with ExitStack() as stack:
        hosts = [
            stack.enter_context(
                WorkerHost(f"w{n}", broker, backend, tmp_path, "-c", "4", is_behind_proxies=False, env=env)
            )
            for n in range(3)
        ]
        for item, task in zip(bad, good, strict=True):
            raw.put([item, *raw.carriable([message_of(task, SigningKeys.of(key))])])
        until(lambda: len(runs()) == NUMBER, "the good tasks", DEADLINE)
        until(lambda: sum(counts("refused")) == NUMBER, "all refusals", DEADLINE)
        until(raw.is_empty, "the acknowledgements", DEADLINE)
        until(lambda: counts("running") == [0, 0, 0], "leases without a task", DEADLINE)
        assert [host.worker.process.poll() for host in hosts] == [None] * 3
        logs = [host.log.read_text() for host in hosts]
    assert runs() == Counter(str(task.key) for task in good)
    assert not any("Traceback" in log for log in logs)
