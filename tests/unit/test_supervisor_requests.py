"""A supervisor gets bad requests beside good ones, and meets a bug: each one concerns one command alone."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import unquote

import psutil
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from celeriac.worker import supervisor_start
from celeriac.worker.output import OutputPolicy, file_name
from celeriac.worker.supervisor.lease_policy import SILENCE_LIMIT
from celeriac.worker.supervisor.messages import FRAME, CommandReport, CommandRequest, OutputRequest, StopReason
from celeriac.worker.supervisor_client import CommandChannel, SupervisorProcess
from tests.support.cli_runner import until

OUTPUT = OutputRequest(stdout=None, stderr=None, cap=0, keep_empty=False)


def request(**fields: Any) -> dict[str, Any]:
    good = CommandRequest(
        id="an id",
        argv=["/bin/sh", "-c", "exit 7"],
        cwd=None,
        env={},
        secrets=[],
        timeout=None,
        grace=1.0,
        start_by=None,
        output=OUTPUT,
    )
    return {**good.to_json(), **fields}


def without(name: str) -> dict[str, Any]:
    return {field: value for field, value in request().items() if field != name}


def forms(name: str, *values: Any) -> dict[str, Any]:
    """Return requests with each of these values as one field."""
    return {f"{name} {value!r}": request(**{name: value}) for value in values}


BAD: dict[str, Any] = {
    "null": None,
    "a text": "x",
    "a list": [],
    "no fields": {},
    **{f"no {name}": without(name) for name in request() if name != "secrets"},
    **forms("id", None, 5, ["x"]),
    **forms("argv", None, "true", [], [5], ["true", None], {"a": 1}, ["a\0"]),
    **forms("env", None, [], "x", {"A": 5}, {"A": None}, {"A": "\0"}, {"": "x"}),
    **forms("secrets", None, "x", [5]),
    **forms("stdin", 5, ["x"]),
    **forms("stdin_file", 5, "\0"),
    **forms("scratch", 1, "yes"),
    **forms("artifacts", 1, "x", [5]),
    **forms("artifacts_to", 1, ["x"]),
    **forms("cwd", 5, ["x"], "\0"),
    **forms("timeout", "5", -1, [], True, float("inf"), float("nan")),
    **forms("grace", None, "5", -1, [], float("inf")),
    **forms("start_by", "x", [], float("nan")),
    **forms("output", None, 5, {}, {"stdout": 5}),
    "output that is no path": request(output={**OUTPUT.to_json(), "stdout": "\0", "keep_empty": True}),
    "a program that is no text": request(argv=["\ud800"]),
    "a variable that is no text": request(env={"A": "\ud800"}),
}


@pytest.fixture(scope="module")
def supervisor() -> Iterator[SupervisorProcess]:
    with closing(SupervisorProcess()) as process:
        yield process


@pytest.fixture
def channel(supervisor: SupervisorProcess) -> Iterator[CommandChannel]:
    with closing(supervisor.open_channel()) as channel:
        yield channel


def send(channel: CommandChannel, data: bytes) -> CommandReport:
    with socket.socket(fileno=os.dup(channel.fileno())) as raw:
        raw.sendall(FRAME.pack(len(data)) + data)
    return channel.report()


def run(channel: CommandChannel, fields: Any) -> CommandReport:
    return send(channel, json.dumps({"run": fields}).encode())


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_reported_and_the_next_one_runs(channel, name):
    bad = run(channel, BAD[name])
    assert bad.status is None
    assert bad.error is not None
    good = run(channel, request())
    assert os.waitstatus_to_exitcode(good.status or 0) == 7


@pytest.mark.parametrize("data", [b"garbage", b"[]", b"5", b"null", b"\xff", b"[" * 100_000])
def test_a_message_that_is_no_request_is_reported(channel, data):
    assert send(channel, data).error is not None
    assert os.waitstatus_to_exitcode(run(channel, request()).status or 0) == 7


def test_a_bad_request_ends_no_command_beside_it(supervisor, channel, tmp_path):
    with closing(supervisor.open_channel()) as other:
        waiting = f"until [ -e {tmp_path}/go ]; do sleep 0.02; done"
        other.start(CommandRequest.from_json(request(id="other", argv=["/bin/sh", "-c", waiting])))
        for fields in BAD.values():
            assert run(channel, fields).error is not None
        (tmp_path / "go").touch()
        assert other.report().status == 0


@pytest.mark.parametrize("bad", [{"A=": "y"}, {"A\0": "y"}, {"A": "y\0"}, {"": "y"}, {"\ud800": "y"}, {"A": "\ud800"}])
def test_variables_of_a_command_that_could_not_start_are_forgotten(channel, bad):
    assert run(channel, request(env={"LEFT_OVER": "x", "PATH": "/nowhere", **bad})).error is not None
    assert run(channel, request(argv=["sh", "-c", 'test -z "$LEFT_OVER"'])).status == 0


def test_variables_reach_only_their_own_command(supervisor, channel, tmp_path):
    waiting = f'until [ -e {tmp_path}/go ]; do sleep 0.02; done; test "$OWN" = 1'
    with closing(supervisor.open_channel()) as other:
        other.start(CommandRequest.from_json(request(id="other", argv=["/bin/sh", "-c", waiting], env={"OWN": "1"})))
        assert run(channel, request(argv=["/bin/sh", "-c", 'test -z "$OWN"'])).status == 0
        (tmp_path / "go").touch()
        assert other.report().status == 0


def test_a_timeout_may_be_longer_than_one_wait_of_the_system(channel):
    ten_years = 10 * 365 * 86_400.0
    report = run(channel, request(argv=["/bin/sh", "-c", "sleep 0.1"], timeout=ten_years, grace=ten_years))
    assert report.status == 0


def test_a_request_of_an_earlier_version_runs(channel):
    assert run(channel, without("secrets")).status == 7 << 8


def test_an_unknown_reason_stops_a_command(channel):
    channel.start(CommandRequest.from_json(request(argv=["sleep", "60"])))
    with socket.socket(fileno=os.dup(channel.fileno())) as raw:
        for message in ({"stop": "x"}, {"stop": ["x"], "id": 5}, {"stop": "of a later version", "id": "an id"}):
            data = json.dumps(message).encode()
            raw.sendall(FRAME.pack(len(data)) + data)
    assert channel.report().stopped is not None


def test_a_key_that_is_no_unicode_has_a_file(tmp_path):
    policy = OutputPolicy(directory=tmp_path)
    assert policy.request("\udcff", 1).stdout == f"{tmp_path}/%ED%B3%BF.out"
    assert file_name("\ud800" * 300, 1) != file_name("\ud800" * 301, 1)


@settings(deadline=None)
@given(st.text(min_size=150, max_size=400), st.integers(1, 2**31 - 1))
@example("a" * 300, 1)
@example("." * 300, 2)
def test_a_key_that_looks_like_the_file_of_another_one_has_its_own(key, attempt):
    name = file_name(key, attempt)
    crafted = [name, file_name(key, 1), unquote(name), unquote(file_name(key, 1)), f"{key}@{attempt}"]
    assert not [other for other in crafted if other != key and file_name(other, 1) == name]
    assert len(f"{name}.out".encode()) <= 255


BUG = """
from celeriac.worker.supervisor import lease_policy
from celeriac.worker.supervisor.command import Command

