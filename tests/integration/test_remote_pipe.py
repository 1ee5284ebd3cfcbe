"""`run --pipe` with workers elsewhere, which get the blocks in messages: on Redis, and on RabbitMQ with PostgreSQL."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.integration.test_cancel import url
from tests.support.cli_runner import run, started, until
from tests.support.long import slow
from tests.support.workers import worker

pytestmark = pytest.mark.celery

__all__ = ["url"]  # a fixture
LINES = 3_000


@pytest.fixture(params=["redis", slow("rabbitmq")])
def urls(request: pytest.FixtureRequest) -> tuple[str, str]:
    if request.param == "redis":
        return (request.getfixturevalue("url"),) * 2
    return request.getfixturevalue("rabbit").url, request.getfixturevalue("postgres").url


@pytest.fixture
def data() -> bytes:
    """Return lines of any bytes."""
    random_bytes = random.Random(1)
    return b"".join(random_bytes.randbytes(60).replace(b"\n", b"") + b"\n" for _ in range(LINES))


def parts(folder: Path) -> bytes:
    """Return what all jobs have read, in the order of the blocks."""
    files = sorted(folder.glob("*.part"), key=lambda path: int(path.stem))
    return b"".join(path.read_bytes() for path in files)


def test_workers_elsewhere_get_each_byte_though_one_of_them_is_killed(urls, tmp_path, data):
    (tmp_path / "in.bin").write_bytes(data)
    gated = "cat > {#}.part.tmp; until [ -e go ]; do sleep 0.02; done; mv {#}.part.tmp {#}.part"
    words = ("run", "--pipe", "--block", "16k", "-t", gated, "in.bin", "--broker", urls[0], "--backend", urls[1])
    two = ("-c", "2")
    with worker(tmp_path, urls, *two) as one, started(*words, "--ledger=ledger.db", "--json", cwd=tmp_path) as celeriac:
        until(lambda: len(list(tmp_path.glob("*.tmp"))) == 2, "two jobs", timeout=60)
        one.kill()
        (tmp_path / "go").touch()
        with worker(tmp_path, urls, *two):
            ended = celeriac.wait()
    assert (ended.status, ended.summary["failed"]) == (0, 0)
    assert parts(tmp_path) == data


def test_a_line_that_is_too_long_for_a_message_is_told_and_what_was_read_runs(url, tmp_path):
    (tmp_path / "in.txt").write_bytes(b"short\n" * 800_000 + b"x" * 6_000_000 + b"\nlast\n")
    words = ("run", "--pipe", "-t", "cat > {#}.part", "in.txt", "--broker", url, "--ledger=none", "-q")
    with worker(tmp_path, (url, url), "-c", "2"):
        ended = run(*words, cwd=tmp_path)
    assert ended.status == 2
    why = "a line makes block 2 longer than 5,242,880 bytes, which is too much for a message"
    assert f"in.txt: the rest could not be split: {why}" in ended.err
    assert 4 * 2**20 <= len(parts(tmp_path)) < 4 * 2**20 + 6


def test_a_job_that_failed_elsewhere_gets_the_same_block_once_more(url, tmp_path):
    (tmp_path / "in.txt").write_bytes(b"one\ntwo\n")
    place = ("--broker", url, "--ledger=ledger.db", "-q")
    with worker(tmp_path, (url, url)):
        fails = "cat >> seen; [ -e go ]"
        assert run("run", "--pipe", "--block", "4", "-t", fails, "in.txt", *place, cwd=tmp_path).status == 1
        (tmp_path / "seen").unlink()
        (tmp_path / "go").touch()
        assert run("retry", "in", "--failed", *place, cwd=tmp_path).status == 0
    assert sorted((tmp_path / "seen").read_text().splitlines()) == ["one", "two"]
