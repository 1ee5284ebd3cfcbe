"""Tasks that are killed from outside, on a real worker: what the worker's log, the task's log and the result say.

A small server is Airflow's API server: see `test_worker`.
"""

from __future__ import annotations

import json
import os
import signal
from contextlib import closing, contextmanager
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from tests.airflow import workloads as workload_factory
from tests.airflow.api_server import Behaviour
from tests.airflow.test_worker import environment, redis, sender, server, started_pid, worker  # noqa: F401
from tests.support.cli_runner import until
from tests.support.servers import lives

LOG = "dag_id=waits/run_id=run/task_id=wait/attempt=1.log"
NAME = "dag_id=waits task_id=wait run_id=run try_number=1"


@pytest.fixture
def waiting(environment, server, tmp_path):  # noqa: F811
    """The environment of a worker whose task waits."""
    server.behaviour = Behaviour.START
    return environment | {
        "AIRFLOW__CORE__DAGS_FOLDER": str(Path(__file__).parent / "dags"),
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(tmp_path / "logs"),
        "CELERIAC_TEST_WAIT": str(tmp_path),
    }


def waiting_task():
    task = workload_factory.task("wait", dag_id="waits")
    return task.model_copy(update={"dag_rel_path": Path("waits.py"), "log_path": LOG})


class MemoryGroup:
    """A cgroup of a worker, if this machine lets the tests make one: else `limit` kills the task instead."""

    def __init__(self, worker):
        self._folder = Path(f"/sys/fs/cgroup/memory/celeriac-{uuid4()}")
        self._worker = psutil.Process(worker.pid)
        self.is_real = os.access(self._folder.parent, os.W_OK) and os.geteuid() == 0
        if self.is_real:
            self._folder.mkdir()
            for process in self._family():
                (self._folder / "cgroup.procs").write_text(str(process.pid))

    def limit(self):
        """Leave the task little memory."""
        if self.is_real:
            used = int((self._folder / "memory.usage_in_bytes").read_text())
            (self._folder / "memory.limit_in_bytes").write_text(str(used + 2**26))
        else:
            self._family()[-1].kill()

    def close(self):
        if self.is_real:
            for process in self._family():
                (self._folder.parent / "cgroup.procs").write_text(str(process.pid))
            self._folder.rmdir()

    def _family(self):
        return [self._worker, *self._worker.children(recursive=True)]


@contextmanager
def memory_group(worker):
    with closing(MemoryGroup(worker)) as group:
        yield group


def lines_of_celeriac(tmp_path):
    """Return what Celeriac has written to the task's log."""
    lines = map(json.loads, (tmp_path / "logs" / LOG).read_text().splitlines())
    return [line["event"] for line in lines if line.get("logger") == "celeriac"]


def test_task_that_is_killed_or_ended_is_told_in_its_log_and_its_result(waiting, tmp_path, sender, server):  # noqa: F811
    with worker("-c", "1", folder=tmp_path, environment=waiting) as running:
        task = sender.send(waiting_task())
        os.kill(started_pid(tmp_path / "pid"), signal.SIGKILL)
        assert sender.final_status(task) == "FAILURE"
        report = sender.stored(task)["result"].report
        (line,) = lines_of_celeriac(tmp_path)
        (tmp_path / "pid").unlink()
        with memory_group(running.process) as group:
            short = sender.send(waiting_task())
            started_pid(tmp_path / "pid")
            group.limit()
            (tmp_path / "memory").touch()
            assert sender.final_status(short) == "FAILURE"
            shortage = sender.stored(short)["result"].report
        running.await_log(f"[{short}] raised expected")
        assert not (tmp_path / "on_kill").exists()
        for name in ("pid", "memory"):
            (tmp_path / name).unlink()
        sender.send(waiting_task())
        started_pid(tmp_path / "pid")
        running.process.send_signal(signal.SIGTERM)
        running.await_log("no more messages are accepted")
        running.process.send_signal(signal.SIGTERM)
        assert running.wait() == 0
        assert running.alive() == []
    assert (tmp_path / "on_kill").exists()
    shut_down = "Celeriac's worker ended this task: the worker was shut down, and its time to finish was over"
    assert lines_of_celeriac(tmp_path)[-1] == shut_down
    assert (report["reason"], report["execution"]["signal"]) == ("signal", "SIGKILL")
    assert report["detail"].startswith("its process was ended by SIGKILL: ")
    assert "MiB" in report["detail"]
    assert "lack of memory: another program" in report["detail"]
    assert line == report["detail"].replace("its", "Its", 1)
    if group.is_real:
        assert "meanwhile the kernel killed 1 process of its cgroup for lack of memory" in shortage["detail"]
        assert lines_of_celeriac(tmp_path)[1] == shortage["detail"].replace("its", "Its", 1)
    for text in ("received", "started: ExecuteTask", "raised expected: "):
        (line,) = [line for line in running.log.splitlines() if task in line and text in line]
        assert NAME in line
    assert "a-token" not in running.log
    assert [content["state"] for content in server.contents("/state") if "state" in content].count("failed") == 3


@pytest.mark.parametrize("victims", ["child", pytest.param("child and task", marks=pytest.mark.one_version)])
def test_child_that_is_killed_is_told_in_the_log_of_its_task(waiting, tmp_path, sender, victims):  # noqa: F811
    with worker("-c", "1", folder=tmp_path, environment=waiting) as running:
        task = sender.send(waiting_task())
        process = psutil.Process(started_pid(tmp_path / "pid"))
        child = psutil.Process(process.ppid())
        assert child.ppid() == running.process.pid
        child.kill()
        if victims == "child and task":
            process.kill()
        assert sender.final_status(task) == "FAILURE"
        report = sender.stored(task)["result"].report
        assert not lives(process)
        running.await_log("lost: the process")
    assert report["reason"] == "lost"
    assert report["detail"].startswith("the process of the worker that ran it was ended by SIGKILL: ")
    assert lines_of_celeriac(tmp_path) == [f"Lost: {report['detail']}"]
    (line,) = [line for line in running.log.splitlines() if f"[{task}] lost: " in line]
    assert NAME in line
    assert "Traceback" not in running.log


def test_no_task_outlives_a_killed_worker(waiting, tmp_path, sender):  # noqa: F811
    """A task of Airflow goes on after the TERM that the kernel sends: it only calls `on_kill`."""
    with worker("-c", "1", folder=tmp_path, environment=waiting) as running:
        sender.send(waiting_task())
        process = psutil.Process(started_pid(tmp_path / "pid"))
        running.process.kill()
        until(lambda: not lives(process), "the end of the task")
        until(lambda: not running.alive(), "the end of every process of the worker")
        assert (tmp_path / "on_kill").exists()
