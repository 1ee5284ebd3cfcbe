"""The commands for running workers: list-workers, add-queue, remove-queue, shutdown-worker and others; and Flower."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from airflow.configuration import conf
from redis import Redis

from celeriac.airflow import cli_commands, worker_replies
from celeriac.airflow.cli_commands import flower_command
from celeriac.airflow.cli_definition import COMMANDS
from celeriac.airflow.cli_output import STDOUT, standard_output_on_error
from celeriac.airflow.options import Options
from celeriac.backend.claims.claim import Lease
from tests.airflow import workloads
from tests.airflow.test_worker import Sender, await_lease, environment, open_claims, redis, server, worker
from tests.support.cli_runner import until
from tests.support.proxy import Proxy
from tests.support.servers import RedisServer

__all__ = ["environment", "redis", "server"]

NAME = "celery@first"
FAILS = "FAILURE"  # the test's API server knows no task: a workload has run if its supervisor was refused

Run = Callable[..., str]


@pytest.fixture
def run(monkeypatch, capsys) -> Run:
    """Run a command of `airflow celeriac` in this process, and return its output. Its errors can be read after it."""
    by_name: dict[str, Any] = {command.name: command for command in COMMANDS}

    def run(name, *arguments, environment):
        for variable in ("AIRFLOW__CELERY__BROKER_URL", "AIRFLOW__CELERY__RESULT_BACKEND"):
            monkeypatch.setenv(variable, environment[variable])
        parser = argparse.ArgumentParser()
        for argument in by_name[name].args:
            argument.add_to_parser(parser)
        args = parser.parse_args(arguments)
        args.subcommand = name
        capsys.readouterr()
        by_name[name].func(args)
        captured = capsys.readouterr()
        sys.stderr.write(captured.err)
        return captured.out

    return run


def lost_connections(running):
    return running.log.count("reconnecting")


@pytest.mark.parametrize("kind", ["redis", pytest.param("rabbit", marks=pytest.mark.one_version)])
def test_queues_of_a_running_worker_change_and_outlive_the_connection(request, environment, tmp_path, redis, run, kind):
    broker = request.getfixturevalue(kind).url
    sender = Sender(broker, redis.url)
    port = urlsplit(broker).port or 5672
    with Proxy(port) as proxy, open_claims(redis.url) as claims:
        environment["AIRFLOW__CELERY__BROKER_URL"] = broker.replace(f":{port}", f":{proxy.port}")
        with worker("-H", "first", "-q", "a,b", folder=tmp_path, environment=environment) as running:

            def change(command, *arguments):
                return run(command, "-H", NAME, *arguments, environment=environment)

            def ended(queues):
                ids = [sender.send(workloads.task("t"), queue) for queue in queues]
                return {sender.final_status(task_id) for task_id in ids}

            assert change("add-queue", "-q", "c, d") == ""
            change("remove-queue", "-q", "a,b")
            change("add-queue", "-q", "b")
            await_lease(claims, lambda leased: leased.lease.queues == ("b", "c", "d"))
            waits = sender.send(workloads.task("waits"), "a")
            assert ended("bcd") == {FAILS}
            before = lost_connections(running)
            proxy.swallow()
            until(lambda: lost_connections(running) > before, "the loss of the connection", 60)
            proxy.heal()
            assert ended("bcd") == {FAILS}
            workers = json.loads(run("list-workers", "-o", "json", environment=environment))
            assert workers == [{"worker_name": NAME, "queues": ["b", "c", "d"]}]
            assert sender.stored(waits)["status"] == "PENDING"

            assert change("remove-all-queues") == f"{NAME} serves no queue any more; removed: b, c, d\n"
            await_lease(claims, lambda leased: leased.lease.queues == ())
            assert change("remove-all-queues") == f"{NAME} serves no queue\n"
            change("add-queue", "-q", "a")
            assert sender.final_status(waits) == FAILS
            assert change("shutdown-worker") == ""
            assert running.wait() == 0


def resume_after_requests(process: psutil.Process, redis: RedisServer, requests: int) -> threading.Thread:
    """Stop a worker now. Let it go on when this many requests to workers were sent."""

    def watch() -> None:
        with Redis(port=redis.port, socket_timeout=60) as client, client.monitor() as monitor:
            watching.set()
            sent = (each for each in monitor.listen() if re.match("PUBLISH .*pidbox", each["command"]))
            for _ in zip(range(requests), sent, strict=False):
                pass
        process.resume()

    watching, thread = threading.Event(), threading.Thread(target=watch)
    thread.start()
    assert watching.wait(60)
    process.suspend()
    return thread


def test_wrong_names_are_one_line(environment, tmp_path, redis, run, capsys, monkeypatch):
    def error(*arguments):
        with pytest.raises(SystemExit) as raised:
            run(*arguments, environment=environment)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    assert json.loads(run("list-workers", "-o", "json", environment=environment)) == []
    none = "airflow celeriac: worker 'celery@first' does not reply; no worker replies: start one, or check [celery] "
    assert error("add-queue", "-q", "a", "-H", NAME).startswith(none)
    with worker("-H", "first", "-q", "a,b", folder=tmp_path, environment=environment) as running:
        listed = partial(run, "list-workers", environment=environment)
        until(lambda: NAME in listed(), "a reply of the worker")  # on a busy machine one takes more than a second
        resuming = resume_after_requests(psutil.Process(running.process.pid), redis, 2)
        assert NAME in listed()  # the second request is to this worker alone
        resuming.join()
        unknown = "airflow celeriac: worker 'celery@second' does not reply; give one of those that do: celery@first"
        assert error("shutdown-worker", "-H", "celery@second") == unknown
        for names, shown in (("", "''"), ("c,,d", "''"), ("a\nb", r"'a\nb'"), ("x" * 256, "xxx")):
            message = error("add-queue", "-q", names, "-H", NAME)
            assert shown in message
            assert message.endswith("give names of 1 to 255 printable characters, separated by commas")
        for output in ("table", "plain", "yaml"):
            text = run("list-workers", "-o", output, environment=environment)
            assert "worker_name" in text
            assert NAME in text
        run("remove-queue", "-q", "c", "-H", NAME, environment=environment)
        assert f"{NAME} does not serve 'c'; it serves a, b" in capsys.readouterr().err

        with open_claims(redis.url) as claims:
            claims.renew(Lease(holder="ghost", name="celery@ghost", host="h", pid=1, boot_id="", queues=(), slots=1))
        monkeypatch.setattr(worker_replies, "LEASED_TIMEOUT", 1.0)
        assert NAME in listed()
        assert "worker celery@ghost has not replied within 1 s; it has a lease, so it lives" in capsys.readouterr().err
        ghost = "airflow celeriac: worker 'celery@ghost' does not reply; it has a lease, so it lives"
        assert error("shutdown-worker", "-H", "celery@ghost").startswith(ghost)

        monkeypatch.setattr("builtins.input", lambda _: "n")
        assert error("shutdown-all-workers") == "Cancelled"
        assert running.process.poll() is None
        run("shutdown-all-workers", "-y", environment=environment)
        assert running.wait() == 0


def test_queue_that_rabbitmq_refuses_is_reported_and_the_worker_goes_on(environment, tmp_path, redis, rabbit, run):
    environment["AIRFLOW__CELERY__BROKER_URL"] = rabbit.url
    sender = Sender(rabbit.url, redis.url)
    with sender.app.connection_for_write() as connection, connection.channel() as channel:
        channel.queue_declare("other", durable=True, auto_delete=False, arguments={"x-max-length": 5})
    with worker("-H", "first", folder=tmp_path, environment=environment) as running:
        with pytest.raises(SystemExit, match=f"{NAME} refuses queue 'other': queue 'other' exists with other argum"):
            run("add-queue", "-q", "other", "-H", NAME, environment=environment)
        workers = json.loads(run("list-workers", "-o", "json", environment=environment))
        assert workers == [{"worker_name": NAME, "queues": ["default"]}]
        assert sender.final_status(sender.send(workloads.task("t"))) == FAILS
        assert lost_connections(running) == 0


def test_what_is_logged_is_not_in_the_output(capfd):
    with standard_output_on_error():
        os.write(STDOUT, b"logged\n")
    os.write(STDOUT, b"{}\n")
    assert capfd.readouterr() == ("{}\n", "logged\n")


def test_flower_gets_the_options_of_the_command_line_and_of_the_configuration(monkeypatch):
    monkeypatch.setenv("AIRFLOW__CELERY__BROKER_URL", "redis://broker/0")
    given = dict.fromkeys(("hostname", "port", "broker_api", "url_prefix", "basic_auth", "flower_conf"))
    defaults = ["flower", "redis://broker/0", "--address=0.0.0.0", "--port=5555"]
    assert flower_command(argparse.Namespace(**given), Options(conf)) == defaults
    monkeypatch.setenv("AIRFLOW__CELERY__FLOWER_PORT", "5556")
    monkeypatch.setenv("AIRFLOW__CELERY__FLOWER_BASIC_AUTH", "user:word")
    given |= {
        "hostname": "::1",
        "url_prefix": "flower",
        "broker_api": "http://rabbit:15672/api/",
        "flower_conf": "f.py",
    }
    assert flower_command(argparse.Namespace(**given), Options(conf)) == [
        "flower",
        "redis://broker/0",
        "--address=::1",
        "--port=5556",
        "--broker-api=http://rabbit:15672/api/",
        "--url-prefix=flower",
        "--basic-auth=user:word",
        "--conf=f.py",
    ]


def test_flower_that_is_not_installed_is_named_with_its_install_command(monkeypatch, run, environment):
    monkeypatch.setattr(cli_commands, "find_spec", lambda _: None)
    with pytest.raises(SystemExit, match=r"^airflow celeriac: Flower is not installed: pip install flower$"):
        run("flower", environment=environment)
