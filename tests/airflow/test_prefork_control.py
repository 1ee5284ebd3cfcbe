"""A child of the Airflow door's worker between two workloads: which TERM ends it, and which came too late to matter."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import closing
from types import SimpleNamespace

import pytest

from celeriac.airflow import prefork_control
from celeriac.airflow.prefork_control import WorkloadPoolControl, WorkloadRequest

CHILD = """
import os, signal, time
from celeriac.airflow.prefork_control import WorkloadPoolControl

children = WorkloadPoolControl(1.0)
children._begin_child()
{before}
os.kill(os.getpid(), signal.SIGTERM)
print("lives")
children.close()
"""


@pytest.mark.parametrize(
    ("before", "lives"),
    [
        ("", False),
        ("children._note_of('revoked', 'a').touch()", True),
        ("children._note_of('superseded', 'a').touch(); children.forget('a')", True),
        ("(children._folder / f'silenced-{os.getpid()}').touch()", True),
        ("children._note_of('revoked', 'a').touch(); os.utime(children._note_of('revoked', 'a'), (1, 1))", False),
        ("children._note_of('revoked', 'a').touch(); children.take_no_more()", False),
    ],
    ids=["for nothing", "told", "told, and ended", "silenced", "told long ago", "going"],
)
def test_a_term_for_what_has_just_ended_costs_no_child(before, lives, tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", CHILD.format(before=before)], env={"TMPDIR": str(tmp_path)}, capture_output=True
    )
    assert (ended.returncode, ended.stdout) == ((0, b"lives\n") if lives else (-signal.SIGTERM, b"")), ended.stderr


def test_a_task_is_told_to_end_once_for_each_reason_however_often_that_is_heard(monkeypatch):
    """A worker hears of a revoke with each renewal of its lease; a second TERM would cut `on_kill` short."""
    sent = []
    monkeypatch.setattr(prefork_control, "send", lambda pid, number: sent.append((pid, number)))
    request = SimpleNamespace(id="a", worker_pid=None, told=WorkloadRequest.told)
    nothing = SimpleNamespace(call_soon=lambda *_: None, call_after=None, wake=lambda: None)
    with closing(WorkloadPoolControl(1.0)) as children:
        children.begin(SimpleNamespace(hub=nothing, timer=nothing, warden=nothing))
        children.revoke(request)  # on its way to a child: told again once it is there
        assert (sent, children.is_revoked("a")) == ([], True)
        request.worker_pid = 12
        for _ in range(3):
            children.revoke(request)
        for _ in range(3):
            children.supersede(request)
    assert sent == [(12, signal.SIGTERM)] * 2
