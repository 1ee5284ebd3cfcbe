"""The failures that the executor tells: in the event log, in the task's own log, and in that of a running task."""

from __future__ import annotations

import json
import logging
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from airflow.executors import workloads as workload_types
from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
from airflow.models.log import Log
from airflow.models.taskinstance import TaskInstance
from airflow.utils.log.file_task_handler import FileTaskHandler
from airflow.utils.session import create_session
from sqlalchemy import select
from sqlalchemy.orm import joinedload

from celeriac.airflow import CeleryExecutor, failure_file, task_log
from celeriac.airflow.failure_log import Failure
from celeriac.airflow.workload_names import NameFilter, WorkloadNames, name_of
from celeriac.backend.claims.claim import Lease
from tests.airflow import stored, workloads
from tests.airflow.test_executor import (  # noqa: F401
    OURS,
    adopt_tasks,
    claim_by_dead_worker,
    end_events,
    executor_of,
    queue,
    redis,
    send_with_database_state,
)
from tests.airflow.test_worker import open_claims
from tests.support.cli_runner import until

LOST = r"lost: worker celery@there \(pid 7\) is gone, last heartbeat \d"


@pytest.fixture
def logs(monkeypatch, tmp_path):
    """The folder of the logs."""
    folder = tmp_path / "logs"
    folder.mkdir()
    monkeypatch.setenv("AIRFLOW__LOGGING__BASE_LOG_FOLDER", str(folder))
    return folder


@pytest.fixture
def executor(redis, database):  # noqa: F811
    with executor_of(OURS) as executor:
        yield executor


def row_of(celery_id):
    with create_session() as session:
        query = select(TaskInstance).where(TaskInstance.external_executor_id == celery_id)
        ti = session.scalar(query.options(joinedload(TaskInstance.dag_run)))
        session.expunge_all()
        return ti


def begun_log(logs, celery_id):
    """Return the log of a try, as a worker that shares the folder has begun it."""
    path = logs / FileTaskHandler(str(logs))._render_filename(row_of(celery_id), 2)
    path.parent.mkdir(parents=True)
    path.write_text(task_log.log_line("the first line of the task", logging.INFO))
    return path


def shown_log(logs, celery_id):
    """Return the lines that Airflow's API server shows for a try that has failed."""
    ti = row_of(celery_id)
    ti.state = "failed"
    lines, _ = FileTaskHandler(str(logs)).read(ti, 2)
    return [line.event for line in lines]


def events_of(executor):
    return [(log.event, log.extra) for log in executor._task_event_logs]


def stored_events(executor, dag_id):
    """Let the scheduler store the events. Return those of a DAG."""
    with create_session() as session:
        SchedulerJobRunner._process_task_event_logs(executor._task_event_logs, session)
    with create_session() as session:
        rows = session.scalars(select(Log).where(Log.dag_id == dag_id))
        return [(row.event, row.extra, row.task_id, row.run_id) for row in rows]


def beside(path):
    return path.with_name(path.name + failure_file.SUFFIX)


def test_lost_task_says_so_in_its_own_log_and_in_the_event_log(executor, redis, logs, caplog):  # noqa: F811
    key, celery_id = send_with_database_state("running", executor)
    path = begun_log(logs, celery_id)
    claim_by_dead_worker(redis, celery_id)
    end_events(executor, [key])
    until(lambda: beside(path).exists() and beside(path).read_text(), "the line in the task's log")
    shown = shown_log(logs, celery_id)
    assert "the first line of the task" in shown
    assert [line for line in shown if re.match(f"This try failed: {LOST}", line)] == shown[-1:]
    ((event, text),) = events_of(executor)
    assert event == "celeriac lost"
    assert re.match(LOST, text)
    ti = row_of(celery_id)
    assert stored_events(executor, ti.dag_id) == [("celeriac lost", text, "t0", "run")]
    (line,) = [message for message in caplog.messages if " failed: lost: " in message]
    assert line.startswith(f"dag_id={ti.dag_id} task_id=t0 run_id=run try_number=2 failed: ")


def test_log_on_another_machine_is_not_hidden_behind_the_reason(executor, redis, logs):  # noqa: F811
    """Airflow asks the worker's log server for a log only if its own folder has no file of the try."""
    key, celery_id = send_with_database_state("running", executor)
    claim_by_dead_worker(redis, celery_id)
    end_events(executor, [key])
    executor._failures.close()
    assert [path for path in logs.rglob("*") if path.is_file()] == []
    assert re.match(LOST, events_of(executor)[0][1])


def test_reason_that_the_worker_has_written_is_not_repeated(logs):
    path = logs / "a.log"
    path.write_text(task_log.log_line('Lost: the process was ended: "SIGKILL"', logging.ERROR))

    def write(detail):
        facts: dict[str, Any] = {"ti_id": "a", "try_number": 1, "log_path": "a.log", "at": datetime.now(UTC)}
        failure_file.write_failure(Failure(text=f"This try failed: {detail}", detail=detail, has_started=True, **facts))

    write('the process was ended: "SIGKILL"')
    assert not beside(path).exists()
    write("another reason")
    assert [json.loads(line)["event"] for line in beside(path).read_text().splitlines()] == [
        "This try failed: another reason"
    ]


