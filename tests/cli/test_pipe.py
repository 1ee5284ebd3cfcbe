"""`run --pipe`: blocks of an input are the inputs of jobs."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from celeriac.runs.pipe import write_block
from celeriac.runs.standard_input import ByteSource
from tests.support.cli_runner import run, run_in_process, started, until
from tests.support.servers import program

LEDGER = ("--ledger", "ledger.db")
SAVE = "cat > {#}.part"


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "tmp").mkdir()
    return {"TMPDIR": str(tmp_path / "tmp")}


def lines(number: int) -> bytes:
    return b"".join(b"line %d\n" % n for n in range(number))


def parts(folder: Path) -> list[bytes]:
    """Return what each job has read, in the order of the blocks."""
    files = sorted(folder.glob("*.part"), key=lambda path: int(path.stem))
    return [path.read_bytes() for path in files]


def kept(folder: Path) -> list[str]:
    """Return the files that are left in the temporary folders."""
    return sorted(path.name for path in folder.glob("tmp/celeriac-*/*"))


def test_blocks_end_at_line_ends_and_are_all_of_the_input(tmp_path, env):
    data = lines(20_000) + b"no line end"
    ended = run("run", "--pipe", "--block", "10k", "-t", SAVE, "-", "--json", cwd=tmp_path, env=env, stdin=data)
    found = parts(tmp_path)
    assert (ended.status, ended.summary["succeeded"]) == (0, len(found))
    assert b"".join(found) == data
    assert all(10_240 <= len(part) < 10_300 and part.endswith(b"\n") for part in found[:-1])
    assert not kept(tmp_path)


def test_a_file_is_split_for_a_command_without_a_shell(tmp_path, env):
    (tmp_path / "in.txt").write_bytes(lines(1000))
    arguments = ("--pipe", "--block", "1K", "in.txt", "--keep-order", "-q", "--", "head", "-n1")
    ended = run("run", *arguments, cwd=tmp_path, env=env)
    firsts = ended.out.splitlines()
    assert (ended.status, firsts[0], len(firsts)) == (0, "line 0", 9)


def test_a_long_line_and_bytes_that_are_no_text_stay_whole(tmp_path, env):
    data = b"x" * 200_000 + b"\n" + b"\0\xff\n" * 3
    assert run("run", "-q", "--pipe", "--block", "1", "-t", SAVE, cwd=tmp_path, env=env, stdin=data).status == 0
    assert parts(tmp_path) == [b"x" * 200_000 + b"\n", *[b"\0\xff\n"] * 3]


def test_no_input_is_no_job(tmp_path, env):
    ended = run("run", "--pipe", "--json", "--", "cat", cwd=tmp_path, env=env, stdin=b"")
    assert (ended.status, ended.summary["tasks"]) == (0, 0)


def test_the_lines_of_gnu_parallel_and_ours_are_the_same(tmp_path, env):
    data = lines(5000)
    command = [program("parallel"), "--pipe", "--block", "10k", "-k", "-j2", "sort -r | tail -n2 | wc -c"]
    theirs = subprocess.run(command, input=data, cwd=tmp_path, capture_output=True, check=True).stdout
    ours = run(
        *("run", "--pipe", "--block", "10k", "--keep-order", "-q", "-t", "sort -r | tail -n2 | wc -c"),
        cwd=tmp_path,
        env=env,
        stdin=data,
    )
    assert ours.status == 0
    assert abs(len(ours.out.split()) - len(theirs.split())) <= 1


def test_the_input_is_read_only_as_fast_as_jobs_end(tmp_path, env):
    with started(
        "run",
        "--pipe",
        "--block",
        "1",
        "-j1",
        "-t",
        "until test -e go; do sleep 0.05; done; " + SAVE,
        cwd=tmp_path,
        env=env,
        stdin=-1,
    ) as celeriac:
        pipe = celeriac.process.stdin
        assert pipe is not None
        feeder = threading.Thread(target=feed, args=(pipe.fileno(), lines(40)))
        feeder.start()
        until(lambda: len(kept(tmp_path)) >= 2, "the first blocks")
        assert len(kept(tmp_path)) <= 3
        (tmp_path / "go").touch()
        feeder.join()
        pipe.close()
        assert celeriac.process.wait(60) == 0
    assert b"".join(parts(tmp_path)) == lines(40)
    assert not kept(tmp_path)


def feed(descriptor: int, data: bytes) -> None:
    os.write(descriptor, data)


def feed_all(descriptor: int, chunks: list[bytes]) -> None:
    for chunk in chunks:
        feed(descriptor, chunk)
    os.close(descriptor)


def test_the_blocks_of_failed_jobs_are_kept_and_retried(tmp_path, env):
    command = f"test $CELERIAC_KEY != 2 || test -e go || exit 3; {SAVE}"
    data = b"a\nb\nc\n"
    arguments = ("--pipe", "--block", "2", "-t", command, "--name", "split", *LEDGER)
    ended = run("run", *arguments, cwd=tmp_path, env=env, stdin=data)
    assert (ended.status, [name for name in kept(tmp_path) if "." not in name]) == (1, ["2"])
    (tmp_path / "go").touch()
    assert run("retry", "split", *LEDGER, cwd=tmp_path, env=env).status == 0
    assert parts(tmp_path) == [b"a\n", b"b\n", b"c\n"]


def test_a_retry_reads_the_whole_block_again(tmp_path, env):
    command = "cat >> {#}.part; test $CELERIAC_ATTEMPT = 2"
    options = ("--pipe", "--retries", "1", "--retry-delay", "0", "-t", command)
    assert run("run", "-q", *options, cwd=tmp_path, env=env, stdin=b"a\n").status == 0
    assert parts(tmp_path) == [b"a\na\n"]


def test_ctrl_c_ends_a_run_that_waits_for_room_and_for_input(tmp_path, env):
    for name, data in (("room", lines(40)), ("input", b"")):
        with started(
            "run", "--pipe", "--block", "1", "-j1", "-t", f"touch {name}; sleep 0.5", cwd=tmp_path, env=env, stdin=-1
        ) as celeriac:
            assert celeriac.process.stdin is not None
            feed(celeriac.process.stdin.fileno(), data)
            if data:
                until((tmp_path / name).exists, "the first job")
            else:
                until(lambda: list((tmp_path / "tmp").glob("celeriac-*/1")), "the begin of the first block")
            celeriac.signal(signal.SIGINT)
            assert celeriac.process.wait(30) == 130


def test_a_killed_supervisor_does_not_lose_a_block(tmp_path, env):
    command = f"{SAVE}; test -e go || {{ touch waits; exec sleep 60; }}"
    with started("run", "--pipe", "-t", command, "--json", cwd=tmp_path, env=env, stdin=-1) as celeriac:
        assert celeriac.process.stdin is not None
        feed(celeriac.process.stdin.fileno(), b"a\n")
        celeriac.process.stdin.close()
        until((tmp_path / "waits").exists, "the start of the job")
        (tmp_path / "1.part").unlink()
        (tmp_path / "go").touch()
        for process in celeriac.supervisors():
            process.kill()
        assert celeriac.process.wait(60) == 0
    assert parts(tmp_path) == [b"a\n"]


BAD = [
    (["--pipe", "-"], "--pipe needs one command: -t 'sort -u' or -- sort -u"),
    (["--pipe", "-t", "a", "-", "--", "b"], "--pipe needs one command"),
    (["--pipe", "-t", "a", ":::", "b"], "--pipe takes neither --key nor values after ::: and --grid"),
    (["--pipe", "-t", "a", "--key", "{#}"], "--pipe takes neither --key nor values"),
    (["--pipe", "--resume", "in.txt", "--", "a"], "--resume cannot split the input again"),
    (["--block", "1M", "in.txt"], "--block needs --pipe"),
    (["--pipe", "--block", "0", "--", "a"], "celeriac: --block: '0' is not a size; write for example 10M"),
    (["--pipe", "--block", "1X", "--", "a"], "celeriac: --block: '1X' is not a size"),
    (["--pipe", "-t", "a {x}"], "celeriac: --template: {x} names no value; there are {#}; for braces"),
    (["--pipe", "none.txt", "--", "a"], "celeriac: --pipe: none.txt: No such file or directory; name a file"),
    (["--pipe", ".", "--", "a"], "celeriac: --pipe: .: it is a directory; name a file, or - for standard input"),
    (
        ["--pipe", "--block", "5M", "--broker", "redis://127.0.0.1:1/0", "in.txt", "--", "a"],
        "celeriac: --block: 5,242,880 bytes are too much for the message that takes a block to a worker elsewhere",
    ),
]


@pytest.mark.parametrize(("arguments", "line"), BAD)
def test_a_bad_call_is_refused_before_anything_runs(tmp_path, arguments, line):
    (tmp_path / "in.txt").write_text("a\n")
    ended = run_in_process("run", *LEDGER, *arguments, cwd=tmp_path)
    assert ended.status == 2
    assert line in ended.err
    assert "Traceback" not in ended.err
    assert not (tmp_path / "ledger.db").exists()


def test_a_dry_run_names_the_first_command_and_reads_nothing(tmp_path):
    ended = run_in_process("run", "--dry-run", "--pipe", "--block", "1k", "-t", "sort > {#}", cwd=tmp_path)
    assert ended.out.split() == ["0", "default", "1", "sort", ">", "1"]
    assert ended.err == "standard input would be split into blocks of 1,024 bytes, one job each; this is the first\n"


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 65_536])
def test_blocks_do_not_depend_on_how_the_input_comes(tmp_path, size):
    data = b"ab\n\ncdefgh\ni"
    expected = None
    for step in (1, 2, 5, len(data)):
        reading, writing = os.pipe()
        source = ByteSource(reading)
        chunks = [data[start : start + step] for start in range(0, len(data), step)]
        feeder = threading.Thread(target=feed_all, args=(writing, chunks))
        feeder.start()
        found = []
        while write_block(source, tmp_path / "block", size):
            found.append((tmp_path / "block").read_bytes())
        feeder.join()
        source.close()
        source.release()
        os.close(reading)
        expected = expected or found
        assert found == expected
    assert b"".join(expected or []) == data