def raise_once(method):
    calls = []
    def raising(*args):
        calls.append(args)
        if len(calls) == 1:
            raise ZeroDivisionError("the bug of this test")
        return method(*args)
    return raising

lease_policy.SILENCE_LIMIT = 0.2
Command.METHOD = raise_once(Command.METHOD)
"""


@contextmanager
def two_commands(monkeypatch, method: str, script: str) -> Iterator[tuple[SupervisorProcess, list[CommandChannel]]]:
    """Start two commands in a supervisor in which this method of one command raises once."""
    bootstrap = supervisor_start.BOOTSTRAP.replace("main(int", BUG.replace("METHOD", method) + "main(int")
    monkeypatch.setattr(supervisor_start, "BOOTSTRAP", bootstrap)
    with (
        closing(SupervisorProcess()) as process,
        closing(process.open_channel()) as first,
        closing(process.open_channel()) as second,
    ):
        for channel in (first, second):
            channel.start(CommandRequest.from_json(request(argv=["/bin/sh", "-c", script])))
        until(lambda: len(psutil.Process(process.pid).children()) == 2, "both commands")
        yield process, [first, second]


def has_one_bug(capfd) -> bool:
    return bool(capfd.readouterr().err.count("ZeroDivisionError: the bug of this test") == 1)


def test_a_bug_at_the_end_of_a_command_loses_no_report(monkeypatch, capfd, tmp_path):
    waiting = f"until [ -e {tmp_path}/go ]; do sleep 0.02; done; exit 7"
    with two_commands(monkeypatch, "finish", waiting) as (supervisor, channels):
        process = psutil.Process(supervisor.pid)
        process.suspend()
        (tmp_path / "go").touch()
        until(lambda: all(each.status() == psutil.STATUS_ZOMBIE for each in process.children()), "the end of both")
        process.resume()
        assert [os.waitstatus_to_exitcode(channel.report().status or 0) for channel in channels] == [7, 7]
    assert has_one_bug(capfd)


def test_a_new_supervisor_counts_the_silence_of_its_worker_from_the_renewal_of_the_lease():
    began = time.monotonic()
    with closing(SupervisorProcess(renewed_at=began - 3)) as process, closing(process.open_channel()) as channel:
        channel.start(CommandRequest.from_json(request(argv=["/bin/sleep", "60"])))
        assert channel.report().stopped is StopReason.WORKER_SILENT
    assert time.monotonic() < began + SILENCE_LIMIT


def test_a_supervisor_that_was_frozen_counts_a_heartbeat_from_its_sending():
    with closing(SupervisorProcess()) as process, closing(process.open_channel()) as channel:
        channel.start(CommandRequest.from_json(request(argv=["/bin/sleep", "60"])))
        supervisor = psutil.Process(process.pid)
        until(supervisor.children, "the command")
        process.heartbeat(time.monotonic() - SILENCE_LIMIT)  # it could not read it before
        assert channel.report().stopped is StopReason.WORKER_SILENT


def test_a_bug_while_one_command_is_stopped_keeps_no_command_alive(monkeypatch, capfd):
    with two_commands(monkeypatch, "stop", "exec sleep 60") as (supervisor, channels):
        supervisor.heartbeat(time.monotonic())
        assert [channel.report().stopped for channel in channels] == [StopReason.WORKER_SILENT] * 2
    assert has_one_bug(capfd)
