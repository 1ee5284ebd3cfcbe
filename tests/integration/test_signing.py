"""Signed messages: which messages a worker with a key runs, which it rejects, and that the key is never shown."""

from __future__ import annotations

import json
import pickle
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery.app.task import Context
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from redis import Redis

from celeriac import CeleryExecutor, Config, Event, Reason, State, Task, register_task
from celeriac.backend.results.one_by_one import OneByOneResults
from celeriac.broker.app import app_for, make_app
from celeriac.broker.command_message import TASK_NAME, command_message
from celeriac.broker.one_by_one import OneByOnePublisher
from celeriac.broker.publishers import publisher_for
from celeriac.broker.task_message import TaskMessage, task_message
from celeriac.cluster.cluster import Cluster
from celeriac.cluster.revoker import ControlRevoker
from celeriac.config.settings import read_settings
from celeriac.config.signing import SIGNATURE, SigningKeys
from celeriac.errors import CommandFailed, InvalidConfig
from celeriac.worker.runner import Runner
from celeriac.worker.signature_check import SignatureVerifier
from celeriac.worker.supervisor.messages import CommandRequest
from tests.support.cli_runner import Celeriac, run, started, until
from tests.support.long import slow

pytestmark = pytest.mark.celery

KEY, OTHER = "correct horse battery", "staple; which no worker has"
TIMEOUT = 2.0  # seconds for one operation

# — keys and signatures —


def signed(task: Task, key: str = KEY) -> dict[str, Any]:
    payload = command_message(task)
    return {**payload, SIGNATURE: SigningKeys([key]).sign(TASK_NAME, payload)}


def verifies(payload: dict[str, Any], *keys: str) -> bool:
    return SigningKeys(keys or [KEY]).verify(TASK_NAME, payload)


texts = st.text(st.characters(), min_size=1, max_size=20)  # also text that is no valid Unicode
tasks = st.builds(
    Task,
    key=texts,
    command=st.lists(texts.filter(lambda text: "\0" not in text), min_size=1, max_size=4).map(tuple),
    env=st.dictionaries(st.text("ABC", min_size=1), st.text(st.characters(exclude_characters="\0")), max_size=3),
    timeout=st.none() | st.floats(0.1, 1e6) | st.integers(1, 1_000_000),
    attempt=st.integers(1, 9),
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=4,
)


@given(tasks)
def test_a_signature_survives_json(task):
    assert verifies(json.loads(json.dumps(signed(task))))


@given(tasks, st.data())
def test_any_change_of_any_field_breaks_the_signature(task, data):
    payload = json.loads(json.dumps(signed(task)))
    field = data.draw(st.sampled_from(sorted(payload)) | texts.filter(lambda name: name not in payload), "field")
    is_there = field in payload
    if is_there and data.draw(st.booleans(), "leave it out"):
        altered = {name: value for name, value in payload.items() if name != field}
    else:
        altered = {**payload, field: data.draw(values, "value")}
    same = is_there and field in altered and canonical(altered[field]) == canonical(payload[field])
    assert verifies(altered) == same


def canonical(value: Any) -> str:
    """Return a text that differs for 1, 1.0 and true, and for a date and its text."""
    return json.dumps(value, default=repr, sort_keys=True)


def test_values_that_look_alike_in_json_differ_for_the_signature():
    payload = signed(Task(key="k", command="true"))
    assert payload["timeout"] is None
    assert not verifies({**payload, "timeout": float("nan")})
    assert not verifies({**payload, "attempt": 2**70})
    assert not verifies({**payload, "attempt": True})


def test_the_first_key_signs_and_all_keys_verify():
    payload = signed(Task(key="k", command="true"), OTHER)
    assert verifies(payload, KEY, OTHER)
    assert not verifies(payload, KEY)
    old_and_new = SigningKeys.of(f"{KEY}, {OTHER}")
    assert old_and_new is not None
    assert verifies(
        {**message_of_the_same(payload), SIGNATURE: old_and_new.sign(TASK_NAME, message_of_the_same(payload))}
    )


def message_of_the_same(payload: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in payload.items() if name != SIGNATURE}


def test_a_signature_is_for_one_kind_of_task():
    assert not SigningKeys([KEY]).verify("another.task", signed(Task(key="k", command="true")))


