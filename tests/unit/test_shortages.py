"""A supervisor without descriptors, processes or memory lets commands wait, and kills and fails none."""

from __future__ import annotations

import errno
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial

import psutil
import pytest

from celeriac.cluster.local import supervisor_pool
from celeriac.cluster.local.supervisor_pool import SupervisorPool
from celeriac.shortages import describe_shortage, is_shortage
from celeriac.worker import start
from celeriac.worker.runner import Runner
from celeriac.worker.supervisor import resources
from celeriac.worker.supervisor.messages import CommandReport, CommandRequest, OutputRequest, StopReason
from celeriac.worker.supervisor.resources import LEAST, LEAST_OF_WORKER, commands_that_fit, warning_of_limit
from celeriac.worker.supervisor_client import CommandChannel, SupervisorDied, SupervisorProcess
from tests.support.cli_runner import jobs, run, started, until

SHORTAGE = "commands cannot start for now: too many open files"


@pytest.mark.parametrize(
    ("limit", "supervisors", "fitting"),
    [(None, 2, float("inf")), (1024, 2, 248), (1024, 1, 124), (40, 2, 2), (40, 1, 1), (32, 2, 1), (3, 2, 1)],
)
def test_the_limit_of_open_files_says_how_many_commands_fit(limit, supervisors, fitting):
    assert commands_that_fit(limit, supervisors=supervisors) == fitting


def test_a_parallelism_that_does_not_fit_is_named(monkeypatch):
    monkeypatch.setattr(resources, "hard_limit", lambda: 1024)
    warning = warning_of_limit(500, supervisors=2)
    assert warning is not None
    assert "parallelism of 500 does not fit the hard limit of 1,024 open files: at most 248 commands" in warning
    assert warning_of_limit(248, supervisors=2) is None


def test_a_worker_starts_with_as_many_threads_as_fit(monkeypatch, caplog):
    monkeypatch.setattr(start, "allow_open_files", lambda _: None)  # the limit of this test stays
    for module in (resources, start):
        monkeypatch.setattr(module, "hard_limit", lambda: 64)
    assert start.concurrency_that_fits(4) == 4
    assert not caplog.records
    assert start.concurrency_that_fits(16) == 4
    assert "a parallelism of 16 does not fit the hard limit of 64 open files: at most 4 commands" in caplog.text


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE])
def test_a_shortage_is_told_from_other_errors(number):
    assert is_shortage(OSError(number, os.strerror(number)))
    assert describe_shortage(OSError(number, "")) in (
        "the limit of processes is reached",
        "cannot allocate memory",
        "too many open files",
        "too many open files in system",
    )


def test_other_errors_are_no_shortage():
    assert is_shortage(MemoryError())
    assert not is_shortage(FileNotFoundError(errno.ENOENT, "no"))
    assert not is_shortage(ValueError())


def request(script: str, **fields: object) -> CommandRequest:
    defaults: dict[str, object] = {
        "id": "an id",
        "argv": ["/bin/sh", "-c", script],
        "cwd": None,
        "env": {},
        "secrets": [],
        "timeout": None,
        "grace": 1.0,
        "start_by": None,
        "output": OutputRequest(stdout=None, stderr=None, cap=0, keep_empty=False),
    }
    return CommandRequest(**{**defaults, **fields})  # type: ignore[arg-type]


@contextmanager
def no_descriptors(pid: int) -> Iterator[None]:
    """Let a process open no more files."""
    former_limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    if pid != os.getpid():  # it may be in the middle of something, with one more descriptor open
        until(lambda: psutil.Process(pid).status() == psutil.STATUS_SLEEPING, "a supervisor that waits")
    lowest_free = next(number for number in range(1024) if not os.path.lexists(f"/proc/{pid}/fd/{number}"))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest_free, former_limits[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, former_limits)


@pytest.fixture
def supervisor() -> Iterator[SupervisorProcess]:
    with closing(SupervisorProcess()) as process:
        yield process


@pytest.fixture
def channel(supervisor: SupervisorProcess) -> Iterator[CommandChannel]:
    with closing(supervisor.open_channel()) as channel:
        channel.start(request("exit 7"))
        assert channel.report().status == 7 << 8
        yield channel


def notice_of(supervisor: SupervisorProcess) -> str:
    notices: list[str] = []

    def has_notice() -> bool:
        notices.append(supervisor.take_notice() or "")
        return bool(notices[-1])

    until(has_notice, "a notice")
    return notices[-1]


