"""`celeriac doctor` names each prepared fault by its own line, and finds nothing in a healthy deployment."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from amqp.exceptions import NotFound
from kombu import Connection, Queue

from celeriac import __version__
from celeriac.backend.claims import claims_for
from celeriac.backend.claims.claim import LEASE_KEPT, Lease
from celeriac.broker.app import make_app
from celeriac.config.settings import read_settings
from celeriac.config.signing import SigningKeys
from celeriac.doctor.at_start import server_problems
from celeriac.doctor.check import Finding, Level, examine
from celeriac.doctor.files import Given
from celeriac.doctor.redis import backend_state_subject
from celeriac.doctor.subjects import server_subjects, subjects_of
from celeriac.json_types import OUTPUTS
from tests.support.cli_runner import jobs, run, run_in_process, started, until
from tests.support.refusals import NOTHING_LISTENS
from tests.support.servers import PgBouncer, RedisCluster
from tests.support.workers import worker

TIMEOUT = 60.0  # seconds for all checks, on a slow and busy machine
PROBLEMS = (Level.WARNING, Level.ERROR)
KEY, OTHER_KEY = "the key of this machine", "the key of other machines"


@pytest.fixture(scope="module")
def bouncer(postgres) -> Iterator[PgBouncer]:
    with closing(PgBouncer(postgres)) as server:
        yield server


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    with closing(RedisCluster()) as servers:
        yield servers


def findings_of(folder: Path, *, with_workers: bool = False, **options: Any) -> list[Finding]:
    """Return all findings for these settings. Workers are left out unless they matter: asking them takes seconds."""
    environment = {"CELERIAC_LEDGER": "none"} if "ledger" not in options else {}
    given = Given(read_settings(options, environment=environment, folder=folder))
    subjects = [each for each in subjects_of(given) if with_workers or each.name != "workers"]
    return examine(subjects, timeout=TIMEOUT)


def problems_of(findings: list[Finding]) -> set[str]:
    return {finding.check for finding in findings if finding.level in PROBLEMS}


def check_one_line(findings: list[Finding], id: str) -> None:
    """Check that this check alone reports a problem, once, in one line with a remedy."""
    found = [finding for finding in findings if finding.level in PROBLEMS]
    assert [finding.check for finding in found] == [id], found
    assert found[0].remedy
    assert "\n" not in found[0].text + found[0].remedy


# — Redis —


@contextmanager
def eviction(server: Any, policy: str) -> Iterator[None]:
    server.configure(maxmemory="1gb", maxmemory_policy=policy)
    try:
        yield
    finally:
        server.configure(maxmemory=0, maxmemory_policy="noeviction")


@contextmanager
def almost_full(server: Any) -> Iterator[None]:
    server.command("SETRANGE", "filler", 30_000_000, "x")  # beside it, what connections take counts for little
    server.configure(maxmemory=int(server.command("INFO", "memory")["used_memory"] * 1.05))
    try:
        yield
    finally:
        server.configure(maxmemory=0)
        server.command("DEL", "filler")


@contextmanager
def without_persistence(server: Any) -> Iterator[None]:
    server.configure(appendonly="no")
    try:
        yield
    finally:
        server.configure(appendonly="yes")
        until(server._is_rewritten, "a new log")


@contextmanager
def few_connections(server: Any) -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(server._client()).ping()
        server.configure(maxclients=66)
        try:
            yield
        finally:
            stack.close()
            server.configure(maxclients=1000)


@contextmanager
def frozen(server: Any) -> Iterator[None]:
    server.freeze()
    try:
        yield
    finally:
        server.thaw()


REDIS_FAULTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "policy removes any key": (lambda server: eviction(server, "allkeys-lru"), "redis-eviction"),
    "policy removes keys that expire": (lambda server: eviction(server, "volatile-ttl"), "redis-eviction"),
    "memory almost full": (almost_full, "redis-memory"),
    "memory full": (lambda server: server.full(), "redis-memory"),
    "cannot save": (lambda server: server.misconf(), "redis-persistence"),
    "saves nothing": (without_persistence, "redis-persistence"),
    "replica": (lambda server: server.read_only(), "redis-replica"),
    "no replicas": (lambda server: server.no_replicas(), "writable"),
    "busy": (lambda server: server.busy(), "writable"),
    "password changed": (lambda server: server.password_changed(), "login"),
    "few connections": (few_connections, "connections"),
    "frozen": (frozen, "reachable"),
}


@pytest.mark.parametrize("fault", REDIS_FAULTS)
def test_a_fault_of_redis(tmp_path, shared_redis, fault):
    make, expected = REDIS_FAULTS[fault]
    with make(shared_redis):
        findings = findings_of(tmp_path, broker=shared_redis.url)
    check_one_line(findings, expected)
    assert problems_of(findings_of(tmp_path, broker=shared_redis.url)) == set()


REDIS_USERS: dict[str, tuple[tuple[str, ...], str]] = {
    "without scripts": (("+@all", "-@scripting", "~*", "&*"), "redis-scripts"),
    "without channels": (("+@all", "~*", "resetchannels"), "redis-keys"),
    "of another prefix": (("+@all", "~team1:*", "&team1:*"), "redis-keys"),
    "without a command": (("+@all", "-llen", "-lpush", "~*", "&*"), "rights"),
}


@pytest.mark.parametrize("user", REDIS_USERS)
def test_a_user_of_redis_without_a_right(tmp_path, shared_redis, user):
    rules, expected = REDIS_USERS[user]
    check_one_line(findings_of(tmp_path, broker=shared_redis.user(*rules), key_prefix="team2:"), expected)


def test_no_server_and_a_cluster(tmp_path, cluster):
    check_one_line(findings_of(tmp_path, broker=f"redis://127.0.0.1:{NOTHING_LISTENS}/0"), "reachable")
    check_one_line(findings_of(tmp_path, broker=cluster.url), "redis-cluster")


def test_one_of_several_brokers_that_does_not_answer(tmp_path, shared_redis):
    brokers = f"redis://127.0.0.1:{NOTHING_LISTENS}/0;{shared_redis.url}"
    findings = findings_of(tmp_path, broker=brokers, backend=shared_redis.url)
    check_one_line(findings, "reachable")
    assert next(each.subject for each in findings if each.level is Level.ERROR).endswith(f":{NOTHING_LISTENS}/0")


def test_a_sentinel_that_is_not_there(tmp_path):
    url = f"sentinel://127.0.0.1:{NOTHING_LISTENS}"
    findings = findings_of(tmp_path, broker=url, sentinel_master="mymaster")
    check_one_line(findings, "reachable")
    assert "<" not in next(each.text for each in findings if each.level is Level.ERROR)


# — RabbitMQ —


@contextmanager
def queue_without_priorities(server: Any) -> Iterator[None]:
    with Connection(server.url) as connection:
        queue = Queue("default", channel=connection.channel())
        queue.declare()
        try:
            yield
        finally:
            queue.delete()


RABBIT_FAULTS: dict[str, tuple[Callable[[Any], Any], dict[str, Any], str]] = {
    "queue of other arguments": (queue_without_priorities, {}, "rabbitmq-queues"),
    "queue of another type": (queue_without_priorities, {"queue_type": "quorum"}, "rabbitmq-queues"),
    "no rights": (lambda server: server.no_rights(), {}, "rights"),
    "no virtual host": (lambda server: server.no_vhost(), {}, "login"),
    "alarm": (lambda server: server.memory_alarm(), {}, "rabbitmq-alarm"),
}


@pytest.mark.parametrize("fault", RABBIT_FAULTS)
def test_a_fault_of_rabbitmq(tmp_path, rabbit, shared_redis, fault):
    make, options, expected = RABBIT_FAULTS[fault]
    with make(rabbit):
        check_one_line(findings_of(tmp_path, broker=rabbit.url, backend=shared_redis.url, **options), expected)


def test_rabbitmq_with_a_wrong_password_and_without_claims(tmp_path, rabbit, shared_redis):
    wrong = rabbit.url.replace("guest:guest", "guest:wrong")
    check_one_line(findings_of(tmp_path, broker=wrong, backend=shared_redis.url), "login")
    without_claims = problems_of(findings_of(tmp_path, broker=rabbit.url, backend="rpc://"))
    assert without_claims <= {"claims", "rabbitmq-consumer-timeout"}
    assert "claims" in without_claims


def test_no_queue_is_created(tmp_path, rabbit, shared_redis):
    assert problems_of(findings_of(tmp_path, broker=rabbit.url, backend=shared_redis.url, queues="q1")) == set()
    with Connection(rabbit.url) as connection, pytest.raises(NotFound):
        connection.channel().queue_declare("q1", passive=True)


# — PostgreSQL —


def test_faults_of_postgresql(tmp_path, postgres, shared_redis):
    def findings(backend: str) -> list[Finding]:
        return findings_of(tmp_path, broker=shared_redis.url, backend=backend)

    role, url = postgres.role()
    assert problems_of(findings(f"db+{url}")) == set()
    with postgres.no_rights(role):
        check_one_line(findings(f"db+{url}"), "rights")
    with postgres.read_only():
        check_one_line(findings(f"db+{url}"), "postgresql-read-only")
    with postgres.no_login(role):
        check_one_line(findings(f"db+{url}"), "login")
    check_one_line(findings(postgres.url + "x"), "login")
    with postgres.too_many_clients():
        check_one_line(findings(f"db+{url}"), "connections")
    postgres.sql(f"REVOKE ALL ON SCHEMA public FROM {role}")
    postgres.sql("REVOKE CREATE ON SCHEMA public FROM public")
    check_one_line(findings(f"db+{url}"), "rights")


def test_a_ledger_in_postgresql(tmp_path, postgres):
    assert problems_of(findings_of(tmp_path, ledger=postgres.ledger_url)) == set()
    with postgres.read_only():
        check_one_line(findings_of(tmp_path, ledger=postgres.ledger_url), "postgresql-read-only")
    check_one_line(findings_of(tmp_path, ledger=f"postgresql+psycopg://u@127.0.0.1:{NOTHING_LISTENS}/d"), "reachable")


def test_prepared_statements_behind_pgbouncer(bouncer, shared_redis, tmp_path):
    urls = {"broker_url": shared_redis.url, "result_backend": bouncer.url}
    prepared: dict[str, Any] = {"database_engine_options": {"connect_args": {"prepare_threshold": 5}}}
    for settings, expected in (({}, set()), (prepared, {"postgresql-pooler"})):
        with closing(make_app(**urls, **settings)) as app:
            subjects = [each for each in server_subjects(app, ["default"], None, 2.0) if each.name != "workers"]
            assert problems_of(examine(subjects, timeout=TIMEOUT)) == expected
    with_options = f"{bouncer.url}?options=-c%20search_path%3Dpublic"
    check_one_line(findings_of(tmp_path, broker=shared_redis.url, backend=with_options), "postgresql-pooler")


# — this machine, the settings and the ledger —


def open_to_others(path: Path) -> Path:
    path.chmod(0o644)
    return path


def damaged(path: Path) -> Path:
    path.write_bytes(b"no database" * 100)
    return path


def of_newer_version(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE celeriac_ledger SET version = 1000")
    return path


@pytest.fixture(scope="module")
def made_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    ended = run("run", "--ledger", "ledger.db", "-q", jobs(folder, {"key": "a", "command": "true"}), cwd=folder)
    assert ended.status == 0, ended.err
    return folder / "ledger.db"


@pytest.fixture
def ledger_of_a_run(made_ledger: Path, tmp_path: Path) -> Path:
    path = tmp_path / made_ledger.name
    shutil.copy2(made_ledger, path)
    return path


LEDGER_FAULTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "others can read it": (open_to_others, "ledger-permissions"),
    "damaged": (damaged, "ledger-content"),
    "of a newer version": (of_newer_version, "ledger-content"),
    "in a folder that is a file": (lambda path: path / "ledger.db", "ledger-permissions"),
}


@pytest.mark.parametrize("fault", LEDGER_FAULTS)
def test_a_fault_of_a_ledger_file(tmp_path, ledger_of_a_run, fault):
    make, expected = LEDGER_FAULTS[fault]
    check_one_line(findings_of(tmp_path, ledger=str(make(ledger_of_a_run))), expected)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_ledger_of_another_user(tmp_path, ledger_of_a_run):
    shutil.chown(ledger_of_a_run, "daemon")
    check_one_line(findings_of(tmp_path, ledger=str(ledger_of_a_run)), "ledger-permissions")


def test_a_sound_ledger(tmp_path, ledger_of_a_run):
    assert problems_of(findings_of(tmp_path, ledger=str(ledger_of_a_run))) == set()
    assert problems_of(findings_of(tmp_path, ledger=str(tmp_path / "new" / "ledger.db"))) == set()


def test_files_with_secrets_that_others_can_read(tmp_path, shared_redis):
    file = tmp_path / "broker.url"
    file.write_text(shared_redis.url)
    file.chmod(0o600)
    assert problems_of(findings_of(tmp_path, ledger="none", broker=shared_redis.url)) == set()
    (tmp_path / "celeriac.toml").write_text(f'broker_file = "{open_to_others(file)}"')
    check_one_line(findings_of(tmp_path), "secret-files")
    file.chmod(0o600)
    (tmp_path / "celeriac.toml").write_text(f'signing_key = "{KEY}"')
    check_one_line(findings_of(tmp_path), "secret-files")


def test_limits_and_folders_of_this_machine(tmp_path, monkeypatch):
    check_one_line(findings_of(tmp_path, concurrency="900000", output=str(tmp_path)), "open-files")
    check_one_line(findings_of(tmp_path, output=str(jobs(tmp_path))), "output")
    runtime = tmp_path / "run"
    (runtime / "celeriac").mkdir(parents=True, mode=0o755)
    with monkeypatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(runtime) if len(str(runtime)) < 60 else short_link(runtime))
        check_one_line(findings_of(tmp_path), "control-folder")
    monkeypatch.setitem(sys.modules, "psycopg", None)
    check_one_line(findings_of(tmp_path, ledger="postgresql://HOST/ledger"), "extras")


FILL = "mount -t tmpfs -o size=8m none full && dd if=/dev/zero of=full/x bs=1M count=6 status=none"
READ_ONLY = "for each in /tmp /var/tmp; do mount --rbind $each $each && mount -o remount,ro,bind $each; done"
AS_OTHER = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
MAY_READ = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")  # this Python may be in a private folder
MACHINE_FAULTS: dict[str, tuple[tuple[str, ...], dict[str, str], dict[str, str]]] = {
    "a full disk": (
        ("unshare", "--mount", "sh", "-c", f'{FILL} && exec "$@"', "sh"),
        {"TMPDIR": "full", "CELERIAC_LEDGER": "full/ledger.db"},
        {"temporary-folder": "MB left", "ledger-space": "MB left"},
    ),
    "folders that cannot be written": (
        ("unshare", "--mount", "sh", "-c", f'{READ_ONLY} && exec "$@"', "sh"),
        {"CELERIAC_LEDGER": "none"},
        {"temporary-folder": "no temporary file can be made"},
    ),
    "a limit of processes": (
        (*AS_OTHER, *MAY_READ, "prlimit", "--nproc=40:40"),
        {"CELERIAC_LEDGER": "none"},
        {"processes": "more processes"},
    ),
}
"""Each with the command that makes it real, settings, and the checks that report it with these words."""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
@pytest.mark.parametrize("fault", MACHINE_FAULTS)
def test_a_real_fault_of_this_machine(tmp_path, fault):
    before, environment, expected = MACHINE_FAULTS[fault]
    (tmp_path / "full").mkdir()
    environment = {name: str(tmp_path / value) if "full" in value else value for name, value in environment.items()}
    shown = run("doctor", "--json", "--concurrency", "16", cwd=tmp_path, env=environment, before=before)
    findings = json.loads(shown.out)["findings"]
    problems = {each["check"]: each["text"] for each in findings if each["level"] in PROBLEMS and each["remedy"]}
    assert set(problems) >= set(expected), findings
    assert all(words in problems[check] for check, words in expected.items())


def short_link(folder: Path) -> str:
    """Return another, short name of a folder: the path of a socket must be short."""
    link = Path(os.environ["XDG_RUNTIME_DIR"]) / "t"
    link.unlink(missing_ok=True)
    link.symlink_to(folder)
    return str(link)


# — workers —


LEASE = Lease(
    holder="w1",
    name="w1@there",
    host="there",
    pid=1,
    boot_id="b",
    queues=("default",),
    slots=4,
    version=__version__,
    keys=SigningKeys([KEY]).fingerprints,
)
WORKER_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "other version": ({"version": "0.0.1"}, "worker-versions"),
    "older version": ({"version": None, "keys": None, "clock": None}, "worker-versions"),
    "other key": ({"keys": SigningKeys([OTHER_KEY]).fingerprints}, "worker-keys"),
    "no key": ({"keys": ()}, "worker-keys"),
    "clock ahead": ({"clock": 1e10}, "worker-clocks"),
    "clock behind": ({"clock": 1e9}, "worker-clocks"),
    "refused messages": ({"refused": 3}, "refused-messages"),
}


@pytest.mark.parametrize("fault", ["", *WORKER_FAULTS])
def test_a_worker_that_does_not_fit(tmp_path, redis_with_lease, fault):
    fields, expected = WORKER_FAULTS.get(fault, ({}, ""))
    server = redis_with_lease(**{"clock": time.time(), **fields})
    findings = with_key(tmp_path, server.url)
    if expected:
        check_one_line(findings, expected)
    else:
        assert problems_of(findings) == set()


def with_key(folder: Path, url: str) -> list[Finding]:
    environment = {"CELERIAC_LEDGER": "none", "CELERIAC_SIGNING_KEY": KEY, "CELERIAC_BROKER": url}
    return examine(subjects_of(Given(read_settings({}, environment=environment, folder=folder))), timeout=TIMEOUT)


@pytest.fixture
def redis_with_lease(shared_redis) -> Iterator[Callable[..., Any]]:
    """A function that stores a lease with these fields, and returns the server."""
    shared_redis.command("FLUSHALL")
    app = make_app(broker_url=shared_redis.url, result_backend=shared_redis.url)
    claims = claims_for(app, timeout=5)
    assert claims is not None

    def store(**fields: Any) -> Any:
        claims.renew(msgspec.structs.replace(LEASE, **fields))
        return shared_redis

    yield store
    claims.close()
    app.close()
    shared_redis.command("FLUSHALL")


def test_a_worker_without_a_heartbeat_and_a_queue_without_a_worker(tmp_path, redis_with_lease):
    server = redis_with_lease(clock=time.time())
    server.command("EXPIRE", "celeriac-lease-w1", LEASE_KEPT - 60)
    check_one_line(with_key(tmp_path, server.url), "workers")
    server = redis_with_lease(clock=time.time())
    app = make_app(broker_url=server.url, result_backend=server.url)
    app.send_task("t", queue="gpu")
    app.close()
    check_one_line(with_key(tmp_path, server.url), "queues-served")


def test_machines_without_the_key_of_a_worker(tmp_path, redis_with_lease):
    server = redis_with_lease(clock=time.time())
    check_one_line(findings_of(tmp_path, broker=server.url, with_workers=True), "worker-keys")


# — the command —


def test_a_healthy_deployment(tmp_path, rabbit, postgres, bouncer, shared_redis):
    for urls in ((rabbit.url, postgres.url), (shared_redis.url, bouncer.url)):
        with worker(tmp_path, urls) as running:
            until(partial(has_lease, urls), "a lease")
            options = ("--broker", urls[0], "--backend", urls[1], "--ledger", postgres.ledger_url)
            ended = run("doctor", *options, "--json", cwd=tmp_path)
            running.process.terminate()
            assert running.wait().status == 0
        output = msgspec.json.decode(ended.out, type=OUTPUTS["doctor"], strict=True)
        levels = {finding.check: finding.level for finding in output.findings}
        assert set(levels.values()) == {"ok"}, ended.out
        assert (ended.status, output.errors, output.warnings) == (0, 0, 0)
        assert next(each.text for each in output.findings if each.check == "workers").startswith("1 ")


def has_lease(urls: tuple[str, str]) -> bool:
    app = make_app(broker_url=urls[0], result_backend=urls[1])
    claims = claims_for(app, timeout=5)
    assert claims is not None
    with closing(app), closing(claims):
        return bool(claims.leases())


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_output_fits_the_terminal(tmp_path, shared_redis, width):
    with eviction(shared_redis, "allkeys-lru"):
        options = ("--broker", shared_redis.url, "--ledger", "none")
        ended = run_in_process("doctor", *options, cwd=tmp_path, env={"COLUMNS": str(width)})
    assert (ended.status, ended.err) == (1, "")
    lines = ended.out.splitlines()
    assert max(map(len, lines)) <= width
    assert "\x1b" not in ended.out
    assert any("→ CONFIG SET" in line for line in lines)
    assert any("error" in line and "redis-eviction" in line for line in lines)
    assert lines[-1].endswith(": 1 error, 0 warnings")


def test_exit_statuses(tmp_path, shared_redis):
    healthy = run_in_process("doctor", "--broker", shared_redis.url, "--ledger", "none", "-q", cwd=tmp_path)
    assert (healthy.status, healthy.out.splitlines()[-1].partition(": ")[2]) == (0, "0 errors, 0 warnings")
    assert len(healthy.out.splitlines()) == 1
    for wrong in (("--concurrency", "x"), ("--config", "none.toml"), ("--broker", "no URL")):
        ended = run_in_process("doctor", *wrong, "--json", cwd=tmp_path)
        assert ended.status == 2
        assert json.loads(ended.out)["error"]
    (tmp_path / "celeriac.toml").write_text('concurency = "x"')
    ended = run_in_process("doctor", "--json", cwd=tmp_path)
    findings = [finding for finding in json.loads(ended.out)["findings"] if finding["level"] == "error"]
    assert (ended.status, [finding["check"] for finding in findings]) == (1, ["settings"])
    assert "concurrency" in findings[0]["remedy"]


def test_a_worker_and_a_service_warn_at_their_start(tmp_path, shared_redis):
    file = tmp_path / "broker.url"
    file.write_text(shared_redis.url)
    open_to_others(file)
    for command in (("worker",), ("serve", "--ledger", "ledger.db")):
        with started(*command, "--broker-file", str(file), cwd=tmp_path) as process:
            process.wait_for_stderr(f"every user can read the secrets in {file}")


def test_a_worker_asks_its_result_backend_at_its_start(tmp_path, shared_redis):
    def found(url: str) -> list[str]:
        settings = read_settings({"broker": url}, environment={}, folder=tmp_path)
        return [finding.check for finding in server_problems(backend_state_subject(settings.connection), TIMEOUT)]

    assert found(shared_redis.url) == []
    with eviction(shared_redis, "allkeys-lru"):
        assert found(shared_redis.url) == ["redis-eviction"]
    assert found(f"redis://127.0.0.1:{NOTHING_LISTENS}/0") == []


def test_no_password_is_shown(tmp_path, shared_redis):
    url = f"redis://user:very-secret@127.0.0.1:{shared_redis.port}/0"
    ended = run_in_process(
        "doctor", "--json", cwd=tmp_path, env={"CELERIAC_BROKER": url, "CELERIAC_SIGNING_KEY": "K" * 20}
    )
    assert ended.status == 1
    assert "very-secret" not in ended.out + ended.err
    assert "KKKK" not in ended.out + ended.err
