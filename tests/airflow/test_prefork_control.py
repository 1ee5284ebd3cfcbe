"""TERM to a child of the worker: which one ends the child, and which one is sent to a workload, and how often."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import closing
from types import SimpleNamespace

import pytest

from celeriac.airflow import prefork_control
from celeriac.airflow.prefork_control import WorkloadPoolControl
from celeriac.airflow.request import WorkloadRequest

CHILD = """
import os, signal
from pathlib import Path
from types import SimpleNamespace
from celery import signals
from celeriac.airflow.prefork_control import WorkloadPoolControl
from celeriac.airflow.task_reaper import reaped_marker

pool_control = WorkloadPoolControl(1.0)
signals.worker_process_init.send(sender=None)
(markers,) = Path(os.environ["TMPDIR"]).iterdir()
request = SimpleNamespace(id="a", worker_pid=None, end_reasons=frozenset())
{before}
os.kill(os.getpid(), signal.SIGTERM)
print("alive")
pool_control.close()
"""


@pytest.mark.parametrize(
    ("before", "survives"),
    [
        ("", False),
        ("pool_control.revoke(request)", True),
        ("pool_control.supersede(request); pool_control.remove_markers('a')", True),
        ("reaped_marker(markers, os.getpid()).touch()", True),
        ("pool_control.revoke(request); [os.utime(marker, (1, 1)) for marker in markers.iterdir()]", False),
        ("pool_control.revoke(request); pool_control.take_no_more()", False),
    ],
    ids=["no marker", "revoked", "superseded and ended", "reaped", "revoked long ago", "shutting down"],
)
def test_late_term_for_an_ended_workload_does_not_end_the_child(before, survives, tmp_path):
    child = subprocess.run(
        [sys.executable, "-c", CHILD.format(before=before)], env={"TMPDIR": str(tmp_path)}, capture_output=True
    )
    expected = (0, b"alive\n") if survives else (-signal.SIGTERM, b"")
    assert (child.returncode, child.stdout) == expected, child.stderr


FORKING_CHILD = """
import os, signal, sys, time
from celery import signals
from celeriac.airflow import prefork_control

def when_forked():
    {when_forked}

def end_at_once(*_):
    sys.exit(1)

signal.signal(signal.SIGHUP, end_at_once)
os.register_at_fork(after_in_child=when_forked)
pool_control = prefork_control.WorkloadPoolControl(1.0)
signals.worker_process_init.send(sender=None)
supervisor = os.getpid()
if os.fork():
    {supervisor}
else:
    print("the task goes on", flush=True)
"""


@pytest.mark.parametrize(
    ("when_forked", "supervisor"),
    [
        ("while os.getppid() == supervisor: time.sleep(0.01)", "os.kill(os.getpid(), signal.SIGKILL)"),
        ("prefork_control.end_with_parent = lambda: signal.raise_signal(signal.SIGHUP)", "os.wait()"),
    ],
    ids=["supervisor is killed", "task is told to end"],
)
def test_task_does_not_go_on_if_its_end_comes_at_its_fork(when_forked, supervisor, tmp_path):
    script = FORKING_CHILD.format(when_forked=when_forked, supervisor=supervisor)
    child = subprocess.run([sys.executable, "-c", script], env={"TMPDIR": str(tmp_path)}, capture_output=True)
    assert child.stdout == b""
    assert b"Exception ignored" not in child.stderr


def test_term_is_sent_once_for_each_reason(monkeypatch):
    """Each renewal of the lease repeats a revoke. A second TERM would cut `on_kill` short."""
    sent = []
    monkeypatch.setattr(prefork_control, "send_signal", lambda pid, number: sent.append((pid, number)))
    request = SimpleNamespace(id="a", worker_pid=None, end_reasons=WorkloadRequest.end_reasons)
    stub = SimpleNamespace(call_soon=lambda *_: None, call_after=None, wake=lambda: None)
    with closing(WorkloadPoolControl(1.0)) as pool_control:
        pool_control.attach(SimpleNamespace(hub=stub, timer=stub, parts=SimpleNamespace(shutdown=stub)))
        pool_control.revoke(request)  # on its way to a child: TERM follows when it is there
        assert (sent, pool_control.is_revoked("a")) == ([], True)
        request.worker_pid = 12
        for _ in range(3):
            pool_control.revoke(request)
        for _ in range(3):
            pool_control.supersede(request)
    assert sent == [(12, signal.SIGTERM)] * 2


def test_a_workload_that_is_about_to_be_handed_back_is_not_killed(monkeypatch):
    """Let a child begin the next workload while the others are ended: it finds the marker, and hands it back."""
    sent = []
    monkeypatch.setattr(prefork_control, "send_signal", lambda pid, number: sent.append((pid, number)))
    monkeypatch.setattr(prefork_control, "kill_descendants", lambda pid: False)
    first, stubborn, late = (
        SimpleNamespace(id=name, worker_pid=pid, end_reasons=frozenset())
        for name, pid in zip("abc", (1, 2, 1), strict=True)
    )
    looks = iter([[first, stubborn]])
    monkeypatch.setattr(prefork_control, "running_requests", lambda: next(looks, [stubborn, late]))
    with closing(WorkloadPoolControl(0.3)) as pool_control:
        pool_control.take_no_more()
        pool_control.end()
    assert sent == [(1, signal.SIGTERM), (2, signal.SIGTERM), (2, signal.SIGKILL)]
    assert late.end_reasons == frozenset()