@pytest.mark.parametrize("path", [None, "", "../outside.log", "/outside.log"])
def test_no_log_outside_of_the_folder_is_written(logs, path):
    (logs.parent / "outside.log").touch()
    task_log.append_to_existing(path, "text", logging.ERROR)
    assert (logs.parent / "outside.log").read_text() == ""
    assert list(logs.iterdir()) == []


def test_task_that_cannot_be_sent_has_a_log(executor, logs):
    (key,) = queue(executor, workloads.task("bad", queue="no\0queue"))
    end_events(executor, [key])
    path = logs / "a.log.celeriac.log"
    until(lambda: path.exists() and path.read_text(), "the log")
    assert "This try failed: it cannot be sent: " in path.read_text()
    assert [event for event, _ in events_of(executor)] == ["celeriac not_sent"]


def test_adopted_task_that_is_lost_says_so_in_its_own_log(executor, logs):
    (celery_id,) = stored.store(["running"])
    path = begun_log(logs, celery_id)
    keys, _ = adopt_tasks(executor, [celery_id])
    end_events(executor, keys)
    until(lambda: beside(path).exists() and beside(path).read_text(), "the line in the task's log")
    assert shown_log(logs, celery_id)[-1].startswith("This try failed: lost: neither the broker nor a worker has it")


class FolderLogs:
    """Remote logging into a folder, as a provider of Airflow would do it."""

    processors = ()

    def __init__(self, local: Path, remote: Path) -> None:
        self._local, self._remote = local, remote
        self.tasks: list[str] = []

    def upload(self, path, ti):
        target = self._remote / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self._local / path, target)
        self.tasks.append(ti.task_id)


def test_reason_is_uploaded_where_remote_logging_is_configured(
    executor,
    redis,  # noqa: F811
    logs,
    tmp_path,
    monkeypatch,
):
    from airflow import logging_config

    remote = FolderLogs(logs, tmp_path / "remote")
    if getattr(logging_config, "get_remote_task_log", None) is not None:
        monkeypatch.setattr(logging_config, "get_remote_task_log", lambda: remote)
    else:
        monkeypatch.setattr(logging_config, "REMOTE_TASK_LOG", remote, raising=False)
    key, celery_id = send_with_database_state("running", executor)
    claim_by_dead_worker(redis, celery_id)
    end_events(executor, [key])
    until(lambda: remote.tasks, "the upload")
    (path,) = [path for path in (tmp_path / "remote").rglob("*") if path.is_file()]
    assert path.name == "attempt=2.log.celeriac.log"
    assert re.search(LOST, path.read_text())


def test_log_of_a_running_task_says_where_it_was_when_its_worker_is_gone(redis, database):  # noqa: F811
    """The API server's executor is not started."""
    (celery_id,) = stored.store(["running"])
    ti = row_of(celery_id)
    executor = CeleryExecutor(parallelism=8)
    lease = Lease(holder="w", name="celery@there", host="there", pid=7, boot_id="", queues=("gpu",), slots=1)
    assert executor.get_task_log(ti, 2) == ([], [])
    with open_claims(redis.url) as claims:
        claims.renew(lease)
        claims.claim(celery_id, holder="w", delivery="d")
        assert executor.get_task_log(ti, 2) == ([], [])
        claims.declare_dead("w", claims.leases()["w"].heartbeat_count)
    sources, (line,) = executor.get_task_log(ti, 2)
    assert sources == []  # else Airflow would not ask the worker's log server
    expected = r"This task ran in worker celery@there \(host there, pid 7\), which is gone: its last heartbeat was \d"
    assert re.search(expected, line)
    assert executor.get_task_log(ti, 1) == ([], [])
    redis.kill()
    try:
        assert executor.get_task_log(ti, 2) == ([], [])
    finally:
        redis.start()


def test_log_lines_get_the_names_of_workloads_and_never_a_token():
    names, ids = WorkloadNames(), [f"00000000-0000-0000-0000-00000000000{n}" for n in range(3)]
    mapped = workloads.task("a b", map_index=3)
    names.remember(ids[0], mapped.model_dump_json())
    names.remember(ids[1], "not JSON")
    if hasattr(workload_types, "ExecuteCallback"):
        callback = workloads.callback("a.path")
        names.remember(ids[2], callback.model_dump_json())
        assert names.find(ids[2]) == f"callback_id={callback.callback.id}"
    name = 'dag_id=dag task_id="a b" run_id=run try_number=1 map_index=3'
    assert (names.find(ids[0]), names.find(ids[1])) == (name, "")
    assert name_of(mapped.ti) == name

    def shown(message, *arguments):
        record = logging.LogRecord("a", logging.INFO, "", 0, message, arguments, None)
        assert NameFilter(names.find).filter(record)
        return record.getMessage()

    assert shown("Task x[%s] received", ids[0]) == f"Task x[{ids[0]}] received {name}"
    assert shown("re-sent 2 tasks: %r, %r", *ids[:2]) == f"re-sent 2 tasks: {ids[0]!r}, {ids[1]!r} {name}"
    assert shown("100%% of %s", "it") == "100% of it"
