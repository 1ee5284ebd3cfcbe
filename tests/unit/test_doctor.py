"""The decisions of the checks of `celeriac doctor`, and the report of a check that hangs or has a bug."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from celeriac.backend.claims.claim import Lease
from celeriac.cluster.status_parts import QueueStatus
from celeriac.config.settings import read_settings
from celeriac.config.signing import SigningKeys
from celeriac.doctor import database, files, ledger, machine, rabbitmq, redis, workers
from celeriac.doctor.at_start import warn_at_start
from celeriac.doctor.check import Check, Level, Problem, Subject, Unreadable, error, examine, warning
from celeriac.doctor.disk import LITTLE, TOO_LITTLE, free_problem, network_type
from celeriac.doctor.ledger import LedgerFile
from celeriac.doctor.ledger_content import CONTENT
from celeriac.doctor.machine import (
    SPARE_PROCESSES,
    cgroup_room,
    control_folder_problem,
    open_files_problem,
    processes_problem,
    python_problem,
)
from celeriac.doctor.redis import RedisFacts
from celeriac.doctor.server import ServerFacts, clock_problem, connections_problem, owner_of
from celeriac.errors import BrokerBlocked, BrokerUnavailable, QueueRefused

PAGE = Path(__file__).parents[2] / "docs" / "doctor.md"
ALL: dict[str, tuple[Check[Any], ...]] = {
    "This machine": machine.CHECKS,
    "Settings": files.CHECKS,
    "A ledger in a file": (*ledger.CHECKS, CONTENT),
    "Redis and Valkey": redis.CHECKS,
    "RabbitMQ": rabbitmq.CHECKS,
    "PostgreSQL": (*database.LEDGER_CHECKS, database.CHANGES_CHECK),
    "Workers and queues": workers.CHECKS,
}
LEASE = Lease(holder="w", name="w@h", host="h", pid=1, boot_id="", queues=("q",), slots=1, version="1", keys=())


def levels(problems: Iterable[Problem]) -> list[Level]:
    return [problem.level for problem in problems]


def check(id: str, look: Callable[[Any], Any] = lambda _: (), **options: Any) -> Check[Any]:
    return Check(id=id, sound=f"{id} is sound", risk="none", look=look, **options)


def ends(checks: list[Check[Any]], read: Callable[[], Any] = lambda: None, timeout: float = 60) -> dict[str, Level]:
    """Return the level of each check."""
    return {finding.check: finding.level for finding in examine([Subject("it", read, checks)], timeout=timeout)}


# — examinations —


def test_a_check_without_a_problem_says_what_is_sound_and_one_with_a_problem_says_what_to_do():
    checks = [
        check("a"),
        check("b", lambda _: [warning("it is b", "mend b")]),
        check("c", describe=lambda facts: facts),
    ]
    found = examine([Subject("it", lambda: "three", checks)], timeout=60)
    assert [(each.text, each.remedy) for each in found] == [
        ("a is sound", None),
        ("it is b", "mend b"),
        ("three", None),
    ]


def test_after_a_vital_error_the_other_checks_of_the_subject_are_skipped():
    wrong = check("a", lambda _: [error("x", "y")], is_vital=True)
    assert ends([wrong, check("b")]) == {"a": Level.ERROR, "b": Level.SKIPPED}
    late = check("b", lambda _: [warning("x", "y")], is_vital=True)
    assert ends([check("a"), late, check("c")]) == {"a": Level.OK, "b": Level.WARNING, "c": Level.OK}


def test_a_bug_in_a_check_is_reported_and_stops_no_other_one():
    found = examine([Subject("it", lambda: 0, [check("a", lambda facts: 1 / facts), check("b")])], timeout=60)
    assert [each.level for each in found] == [Level.ERROR, Level.OK]
    assert "ZeroDivisionError" in found[0].text
    assert "test_doctor.py:" in found[0].text
    assert "bug in Celeriac" in str(found[0].remedy)


def test_a_bug_in_reading_a_subject_leaves_the_other_subjects():
    subjects = [Subject("it", lambda: 1 // 0, [check("a"), check("b")]), Subject("other", lambda: 1, [check("c")])]
    found = examine(subjects, timeout=60)
    assert [each.level for each in found] == [Level.ERROR, Level.SKIPPED, Level.OK]


def test_a_subject_that_others_report_is_skipped():
    def read() -> None:
        raise Unreadable

    assert ends([check("a"), check("b")], read) == {"a": Level.SKIPPED, "b": Level.SKIPPED}


def test_a_check_that_hangs_is_given_up_and_named():
    end = threading.Event()
    try:
        hangs = [check("a"), check("b", lambda _: [end.wait(60)][:0]), check("c")]
        assert ends(hangs, timeout=0.2) == {"a": Level.OK, "b": Level.ERROR, "c": Level.SKIPPED}
    finally:
        end.set()


# — at the start of a worker —


def test_warnings_at_the_start_are_those_of_cheap_checks(tmp_path):
    file = tmp_path / "broker.url"
    file.write_text("redis://HOST/0")
    file.chmod(0o644)
    settings = read_settings({"broker_file": str(file)}, environment={}, folder=tmp_path)
    lines: list[str] = []
    cheap = check("a", lambda _: [warning("it is a", "mend a")], is_cheap=True)
    dear = check("b", lambda _: [warning("it is b", "mend b")])
    warn_at_start(settings, None, lines.append, Subject("it", lambda: None, [cheap, dear]))
    assert "it is a; mend a" in lines
    assert [line for line in lines if "it is b" in line] == []
    assert [line for line in lines if str(file) in line] == [
        f"every user can read the secrets in {file} (its mode is 0644); chmod 600 {file}"
    ]


# — this machine —


def test_python_and_limits():
    assert levels(python_problem((3, 10, 12))) == [Level.ERROR]
    assert levels(python_problem((3, 14, 0))) == []
    assert levels(open_files_problem(None, 10_000)) == []
    assert levels(open_files_problem(1024, 8)) == []
    assert levels(open_files_problem(1024, 1000)) == [Level.WARNING]
    assert levels(open_files_problem(40, 1)) == [Level.ERROR]
    assert levels(processes_problem(None, 10_000)) == []
    assert levels(processes_problem(2 * 8 + SPARE_PROCESSES, 8)) == []
    assert levels(processes_problem(2 * 8 + SPARE_PROCESSES - 1, 8)) == [Level.WARNING]


@pytest.mark.parametrize(("limit", "room"), [("max", None), ("100", 93), (None, None)])
def test_the_processes_of_a_container(tmp_path, limit, room):
    if limit is not None:
        (tmp_path / "pids.max").write_text(f"{limit}\n")
        (tmp_path / "pids.current").write_text("7\n")
    assert cgroup_room(tmp_path) == room


def test_the_folder_of_control_sockets():
    def found(*, exists: bool, private: bool, may_create: bool) -> list[Level]:
        return levels(control_folder_problem(Path("/f"), exists=exists, private=private, may_create=may_create))

    assert found(exists=True, private=True, may_create=False) == []
    assert found(exists=True, private=False, may_create=True) == [Level.WARNING]
    assert found(exists=False, private=False, may_create=True) == []
    assert found(exists=False, private=False, may_create=False) == [Level.WARNING]


MOUNTS = [
    "/dev/sda1 / ext4 rw 0 0",
    "server:/export /srv/with\\040space nfs4 rw 0 0",
    "tmpfs /srv/with\\040space/local tmpfs rw 0 0",
    "host:/ /mnt/ssh fuse.sshfs rw 0 0",
    "/dev/sdb1 /mnt/ssh/disk ext4 rw 0 0",
    "malformed",
]


def test_the_type_of_a_network_disk():
    assert network_type(Path("/home/u"), MOUNTS) is None
    assert network_type(Path("/srv/with space/runs"), MOUNTS) == "nfs4"
    assert network_type(Path("/srv/with space/local/runs"), MOUNTS) is None
    assert network_type(Path("/mnt/ssh"), MOUNTS) == "fuse.sshfs"
    assert network_type(Path("/mnt/ssh/disk/x"), MOUNTS) is None
    assert network_type(Path("/x"), []) is None


def test_a_ledger_on_a_network_disk(tmp_path):
    (tmp_path / "on").mkdir()
    mounts = (f"server:/export {tmp_path.resolve()} cifs rw 0 0",)
    shared = LedgerFile("", tmp_path / "on" / "new" / "ledger.db", is_default=True, mounts=mounts)
    assert levels(ledger.disk_problem(shared)) == [Level.ERROR]
    local = LedgerFile("", tmp_path / "ledger.db", is_default=True, mounts=tuple(MOUNTS))
    assert levels(ledger.disk_problem(local)) == []


def test_a_full_disk():
    def found(free: int, size: int) -> list[Level]:
        return levels(free_problem(Path("/f"), free, size))

    assert found(10**12, 2 * 10**12) == []
    assert found(LITTLE - 1, 2 * 10**12) == [Level.WARNING]
    assert found(TOO_LITTLE - 1, 2 * 10**12) == [Level.ERROR]
    assert found(10**8, 2 * 10**8) == []  # a small disk is not full
    assert found(0, 0) == []  # a file system without a size


# — settings —


def test_a_certificate_that_is_not_verified(tmp_path):
    def found(url: str) -> list[Level]:
        return levels(files.tls_problems(files.Given(read_settings({"broker": url}, environment={}, folder=tmp_path))))

    assert found("rediss://HOST/0") == []
    assert found("rediss://HOST/0?ssl_cert_reqs=none") == [Level.WARNING]
    assert found("rediss://HOST/0?ssl_cert_reqs=CERT_NONE") == [Level.WARNING]


def test_the_sources_of_settings(tmp_path):
    file = tmp_path / "celeriac.toml"
    file.write_text('log_level = "error"\nqueues = ["a"]')
    given = files.Given(read_settings({"concurrency": "3"}, environment={"CELERIAC_GRACE": "1"}, folder=tmp_path))
    sources = files.sources_of(given).removeprefix("from ").split(", ")
    assert sorted(sources) == sorted((str(file), "CELERIAC_GRACE", "--concurrency"))


def test_secrets_that_docker_or_kubernetes_mounts_are_readable_for_all(tmp_path):
    hidden = tmp_path / "..2026_11_28"
    hidden.mkdir()
    file, link = hidden / "key", tmp_path / "key"
    file.write_text("secret")
    file.chmod(0o644)
    link.symlink_to(file)
    assert levels(files.secret_file_problems([link])) == []
    plain = tmp_path / "plain"
    plain.write_text("secret")
    plain.chmod(0o644)
    assert levels(files.secret_file_problems([plain, plain])) == [Level.WARNING]
    plain.chmod(0o666)
    assert levels(files.secret_file_problems([plain])) == [Level.ERROR]
    plain.chmod(0o640)
    assert levels(files.secret_file_problems([plain])) == []


# — servers —


def test_the_check_that_reports_an_error():
    def refused(answer: str) -> BrokerUnavailable:
        return BrokerUnavailable("amqp://HOST", QueueRefused("q", answer))

    assert owner_of(refused("ACCESS_REFUSED - access to queue 'q' refused")) == "rights"
    assert owner_of(refused("PRECONDITION_FAILED - inequivalent arg 'x-max-priority'")) == "rabbitmq-queues"
    assert owner_of(BrokerUnavailable("amqp://HOST", BrokerBlocked())) == "rabbitmq-alarm"
    assert owner_of(BrokerUnavailable("redis://HOST", ConnectionRefusedError("refused"))) == "reachable"
    assert owner_of(PermissionError(13, "Permission denied")) == "rights"


def test_an_error_without_a_check_of_its_own_is_reported_once():
    facts = ServerFacts(error=BrokerUnavailable("amqp://HOST", BrokerBlocked()))
    reporting = [each for each in ("reachable", "login", "rights", "writable") if [*facts.problems(each)]]
    assert reporting == ["writable"]


def test_the_removal_of_claims_and_messages():
    def found(policy: str, *, maxmemory: int = 1, has_claims: bool = True) -> list[Level]:
        info = {"maxmemory": maxmemory, "maxmemory_policy": policy}
        return levels(redis.eviction_problem(RedisFacts(info=info, has_claims=has_claims, has_messages=True)))

    assert found("noeviction") == []
    assert found("allkeys-lru") == found("volatile-lru") == [Level.ERROR]
    assert found("allkeys-lru", maxmemory=0) == []
    assert found("volatile-lru", has_claims=False) == []  # messages do not expire
    assert found("allkeys-lru", has_claims=False) == [Level.ERROR]
    assert levels(redis.eviction_problem(RedisFacts(has_claims=True))) == []  # INFO is not allowed


def test_persistence():
    def found(save: str | None, **info: Any) -> list[Level]:
        return levels(redis.persistence_problem(RedisFacts(info=info, save=save, has_claims=True)))

    assert found("", aof_enabled=0) == [Level.WARNING]
    assert found("", aof_enabled=1) == found("3600 1", aof_enabled=0) == found(None, aof_enabled=0) == []
    assert found("3600 1", aof_enabled=0, rdb_last_bgsave_status="err") == [Level.ERROR]
    assert found("", aof_enabled=1, rdb_last_bgsave_status="err") == []  # no more snapshots are made
    assert found("", aof_enabled=1, aof_last_write_status="err") == [Level.ERROR]


def test_clocks_and_connections_of_a_server():
    assert levels(clock_problem(ServerFacts(clock=None))) == levels(clock_problem(ServerFacts(clock=-4.9))) == []
    assert (
        levels(clock_problem(ServerFacts(clock=5.1)))
        == levels(clock_problem(ServerFacts(clock=-60)))
        == [Level.WARNING]
    )
    assert levels(connections_problem(ServerFacts(connections=(89, 100)))) == []
    assert levels(connections_problem(ServerFacts(connections=(90, 100)))) == [Level.WARNING]


def test_the_consumer_timeout_matters_without_claims_and_before_version_3_11_15():
    def found(version: str, *, has_claims: bool = False) -> list[Level]:
        numbers = rabbitmq.version_of({"version": version})
        return levels(rabbitmq.consumer_timeout_problem(rabbitmq.RabbitFacts(version=numbers, has_claims=has_claims)))

    assert found("3.10.8") == found("3.11.14") == [Level.WARNING]
    assert found("3.11.15") == found("4.0.1-rc.1") == found("unknown") == []
    assert found("3.10.8", has_claims=True) == []


# — workers —


def facts_of(age: float = 1.0, clock: float = 0.0, **lease: Any) -> workers.Workers:
    worker = workers.Worker(lease=msgspec.structs.replace(LEASE, **lease), age=age, clock=clock)
    return workers.Workers(workers=[worker], queues=[], keys=None, version="1")


def problems_of(facts: workers.Workers) -> dict[str, list[Level]]:
    found = {each.id: levels(each.look(facts)) for each in workers.CHECKS}
    return {name: each for name, each in found.items() if each}


def test_workers_that_agree():
    assert problems_of(facts_of()) == {}


def test_signing_keys():
    one, other = SigningKeys(["k" * 16]).fingerprints, SigningKeys(["o" * 16]).fingerprints

    def found(here: tuple[str, ...] | None, there: tuple[str, ...] | None) -> list[Level]:
        worker = workers.Worker(lease=msgspec.structs.replace(LEASE, keys=there), age=1.0)
        return levels(workers.key_problems(workers.Workers(workers=[worker], queues=[], keys=here, version="1")))

    assert found(one, one) == found(one, other + one) == found(None, ()) == found(None, None) == found(one, None) == []
    assert found(one, other) == found(None, one) == found(other + one, one) == [Level.ERROR]
    assert found(one, ()) == [Level.WARNING]


def test_a_fingerprint_tells_keys_apart_and_shows_none():
    keys = SigningKeys(["the secret of one", "a secret of two!", "the secret of one!"])
    assert len(set(keys.fingerprints)) == 3
    assert SigningKeys(["a secret of two!"]).fingerprints == keys.fingerprints[1:2]
    assert all(re.fullmatch("[0-9a-f]{12}", each) for each in keys.fingerprints)


def test_a_silent_worker_is_reported_for_its_silence_alone():
    assert problems_of(facts_of(age=11.0, version="0", clock=100.0, refused=3)) == {"workers": [Level.WARNING]}
    assert problems_of(facts_of(version="0")) == {"worker-versions": [Level.WARNING]}
    assert problems_of(facts_of(clock=-6.0)) == {"worker-clocks": [Level.WARNING]}
    assert problems_of(facts_of(refused=3)) == {"refused-messages": [Level.WARNING]}


def test_the_clock_of_a_worker():
    now = time.time()
    lease = msgspec.structs.replace(LEASE, clock=now)
    assert workers.clock_of(lease, 2.0, now + 2.0) == pytest.approx(0.0)
    assert workers.clock_of(lease, 2.0, now + 32.0) == pytest.approx(-30.0)
    assert workers.clock_of(lease, None, now) is None
    assert workers.clock_of(LEASE, 2.0, now) is None
    assert workers.clock_of(lease, 2.0, None) == 0.0
    ahead = workers.clock_of(msgspec.structs.replace(LEASE, clock=now + 1e6), 2.0, None)
    assert ahead is not None
    assert ahead > 900_000


def test_queues_that_no_worker_serves():
    queues = [QueueStatus("gpu", 3, None, 0), QueueStatus("served", 3, None, 1), QueueStatus("empty", 0, None, 0)]
    facts = workers.Workers(workers=[], queues=queues, keys=None)
    (problem,) = workers.queue_problems(facts)
    assert problem.text == "3 messages wait in queue gpu, and no worker serves it"
    assert problem.remedy == "celeriac worker --queues gpu"


# — the page —


def test_the_page_has_each_check_and_no_other():
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.M)[1:]
    tables = {section.partition("\n")[0]: re.findall(r"^\| `.*$", section, flags=re.M) for section in sections}
    for title, checks in ALL.items():
        assert tables.pop(title) == [f"| `{each.id}` | {each.sound} | {each.risk} |" for each in checks]
    assert not any(tables.values())


def test_no_two_checks_of_a_subject_have_the_same_id():
    for checks in ALL.values():
        ids = [each.id for each in checks]
        assert len(ids) == len(set(ids))
        assert max(map(len, ids)) < 26
