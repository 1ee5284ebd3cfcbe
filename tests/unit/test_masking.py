"""Secrets in the output of a command: in every form, and before anything is cut off."""

from __future__ import annotations

from contextlib import closing

import pytest

from celeriac.worker.outcome import mask
from celeriac.worker.supervisor.capture import TAIL_SIZE
from celeriac.worker.supervisor.masking import Masker
from celeriac.worker.supervisor.messages import CommandRequest, OutputRequest
from celeriac.worker.supervisor_client import SupervisorProcess
from tests.support.cli_runner import jobs, run

KEY = "-----BEGIN KEY-----\n" + "".join(f"line {n} of the key {'x' * 40}\n" for n in range(30)) + "-----END KEY-----\n"


@pytest.mark.parametrize(
    ("secrets", "text", "masked"),
    [
        ([], "hunter2", "hunter2"),
        (["hunter2"], "a hunter2, hunter2b", "a ******, ******b"),
        (["hunter2", "hunter2-and-more"], "hunter2-and-more", "******"),
        (["hunter2-and-more", "hunter2"], "hunter2-and-more hunter2", "****** ******"),
        (["abcdef", "defghi"], "abcdefghi", "******"),
        (["aba"], "ababa", "******"),
        (["hunter2\n"], "hunter2", "******"),
        (["  hunter2\t"], "[hunter2]", "[******]"),
        (["one-line\nand another\n"], "> one-line\n> and another\n", "> ******\n> ******\n"),
        (["one-line\r\nand another"], "one-line\nand another\n", "******\n"),
        (["{\n  token: 5\n}\n"], "{ token: 5 }", "{ ****** }"),
        (["", " ", "\n"], "a b\n", "a b\n"),
        (["ÄÖÜ"], "an ÄÖÜ", "an ******"),
        (["\udcff"], b"a \xff".decode("latin-1"), b"a \xff".decode("latin-1")),
    ],
)
def test_a_secret_is_masked_in_each_form(secrets, text, masked):
    assert Masker(secrets).mask(text.encode()).decode() == masked


def test_bytes_that_are_no_text_are_masked():
    assert Masker(["a\udcff"]).mask(b"<a\xff>") == b"<******>"


@pytest.mark.parametrize(
    ("index", "rest"),
    [
        (0, "******, ******."),
        (1, "******, ******."),
        (6, "******, ******."),
        (7, ", ******."),
        (9, "******."),
        (16, "."),
    ],
)
def test_a_secret_across_the_index_is_masked_and_nothing_before_it_is_returned(index, rest):
    assert Masker(["hunter2"]).mask(b"hunter2, hunter2.", index).decode() == rest


def tail_of(script: str, secret: str) -> str:
    request = CommandRequest(
        id="an id",
        argv=["/bin/sh", "-c", script],
        cwd=None,
        env={"SECRET": secret},
        secrets=["SECRET", "UNKNOWN"],
        timeout=None,
        grace=1.0,
        start_by=None,
        output=OutputRequest(stdout=None, stderr=None, cap=0, keep_empty=False),
    )
    with closing(SupervisorProcess()) as supervisor, closing(supervisor.open_channel()) as channel:
        channel.start(request)
        tail: str = channel.report().stdout.tail
        return tail


def test_no_line_of_a_long_secret_is_left_when_the_output_is_cut():
    assert tail_of('printf %s "$SECRET"', KEY) == "******"
    assert tail_of('printf %s "$SECRET" | sed "s/^/key: /"', KEY) == "key: ******\n" * 20


@pytest.mark.parametrize("after", [0, 1, 5, TAIL_SIZE - 5, TAIL_SIZE - 1, TAIL_SIZE])
def test_no_part_of_a_secret_is_left_where_the_output_is_cut(after):
    secret = "0123456789" * 10
    tail = tail_of(
        f"head -c 40000 /dev/zero | tr '\\0' x; printf %s \"$SECRET\"; head -c {after} /dev/zero | tr '\\0' y", secret
    )
    assert set(tail) <= set("xy*")
    assert tail.endswith("*" + "y" * after) or after >= TAIL_SIZE


def test_a_secret_longer_than_the_kept_output_is_masked():
    assert tail_of('printf %s "$SECRET"; echo .', "s" * (3 * TAIL_SIZE)) == "******.\n"


def test_the_result_of_an_earlier_supervisor_is_masked():
    streams = {name: {"tail": f"{name}: hunter2\n"} for name in ("stdout", "stderr")}
    mask({"execution": streams}, ["hunter2"])
    assert [stream["tail"] for stream in streams.values()] == ["stdout: ******\n", "stderr: ******\n"]


def test_events_ledger_and_messages_have_no_line_of_a_key(tmp_path):
    file = jobs(
        tmp_path, {"key": "k", "command": 'echo "$KEY"; echo "$KEY" >&2; exit 1', "env": {"KEY": {"secret": KEY}}}
    )
    ended = run("run", file, "--events", "events", "--ledger", "ledger.db", "--name", "r", cwd=tmp_path)
    shown = run("explain", "k", "--run", "r", "--ledger", "ledger.db", cwd=tmp_path)
    listed = run("show", "r", "--json", "--ledger", "ledger.db", cwd=tmp_path)
    texts = [ended.out + ended.err, (tmp_path / "events").read_text(), shown.out, listed.out]
    assert not any("of the key" in text or "END KEY" in text for text in texts)
    assert "    ******\n" in ended.err
