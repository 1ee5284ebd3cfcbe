"""The values for Airflow's official Helm chart name commands that exist, and the probe fails only if it should."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from socket import gethostname

import pytest
import yaml  # type: ignore[import-untyped]
from airflow.cli import cli_parser

VALUES = yaml.safe_load((Path(__file__).parents[2] / "deploy/helm/values.yaml").read_text())
WORKERS = VALUES["workers"]["celery"]


@pytest.mark.parametrize(
    ("shell", "words", "name"),
    [
        (WORKERS["args"][:2], WORKERS["args"][2], "worker"),
        (WORKERS["livenessProbe"]["command"][:2], WORKERS["livenessProbe"]["command"][2], "check"),
    ],
    ids=["args", "probe"],
)
def test_each_command_exists(shell, words, name):
    assert shell in (["bash", "-c"], ["sh", "-c"])
    assert " exec " in f" {words}", "the shell would keep the signals for itself"
    command = shlex.split(words.partition(" airflow ")[2])
    args = cli_parser.get_parser().parse_args(command)
    assert command[:2] == ["celeriac", name]
    assert args.subcommand == name


@pytest.mark.parametrize(
    ("backend", "status", "text"),
    [
        ("redis://:hush@127.0.0.1:1/0", 0, f"celery@{gethostname()}: unknown: the result backend is unavailable: "),
        ("rpc://", 1, "airflow celeriac: [celery] result_backend: 'rpc' holds no leases of workers; give Redis, "),
    ],
    ids=["unavailable", "without leases"],
)
@pytest.mark.one_version
def test_the_probe_does_not_fail_while_the_result_backend_is_unavailable(backend, status, text):
    environment = {**os.environ, "AIRFLOW__CELERY__RESULT_BACKEND": backend}
    command = [sys.executable, "-m", "airflow", "celeriac", "check"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (status, False), done.stderr
    [line] = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(text)]
    assert "hush" not in line


def test_the_worker_has_the_queues_of_its_set():
    assert re.search(r'--queues "{{ \.Values\.workers\.queue }}"', WORKERS["args"][2])