@pytest.mark.parametrize("keys", ["tiny-key", "", " , ", f"{KEY},tiny-key"])
def test_a_short_key_is_rejected_and_not_shown(tmp_path, keys):
    for setting, read in (
        ("CELERIAC_SIGNING_KEY", lambda: read_settings(environment={"CELERIAC_SIGNING_KEY": keys}, folder=tmp_path)),
        ("signing_key", lambda: Cluster("redis://127.0.0.1:1/0", signing_key=keys)),
    ):
        with pytest.raises(InvalidConfig, match=rf"{setting}: (is|one of \d) .*; give 16 characters or more") as error:
            read()
        assert "tiny-key" not in str(error.value)


# — settings —


def test_keys_come_from_a_variable_a_settings_file_or_a_key_file(tmp_path):
    (tmp_path / "keys").write_text(f"{KEY}\n{OTHER}\n")
    for line, environment, expected in (
        (f'signing_key = "{KEY}"', {}, [KEY]),
        (f'signing_key = ["{KEY}", "{OTHER}"]', {}, [KEY, OTHER]),
        ("", {"CELERIAC_SIGNING_KEY": f"{KEY},{OTHER}"}, [KEY, OTHER]),
        (f'signing_key_file = "{tmp_path}/keys"', {}, [KEY, OTHER]),
    ):
        (tmp_path / "celeriac.toml").write_text(f'broker = "redis://h/0"\n{line}\n')
        connection = read_settings(environment=environment, folder=tmp_path).connection
        assert KEY not in repr(connection)
        payload = signed(Task(key="k", command="true"), expected[-1])
        keys = SigningKeys.of(connection.signing_key)
        assert keys is not None
        assert keys.verify(TASK_NAME, payload)


def test_two_places_for_a_key_and_a_bad_key_file_are_named(tmp_path):
    (tmp_path / "keys").write_text("short\n")
    options = {"broker": "redis://h/0"}
    both = {"CELERIAC_SIGNING_KEY": KEY, "CELERIAC_SIGNING_KEY_FILE": str(tmp_path / "keys")}
    with pytest.raises(InvalidConfig, match="signing_key_file: signing_key is given too; give only one of them"):
        _ = read_settings(options, environment=both, folder=tmp_path).connection
    alone = {"CELERIAC_SIGNING_KEY_FILE": str(tmp_path / "keys")}
    with pytest.raises(InvalidConfig, match=f"signing_key_file: {tmp_path}/keys: is too short; give 16"):
        _ = read_settings(options, environment=alone, folder=tmp_path).connection


def test_celeriac_config_shows_no_key(tmp_path):
    (tmp_path / "celeriac.toml").write_text(f'signing_key = ["{KEY}", "{OTHER}"]\n')
    for ended in (run("config", cwd=tmp_path), run("config", "--json", cwd=tmp_path)):
        assert ended.status == 0
        assert "signing_key" in ended.out
        assert "******" in ended.out
        assert KEY not in ended.out + ended.err
        assert OTHER not in ended.out + ended.err


# — workers —


class Forger:
    """An executor whose messages are tampered with on their way: `forgeries` has a function for each task's key."""

    def __init__(self, broker: str, backend: str, publisher: Callable[..., Any], forgeries: dict[str, Any]) -> None:
        self.app = app = app_for(read_settings({"broker": broker, "backend": backend}, environment={}).connection)
        self._forgeries = forgeries
        self.publisher = publisher(app, message_factory=self._forged_message)
        self.results = OneByOneResults(app, timeout=TIMEOUT)
        self.executor = CeleryExecutor(
            Config(parallelism=100, operation_timeout=TIMEOUT, reconcile_interval=0.2),
            publisher=self.publisher,
            results=self.results,
            revoker=ControlRevoker(app, timeout=TIMEOUT),
        )
        self.events: list[Event] = []

    def _forged_message(self, task: Task) -> TaskMessage:
        message = task_message(task, SigningKeys([KEY]))
        forge = self._forgeries.get(str(task.key), lambda payload: payload)
        return replace(message, args=(forge(*message.args),), argsrepr="")

    def run_until_ended(self, number: int) -> dict[Any, Event]:
        def heartbeat() -> bool:
            self.executor.heartbeat()
            self.events.extend(self.executor.get_event_buffer())
            self.executor.wait(0.05)
            return len(self.ends) == number

        until(heartbeat, f"{number} ends", 60)
        return self.ends

    @property
    def ends(self) -> dict[Any, Event]:
        return {event.key: event for event in self.events if event.state.is_final}

    def stats(self) -> dict[str, Any]:
        with self.app.connection_for_write() as connection:
            (stats,) = self.app.control.inspect(timeout=TIMEOUT, connection=connection).stats().values()
        return dict(stats["celeriac"])

    def close(self) -> None:
        self.publisher.close()
        self.results.close()
        self.app.close()


