"""The `memory` of a task at a worker elsewhere, whose supervisor is the same program."""

from __future__ import annotations

import signal
import sys

import pytest

from celeriac.broker.app import make_app
from celeriac.errors import CommandFailed
from celeriac.task.task import Task
from tests.integration.test_cancel import url
from tests.integration.test_status import send
from tests.support.cli_runner import until
from tests.support.workers import worker

pytestmark = pytest.mark.celery

__all__ = ["url"]  # a fixture

EATS = "open('begun', 'w'); eaten = bytearray({mib} << 20); import time; time.sleep(60)"


def task(key: str, mib: int) -> Task:
    """Return a task that uses so much memory, of 100 MiB."""
    return Task(key=key, command=(sys.executable, "-c", EATS.format(mib=mib)), memory=100 << 20)


def test_a_worker_ends_a_command_that_uses_too_much_memory(url, tmp_path):
    app, eats, lives = make_app(broker_url=url, result_backend=url), task("eats", 150), task("lives", 80)
    with worker(tmp_path, (url, url), "--concurrency", "1") as one:
        send(url, url, eats)
        with pytest.raises(CommandFailed) as failure:
            app.AsyncResult(eats.message_id).get(timeout=30)
        report = failure.value.report
        assert (report["reason"], report["execution"]["signal"]) == ("memory", "SIGTERM")
        assert report["detail"].endswith(" MiB of memory, and may use 100 MiB")
        (tmp_path / "begun").unlink()
        send(url, url, lives)
        until((tmp_path / "begun").exists, "the start of the other command")
        one.signal(signal.SIGKILL)
        one.wait_until_nothing_is_alive()
    app.close()
