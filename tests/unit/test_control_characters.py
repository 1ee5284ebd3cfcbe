"""Line breaks and escape sequences in names begin no line of a log, a message or a configuration."""

from __future__ import annotations

import json
import logging
import re
import socket
import sys
from pathlib import Path

import pytest

from celeriac.broker.bundled_valkey import prepare_broker
from celeriac.config.settings import read_settings
from celeriac.errors import InvalidConfig, on_one_line
from celeriac.worker.log import JsonLines, TextLines
from tests.support.cli_runner import run

EVIL = "a\x1b[2Jb\r\x9b1mc\u2028d"
ROOT = Path(__file__).parents[2]


def record(message: str, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("celery.worker", logging.WARNING, "", 0, message, None, None)
    made.__dict__.update(extra)
    return made


def test_a_text_on_one_line_has_no_control_characters():
    assert on_one_line("plain ÄÖÜ 漢字") == "plain ÄÖÜ 漢字"
    assert on_one_line(f"{EVIL}\n\udcff") == r"a\x1b[2Jb\r\x9b1mc\u2028d\n\udcff"


@pytest.mark.parametrize("formatter", [TextLines(), JsonLines()])
def test_a_log_line_of_celery_is_one_line_without_control_characters(formatter):
    line = formatter.format(
        record(f"Received unregistered task of type {EVIL!s}", facts={"key": EVIL, "queue": "a\nb"})
    )
    assert line.isprintable()
    assert "\\u001b" in line


@pytest.mark.parametrize("formatter", [TextLines(), JsonLines()])
def test_a_traceback_has_no_control_characters(formatter):
    try:
        raise ValueError(f"{EVIL}\nsecond")
    except ValueError:
        text = formatter.format(record("a bug", exc_info=sys.exc_info(), shows_traceback=True))
    assert all(line.isprintable() for line in text.split("\n"))
    assert "second" in text


def test_a_log_line_begins_with_its_time_whatever_the_message_is():
    forged = TextLines().format(record("lost\r2026-01-01T00:00:00.000Z error   forged"))
    assert re.fullmatch(r"\S+Z warning lost", forged)
    assert json.loads(JsonLines().format(record("\x1b]0;x\x07")))["event"] == "\x1b]0;x\x07"


def test_a_name_of_a_file_begins_no_line_and_moves_no_cursor(tmp_path):
    name = "a\x1b[2Jb\nceleriac: forged.jsonl"
    (tmp_path / name).write_text('{"key": "a"}\n{"key": "b"}\n')
    ended = run("run", name, cwd=tmp_path)
    assert ended.status == 2
    lines = ended.err.splitlines()
    assert len(lines) == 2
    assert all(line.isprintable() and line.startswith(r"a\x1b[2Jb\nceleriac: forged.jsonl:") for line in lines)
    for command in (
        ("run", f"{name}.missing"),
        ("runs", "--ledger", f"{name}.db"),
        ("config", "--config", f"{name}.toml"),
    ):
        ended = run(*command, cwd=tmp_path)
        assert ended.status == 2
        assert len(ended.err.splitlines()) == 1
        assert ended.err.rstrip("\n").isprintable()


@pytest.mark.parametrize("name", ["name", "queues"])
def test_a_name_that_cannot_be_printed_is_refused(name):
    with pytest.raises(InvalidConfig) as error:
        read_settings(environment={f"CELERIAC_{name.upper()}": "a\nb"}, folder=Path("/"))
    assert r"'a\nb' has a character that cannot be printed" in str(error.value)


@pytest.mark.parametrize(
    "bind",
    ["127.0.0.1\nrequirepass x", "127.0.0.1 0.0.0.0", "", "*", "-::1", "a_b", "::1\x1b", "::1%a\nb", "x" * 300, "ｈ"],
)
def test_a_bind_that_is_no_address_is_refused(tmp_path, bind):
    with pytest.raises(InvalidConfig) as error:
        prepare_broker(tmp_path / "data", bind=bind, port=1)
    assert str(error.value) == (
        f"--bind: {bind!r} is not an address; write one address, for example 127.0.0.1, ::1 or 0.0.0.0"
    )
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("bind", "address"),
    [
        ("::1", "[::1]:1"),
        ("localhost", "localhost:1"),
        ("a-1.example.org", "a-1.example.org:1"),
    ],
)
def test_an_address_is_bound_to_and_shown(tmp_path, bind, address):
    server = prepare_broker(tmp_path / "data", bind=bind, port=1)
    assert server.address == address
    assert f"bind {bind}\n" in server.config.read_text()
    assert server.url_file.read_text() == f"{server.url}\n"


@pytest.mark.parametrize("bind", ["0.0.0.0", "::"])
def test_the_url_of_a_broker_on_all_addresses_names_one_of_this_machine(tmp_path, bind):
    server = prepare_broker(tmp_path / "data", bind=bind, port=1)
    host = server.address.removesuffix(":1").strip("[]")
    assert host not in ("0.0.0.0", "::")
    with socket.socket(socket.AF_INET if bind == "0.0.0.0" else socket.AF_INET6) as listener:
        listener.bind((host, 0))


# — lock files —


@pytest.mark.parametrize("name", ["run.txt", "dev.txt"])
def test_each_pinned_package_has_the_hashes_of_its_files(name):
    text = (ROOT / "requirements" / name).read_text().replace("\\\n", " ")
    packages = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len(packages) > 20
    pinned = re.compile(
        r"[A-Za-z0-9._-]+==\S+( ; .+?)?\s+--hash=sha256:[0-9a-f]{64}(\s+--hash=sha256:[0-9a-f]{64})*\s*"
    )
    assert [line for line in packages if not pinned.fullmatch(line)] == []