def replayed_message(marker: Path) -> dict[str, Any]:
    """Return a message with a valid signature, for a task that was sent before."""
    return signed(Task(key="replayed", id=str(uuid4()), command=f"touch {marker}"))


def forgeries(marker: Path) -> dict[str, Any]:
    def other(field: str, value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
        return lambda payload: {**payload, field: value}

    return {
        "command": other("command", f"touch {marker}; true"),
        "env": other("env", {"BASH_ENV": "/tmp/evil"}),
        "id": other("id", str(uuid4())),
        "attempt": other("attempt", 7),
        "cwd": other("cwd", "/"),
        "one more": other("umask", 0),
        "not signed": lambda payload: {name: value for name, value in payload.items() if name != SIGNATURE},
        "no text": other(SIGNATURE, ["x"]),
        "another key": lambda payload: {
            **message_of_the_same(payload),
            SIGNATURE: SigningKeys([OTHER]).sign(TASK_NAME, message_of_the_same(payload)),
        },
        "replayed": lambda _: replayed_message(marker),
        "no table": lambda _: ["touch", str(marker)],
    }


@pytest.fixture(params=["redis bulk threads", slow("rabbit bulk prefork"), slow("redis one-by-one prefork")])
def servers(request: pytest.FixtureRequest) -> tuple[str, str, Any, str]:
    kind, way, pool = request.param.split()
    redis = request.getfixturevalue("shared_redis")
    with Redis(port=redis.port) as client:
        client.flushall()
    url = redis.url if kind == "redis" else request.getfixturevalue("rabbit").url
    return url, redis.url, publisher_for if way == "bulk" else OneByOnePublisher, pool


def worker(folder: Path, broker: str, backend: str, *options: str, key: str | None = KEY) -> Any:
    text = ("--broker", broker, "--backend", backend, "-c", "2", "--log-format", "json", *options)
    env = {} if key is None else {"CELERIAC_SIGNING_KEY": key}
    return started("worker", *text, cwd=folder, env=env)


def refusals(celeriac: Celeriac) -> list[dict[str, Any]]:
    celeriac.signal(signal.SIGTERM)
    ended = celeriac.wait()
    assert ended.status == 0
    assert KEY not in ended.err
    lines = [json.loads(line) for line in ended.err.splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == "refused"]


def test_a_worker_with_a_key_rejects_all_but_signed_messages(servers, tmp_path):
    broker, backend, publisher, pool = servers
    marker = tmp_path / "marker"
    forged = forgeries(marker)
    with (
        closing(Forger(broker, backend, publisher, forged)) as forger,
        worker(tmp_path, broker, backend, "--pool", pool, key=f"{OTHER}x,{KEY}") as celeriac,
    ):
        celeriac.wait_for_stderr('"ready"')
        for key in forged:
            forger.executor.queue_command(key, f"touch {marker}", retries=2, retry_delay=0.1)
        forger.executor.queue_command("as it was", "echo $KIND $(env | grep -c SIGNING)", env={"KIND": "Grüße \udcff"})
        ends = forger.run_until_ended(len(forged) + 1)
        refused = forger.stats()["refused"]

        def refused_by_workers() -> list[int]:
            status = run("status", "--broker", broker, "--backend", backend, "--json", cwd=tmp_path)
            return [one["refused"] for one in json.loads(status.out)["workers"]]

        until(lambda: refused_by_workers() == [len(forged)], "the number in the lease")
        text = run("status", "--broker", broker, "--backend", backend, cwd=tmp_path)
        lines = refusals(celeriac)
    good = ends.pop("as it was")
    assert (good.state, good.execution and good.execution.stdout.tail.split()[-1]) == (State.SUCCESS, "0")
    assert {(e.state, e.reason, e.attempt) for e in ends.values()} == {(State.FAILED, Reason.REFUSED, 1)}
    assert not marker.exists()
    assert ends["not signed"].detail == "its worker did not run it: its message is not signed"
    assert ends["command"].detail == "its worker did not run it: its message was altered, or signed with another key"
    assert ends["replayed"].detail == "its worker did not run it: its message was signed for another id"
    assert refused == len(forged)
    assert "refused" in text.out
    assert sorted(line["id"] for line in lines) == sorted(event.id for event in ends.values())


def test_a_worker_without_a_key_runs_signed_and_unsigned_messages(shared_redis, tmp_path):
    url = shared_redis.url
    unsigned = {"unsigned": lambda payload: message_of_the_same(payload)}
    with closing(Forger(url, url, publisher_for, unsigned)) as forger, worker(tmp_path, url, url, key=None) as celeriac:
        celeriac.wait_for_stderr('"ready"')
        for key in ("signed", "unsigned"):
            forger.executor.queue_command(key, "true")
        ends = forger.run_until_ended(2)
        assert forger.stats()["refused"] == 0
        text = run("status", "--broker", url, cwd=tmp_path)
    assert {event.state for event in ends.values()} == {State.SUCCESS}
    assert "refused" not in text.out


def test_a_run_needs_the_key_of_its_workers(shared_redis, tmp_path):
    url = shared_redis.url
    with worker(tmp_path, url, url) as celeriac:
        celeriac.wait_for_stderr('"ready"')
        command = ("run", "--broker", url, "--json", "--", "touch", str(tmp_path / "ran"))
        without = run(*command, cwd=tmp_path)
        assert not (tmp_path / "ran").exists()
        assert without.status == 1
        assert without.summary["failures"][0]["reason"] == "refused"
        (tmp_path / "celeriac.toml").write_text(f'signing_key = "{KEY}"\n')
        assert run(*command, cwd=tmp_path).status == 0
        assert (tmp_path / "ran").exists()


class Touch:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


@pytest.mark.parametrize("pool", ["threads", "prefork"])
@pytest.mark.parametrize("key", [None, KEY])
def test_a_pickled_message_is_rejected_without_unpickling_it(shared_redis, tmp_path, pool, key):
    url, marker = shared_redis.url, tmp_path / "marker"
    assert pickle.loads(pickle.dumps(Touch(tmp_path / "it works"))) is None
    with (
        closing(Forger(url, url, publisher_for, {})) as forger,
        worker(tmp_path, url, url, "--pool", pool, key=key) as celeriac,
    ):
        celeriac.wait_for_stderr('"ready"')
        pickles = make_app(broker_url=url, result_backend=url, task_serializer="pickle")
        for arguments in ((Touch(marker),), (command_message(Task(key="k", command=f"touch {marker}")),)):
            pickles.send_task(TASK_NAME, arguments, queue="default")
        forger.executor.queue_command("after", "true")
        assert forger.run_until_ended(1)["after"].state is State.SUCCESS
        refusals(celeriac)
    pickles.close()
    assert not marker.exists()


class RevokingRunner(Runner):
    """Treats each command as revoked before its start."""

    def run(self, request: CommandRequest, take_output: Any = None) -> None:
        return None


def test_a_users_own_celery_worker_can_have_a_key():
    app = make_app(broker_url="memory://", result_backend="cache+memory://")
    register_task(app, RevokingRunner(), signing_key=KEY)
    payload = signed(Task(key="k", id="an id", command="true"))
    for message, task_id, reason in (
        (payload, "an id", Reason.REVOKED),
        ({**payload, "attempt": 2}, "an id", Reason.REFUSED),
        (payload, "another", Reason.REFUSED),
    ):
        failed = app.tasks[TASK_NAME].apply((message,), task_id=task_id).result
        assert isinstance(failed, CommandFailed)
        assert failed.report["reason"] is reason


def test_without_keys_every_message_is_accepted():
    assert SignatureVerifier(None).reject_reason({}, Context(id="an id")) is None