def test_a_command_waits_for_descriptors_and_the_worker_is_told_once(supervisor, channel, tmp_path):
    output = OutputRequest(stdout=str(tmp_path / "out"), stderr=None, cap=1_000_000, keep_empty=True)
    with no_descriptors(supervisor.pid):
        channel.start(request("echo done", output=output))
        assert notice_of(supervisor) == "too many open files"
        assert not (tmp_path / "out").exists()
    report = channel.report()
    assert (report.status, report.error, report.output_error) == (0, None, None)
    assert (tmp_path / "out").read_text() == "done\n"
    assert supervisor.take_notice() == ""


def test_a_running_command_is_not_disturbed_by_a_shortage(supervisor, channel, tmp_path):
    with closing(supervisor.open_channel()) as other:
        other.start(request(f"echo begun; until [ -e {tmp_path}/go ]; do sleep 0.02; done; echo ended", id="other"))
        until(lambda: psutil.Process(supervisor.pid).children(), "the other command")
        time.sleep(2 * 0.01)  # until its output is watched
        with no_descriptors(supervisor.pid):
            channel.start(request("echo late"))
            notice_of(supervisor)
            (tmp_path / "go").touch()
            assert other.report().stdout.tail == "begun\nended\n"
    assert channel.report().stdout.tail == "late\n"


def test_a_command_that_waits_can_be_revoked(supervisor, channel, tmp_path):
    with no_descriptors(supervisor.pid):
        channel.start(request(f"touch {tmp_path}/ran"))
        notice_of(supervisor)
        channel.stop("an id", StopReason.REVOKED)
        report = channel.report()
    assert (report.pid, report.stopped) == (None, StopReason.REVOKED)
    channel.start(request("true"))
    assert channel.report().status == 0
    assert not (tmp_path / "ran").exists()


def test_the_end_of_the_worker_ends_a_command_that_waits(supervisor, channel, tmp_path):
    with no_descriptors(supervisor.pid):
        channel.start(request(f"touch {tmp_path}/ran"))
        notice_of(supervisor)
        supervisor.begin_shutdown()
        assert channel.report().stopped is StopReason.WORKER_GONE
    supervisor.close()
    assert not (tmp_path / "ran").exists()


def test_a_command_that_came_in_time_may_start_late_while_the_lease_is_good(supervisor, channel):
    limit = time.monotonic() + 0.5
    supervisor.heartbeat(time.monotonic())
    with no_descriptors(supervisor.pid):
        channel.start(request("true", start_by=limit))
        notice_of(supervisor)
        until(lambda: time.monotonic() > limit, "the limit")
        supervisor.heartbeat(time.monotonic())
    assert channel.report().status == 0


def test_a_command_that_came_in_time_starts_no_more_without_a_lease(supervisor, channel):
    limit = time.monotonic() + 0.5
    with no_descriptors(supervisor.pid):
        channel.start(request("true", start_by=limit))
        notice_of(supervisor)
        assert channel.report().stopped is StopReason.TOO_LATE


def test_a_runner_repeats_a_request_that_never_reached_its_supervisor(caplog, tmp_path):
    runner = Runner()
    reports: list[CommandReport | None] = []

    def run() -> None:
        reports.append(runner.run(request(f"echo ran >> {tmp_path}/ran", id=str(len(reports)))))
        runner._local.channel.close()

    def supervisor_of(runner: Runner) -> int:
        assert runner._supervisor is not None
        return runner._supervisor.pid

    with closing(runner):
        run()
        pid = supervisor_of(runner)
        thread = threading.Thread(target=run)

        def is_warned() -> bool:
            runner.heartbeat(time.monotonic())
            return SHORTAGE in caplog.text

        with no_descriptors(pid):
            thread.start()
            until(is_warned, "the warning")
        thread.join(30)
        assert [report and report.status for report in reports] == [0, 0]
        assert supervisor_of(runner) == pid
    assert (tmp_path / "ran").read_text() == "ran\nran\n"


class Ends:
    """The reports of the commands of a pool."""

    def __init__(self, pool: SupervisorPool) -> None:
        self._pool = pool
        self.started: list[str] = []
        self.reports: list[CommandReport | SupervisorDied] = []

    def start(self, script: str, task_id: str = "an id") -> None:
        self._pool.start(request(script, id=task_id), partial(self.started.append, task_id), self.reports.append)

    def wait(self, number: int) -> list[int | None]:
        """Return the status of each command once this number of them has ended."""

        def have_ended() -> bool:
            self._pool.poll(0.1)
            return len(self.reports) == number

        until(have_ended, "the end of all")
        return [report.status for report in self.reports if isinstance(report, CommandReport)]


def test_a_pool_runs_fewer_at_a_time(tmp_path):
    pool = SupervisorPool()
    pool.capacity = 2
    ends = Ends(pool)
    with closing(pool):
        for number in range(6):
            ends.start(f"until [ -e {tmp_path}/go ]; do sleep 0.02; done", str(number))
        pool.poll(0)
        assert ends.started == ["0", "1"]
        pool.revoke_waiting("2")
        pool.revoke_waiting("0")  # it runs
        (revoked,) = ends.reports
        assert isinstance(revoked, CommandReport)
        assert revoked.stopped is StopReason.REVOKED
        (tmp_path / "go").touch()
        assert ends.wait(6) == [None, 0, 0, 0, 0, 0]
    assert ends.started == ["0", "1", "3", "4", "5"]


def test_a_pool_without_descriptors_of_its_own_waits_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(supervisor_pool, "allow_open_files", lambda _: None)  # the limit of this test stays
    pool = SupervisorPool()
    ends = Ends(pool)
    with closing(pool):
        with no_descriptors(os.getpid()):
            for number in range(3):
                ends.start("true", str(number))
            pool.poll(0)
        assert ends.wait(3) == [0, 0, 0]
    assert [record.getMessage() for record in caplog.records if SHORTAGE in record.getMessage()] == [
        f"{SHORTAGE}; they wait. Raise the limits of the system, or run fewer at a time"
    ]


def test_a_pool_repeats_a_request_that_never_reached_its_supervisor(tmp_path):
    pool = SupervisorPool()
    ends = Ends(pool)
    with closing(pool):
        with no_descriptors(pool._supervisors[0].pid):
            ends.start(f"echo ran >> {tmp_path}/ran")
            pool.poll(5)
            assert not ends.reports
        assert ends.wait(1) == [0]
    assert (tmp_path / "ran").read_text() == "ran\n"


def test_a_hard_limit_that_is_too_low_for_one_command_is_refused(tmp_path):
    jobs(tmp_path, "true", name="jobs.txt")
    few = ("prlimit", f"--nofile={LEAST - 1}:{LEAST - 1}")
    ended = run("run", "jobs.txt", "--ledger", "none", cwd=tmp_path, before=few)
    assert (ended.status, ended.err) == (2, f"celeriac: {too_low(LEAST)}\n")


def test_a_worker_of_a_broker_needs_more_open_files(shared_redis, tmp_path):
    few = ("prlimit", f"--nofile={LEAST_OF_WORKER - 1}:{LEAST_OF_WORKER - 1}")
    ended = run("worker", "--broker", shared_redis.url, "-c", "2", cwd=tmp_path, before=few)
    assert ended.status == 2
    assert too_low(LEAST_OF_WORKER) in ended.err
    enough = ("prlimit", f"--nofile={LEAST_OF_WORKER}:{LEAST_OF_WORKER}")
    file = jobs(tmp_path, *({"command": "true"} for _ in range(6)))
    with started("worker", "--broker", shared_redis.url, "-c", "2", cwd=tmp_path, before=enough) as worker:
        assert run("run", file, "--broker", shared_redis.url, cwd=tmp_path).status == 0
        worker.process.terminate()
        assert "Too many open files" not in worker.wait().err


def too_low(least: int) -> str:
    problem = f"the hard limit of {least - 1} open files is too low to run a command"
    return f"open files: {problem}; raise it with ulimit -Hn to {least} or more"


def test_errors_of_python_itself_that_say_that_the_system_is_exhausted():
    thread, library = RuntimeError("can't start new thread"), ImportError("_ssl.so: failed to map segment from file")
    files = ImportError("_ssl.so: cannot open shared object file: Too many open files")
    assert describe_shortage(thread) == "no thread can be started, for lack of processes or memory"
    assert describe_shortage(library) == "cannot allocate memory"
    assert describe_shortage(files) == "too many open files"
    assert all(map(is_shortage, (thread, library, files)))
    assert not is_shortage(RuntimeError("another one"))
    assert not is_shortage(ImportError("no module"))
