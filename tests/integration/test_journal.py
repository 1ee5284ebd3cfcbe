"""A process that is killed, and the next one with the same journal: what ran is told, and nothing runs twice."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest

from celeriac import Config, LocalCluster, Task
from celeriac.cluster.local.journal import Journal
from celeriac.errors import InvalidConfig
from celeriac.task.task import OnWorkerLost
from celeriac.worker.leftovers import SUPERVISOR_VARIABLE
from celeriac.worker.supervisor import journal as written
from celeriac.worker.supervisor.messages import CommandReport
from tests.support.cli_runner import Celeriac, jobs, started, until
from tests.support.journal_writer import moves_of

ROOT = Path(__file__).parents[2]
USUAL_STREAMS: dict[str, Any] = {"stdout": written.STREAM_DEFAULTS, "stderr": written.STREAM_DEFAULTS}
REPORT: dict[str, Any] = {**written.REPORT_DEFAULTS, "pid": 4711, "started": 1.5, "duration": 0.25, **USUAL_STREAMS}


# — what the tests run, and what it left behind —


class Place:
    """A folder with a journal, for one process after another."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.journal = folder, folder / "journal"

    @contextmanager
    def process(self, *lines: dict[str, Any]) -> Iterator[Celeriac]:
        """Runs the jobs. Each has its key for an id."""
        file = jobs(self.folder, *({"id": line["key"], **line} for line in lines))
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        with started(
            self.journal, file, cwd=self.folder, program="tests.support.journal_writer", env={"PYTHONPATH": path}
        ) as process:
            yield process

    def told(self, *lines: dict[str, Any]) -> list[dict[str, Any]]:
        """The moves, in a process that runs to its end."""
        with self.process(*lines) as process:
            ended = process.wait()
            assert process.alive() == []
        assert ended.status == 0, ended.err
        return [json.loads(line) for line in ended.out.splitlines()]

    def lines(self) -> list[dict[str, Any]]:
        segments = sorted(self.journal.glob("*.jsonl"))
        return [json.loads(line) for segment in segments for line in segment.read_text().splitlines()]

    def has_ended(self, key: str) -> bool:
        return any(line["id"] == key and "ended" in line for line in self.lines())

    def log(self) -> Counter[str]:
        """What the commands wrote down of themselves."""
        path = self.folder / "log"
        return Counter(path.read_text().splitlines() if path.exists() else ())

    def has_begun(self, *keys: str) -> Callable[[], bool]:
        return lambda: all(self.log()[f"begin {key}"] for key in keys)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def job(key: str, then: str = "true", **fields: Any) -> dict[str, Any]:
    return {
        "key": key,
        "command": f"echo begin {key} >> log; {then}; code=$?; echo end {key} >> log; exit $code",
    } | fields


WAITS = "while [ ! -e go ]; do sleep 0.02; done"


def by_key(moves: list[dict[str, Any]]) -> dict[str, list[tuple[str, str | None]]]:
    found: dict[str, list[tuple[str, str | None]]] = {}
    for move in moves:
        found.setdefault(move["key"], []).append((move["state"], move.get("reason")))
    return found


def kill(process: Celeriac, number: int = signal.SIGKILL) -> None:
    process.signal(number)
    process.process.wait()


def freeze(process: Celeriac) -> None:
    """Its supervisors go on."""
    process.signal(signal.SIGSTOP)
    until(lambda: b"T (stopped)" in Path(f"/proc/{process.process.pid}/status").read_bytes(), "the stop")


# — killed —


def test_what_ended_and_was_not_read_is_told_and_not_run_again(place):
    well, badly = job("well", f"{WAITS}; echo said"), job("badly", f"{WAITS}; exit 3")
    unknown = {"key": "unknown", "command": ["no-such-program"]}
    with place.process(well, badly) as process:
        until(place.has_begun("well", "badly"), "the start of the commands")
        freeze(process)
        (place.folder / "go").touch()
        until(lambda: place.has_ended("well") and place.has_ended("badly"), "the end of the commands")
        kill(process)
        until(lambda: process.alive() == [], "the end of the supervisors")
    moves = place.told(well, badly | {"retries": 0}, unknown)
    last = {move["key"]: move for move in moves}
    assert last["well"]["state"] == "success"
    assert last["well"]["exit_code"] == 0
    assert last["well"]["stdout"]["tail"] == "said\n"
    assert (last["badly"]["state"], last["badly"]["reason"], last["badly"]["exit_code"]) == ("failed", "exit_code", 3)
    assert last["unknown"]["reason"] == "not_started"
    assert place.log() == {"begin well": 1, "end well": 1, "begin badly": 1}


def test_a_failed_attempt_that_is_told_is_tried_again_as_the_next_one(place):
    fails = job("k", '[ "$CELERIAC_ATTEMPT" = 2 ]', retries=1, retry_delay=0)
    once = fails | {"retries": 0}
    with place.process(once) as process:
        process.wait()
    moves = place.told(fails)
    assert [(move["attempt"], move["state"]) for move in moves if move["state"] in ("waiting", "success")] == [
        (1, "waiting"),
        (2, "success"),
    ]
    assert place.log()["begin k"] == 2


def test_what_was_ended_because_the_executor_was_killed_is_lost(place):
    again, fails = job("again", WAITS), job("fails", WAITS, on_worker_lost="fail")
    with place.process(again, fails) as process:
        until(place.has_begun("again", "fails"), "the start of the commands")
        kill(process)
        until(lambda: process.alive() == [], "the end of the supervisors")
    (place.folder / "go").touch()
    moves = by_key(place.told(again, fails))
    assert ("waiting", "lost") in moves["again"]
    assert moves["again"][-1] == ("success", None)
    assert moves["fails"][-1] == ("failed", "lost")
    assert place.log()["begin again"] == 2
    assert place.log()["begin fails"] == 1


def test_what_had_ended_by_itself_before_the_kill_is_told_though_its_supervisor_sees_both_at_once(place):
    plain, leaves = job("plain", WAITS), job("leaves", f"sleep 600 & {WAITS}")
    with place.process(plain, leaves) as process:
        until(place.has_begun("plain", "leaves"), "the start of the commands")
        supervisors = process.supervisors()
        freeze(process)
        for supervisor in supervisors:
            supervisor.suspend()
        shells = [child for supervisor in supervisors for child in supervisor.children()]
        (place.folder / "go").touch()
        until(lambda: all(shell.status() == psutil.STATUS_ZOMBIE for shell in shells), "the end of the commands")
        kill(process)
        for supervisor in supervisors:
            supervisor.resume()
        until(lambda: process.alive() == [], "the end of the supervisors")
    last = {move["key"]: move for move in place.told(plain, leaves)}
    assert [last[key]["state"] for key in ("plain", "leaves")] == ["success", "success"]
    assert (last["plain"]["leftovers_ended"], last["leaves"]["leftovers_ended"]) == (False, True)
    assert set(place.log().values()) == {1}


def test_a_supervisor_that_is_told_to_go_ends_what_it_runs(place):
    runs = job("k", WAITS, on_worker_lost="fail")
    with place.process(runs) as process:
        until(place.has_begun("k"), "the start of the command")
        process.supervisors()[0].terminate()
        ended = process.wait()
        assert process.alive() == []
    last = json.loads(ended.out.splitlines()[-1])
    assert (last["state"], last["reason"], last["detail"]) == ("failed", "lost", "its worker ended")


def test_what_never_started_simply_runs(place):
    runs = [job(str(n), WAITS) for n in range(4)]
    with place.process(*runs, job("later")) as process:
        until(place.has_begun(*"0123"), "the start of the commands")
        kill(process)
        until(lambda: process.alive() == [], "the end of the supervisors")
    assert not place.log()["begin later"]
    (moves,) = by_key(place.told(job("later"))).values()
    assert moves[-1] == ("success", None)
    assert ("waiting", "lost") not in moves
    assert place.log()["begin later"] == 1


def test_what_ran_when_everything_was_killed_is_dead_before_the_next_begins_and_lost(place):
    command = f"setsid sh -c 'echo own >> log; exec sleep 600' & {WAITS}"
    runs = job("k", command, on_worker_lost="fail")
    with place.process(runs) as process:
        until(lambda: place.has_begun("k")() and place.log()["own"], "the start of the command")
        freeze(process)
        for supervisor in process.supervisors():
            supervisor.kill()
        kill(process)
        assert process.alive() != []
        moves = place.told(runs)
        assert process.alive() == []
    last = moves[-1]
    assert (last["state"], last["reason"], last["detail"]) == ("failed", "lost", "celeriac was killed while it ran")
    assert place.log() == {"begin k": 1, "own": 1}


def test_the_executor_is_killed_at_any_moment_again_and_again_and_every_command_ends_once(place):
    lines = [job(str(n), on_worker_lost="fail") for n in range(60)]
    for at in (1, 20, 40):
        with place.process(*lines) as process:
            until(lambda number=2 * at: sum(place.log().values()) >= number, "some ends")  # type: ignore[misc]
            kill(process)
    moves = by_key(place.told(*lines))
    ended_well = {key for key, states in moves.items() if states[-1] == ("success", None)}
    lost = {key for key, states in moves.items() if states[-1] == ("failed", "lost")}
    by_themselves = {line["id"] for line in place.lines() if "ended" in line and "stopped" not in line["ended"]}
    assert ended_well == by_themselves
    assert ended_well | lost == {str(n) for n in range(60)}
    assert set(place.log().values()) == {1}  # nothing twice
    assert {f"end {key}" for key in ended_well} <= place.log().keys()


def test_the_next_process_waits_until_a_frozen_one_and_its_commands_have_gone(place):
    runs, other = job("runs", f"trap 'echo gone >> log; exit 0' TERM; {WAITS}"), job("other", "cp log seen")
    with place.process(runs) as process:
        until(place.has_begun("runs"), "the start of the command")
        freeze(process)
        with place.process(other) as following:
            following.said(f"waiting for commands of an earlier run to end, whose journal is {place.journal}\n")
            assert not place.log()["begin other"]
            kill(process)
            ended = following.wait()
    assert (ended.status, ended.err) == (0, "")
    assert (place.folder / "seen").read_text().splitlines() == ["begin runs", "gone", "begin other"]


def test_a_command_holds_neither_the_lock_nor_a_segment(place):
    place.told({"key": "k", "command": "ls -l /proc/self/fd > descriptors"})
    assert str(place.journal) not in (place.folder / "descriptors").read_text()


# — what stands in it —


def test_it_is_for_its_owner_alone_and_holds_no_environment_and_no_command(place):
    task = {"key": "k", "command": "true $SECRET word-of-the-command", "secret": "hunter2"}
    place.told(task)
    assert stat.S_IMODE(place.journal.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in place.journal.iterdir()} == {0o600}
    kept = b"".join(path.read_bytes() for path in place.journal.iterdir())
    assert b"hunter2" not in kept
    assert b"word-of-the-command" not in kept
    assert b'"id":"k"' in kept


def test_a_secret_that_was_printed_is_masked_when_the_old_end_is_told(place):
    task = {"key": "k", "command": "echo $SECRET", "secret": "hunter2"}
    place.told(task)
    (told,) = [move for move in place.told(task) if move["state"] == "success"]
    assert told["stdout"]["tail"] == "******\n"


def test_a_report_is_the_same_after_it_was_shortened():
    reports = [
        REPORT,
        REPORT | {"status": None, "error": {"errno": 2, "about": "program", "text": "no"}},
        REPORT | {"stopped": "timeout", "leftovers_ended": True, "peak_memory": 5},
        REPORT | {"stdout": {"path": "/o", "size": 3, "left_out": 1, "tail": "abc"}},
    ]
    assert [written.completed(json.loads(json.dumps(written.shortened(report)))) for report in reports] == reports
    assert written.shortened(REPORT) == {"pid": 4711, "started": 1.5, "duration": 0.25}


# — the files —


def segment(folder: Path, text: str, mark: str | None = None, number: int = 0) -> Path:
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{mark or uuid4()}.{dead_pid()}.{number}.jsonl"
    path.write_text(text)
    return path


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def begun(task_id: str) -> str:
    return json.dumps({"id": task_id, "at": 1.0}) + "\n"


def over(task_id: str) -> str:
    return json.dumps({"id": task_id, "ended": written.shortened(REPORT)}) + "\n"


@contextmanager
def opened(folder: Path) -> Iterator[Journal]:
    journal = Journal(folder)
    try:
        yield journal
    finally:
        journal.close()


def test_a_line_that_was_written_in_part_counts_as_not_written(tmp_path):
    folder = tmp_path / "journal"
    segment(folder, begun("a") + over("a")[:-20])
    segment(folder, begun("b") + begun("c")[:-8] + "\n" + over("b"))
    with opened(folder) as journal:
        assert str(journal.take("a")) == "celeriac was killed while it ran"
        assert journal.take("b") == CommandReport.from_json(REPORT)
        assert journal.take("c") is None


def test_a_path_that_is_no_utf_8_costs_no_end(tmp_path):
    folder, report = tmp_path / "journal", REPORT | {"output_error": "/caf\udce9.out: No space left on device"}
    segment(folder, begun("a") + json.dumps({"id": "a", "ended": written.shortened(report)}) + "\n")
    with opened(folder) as journal:
        assert journal.take("a") == CommandReport.from_json(report)


def test_an_end_counts_whichever_segment_it_stands_in_and_is_told_once(tmp_path):
    folder, mark = tmp_path / "journal", str(uuid4())
    segment(folder, begun("a"), mark, 0)
    segment(folder, over("a"), mark, 1)
    with opened(folder) as journal:
        assert journal.take("a") == CommandReport.from_json(REPORT)
        assert journal.take("a") is None
    with opened(folder) as journal:  # the ledger may not have heard of it yet
        assert journal.take("a") == CommandReport.from_json(REPORT)


def test_what_carries_the_mark_of_an_old_supervisor_is_killed_and_nothing_else(tmp_path):
    folder, mark = tmp_path / "journal", str(uuid4())
    marked = subprocess.Popen(["sleep", "600"], env={**os.environ, SUPERVISOR_VARIABLE: mark})
    other = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        folder.mkdir(mode=0o700)
        (folder / f"{mark}.{other.pid}.0.jsonl").touch()  # its process id is another process's by now
        with opened(folder):
            assert marked.wait() == -signal.SIGKILL
            assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_segment_is_removed_when_nothing_in_it_is_wanted(tmp_path):
    folder = tmp_path / "journal"
    done, wanted = segment(folder, begun("a") + over("a")), segment(folder, over("b") + over("c"))
    with opened(folder) as journal:
        journal.prune(lambda task_id: task_id == "b")
        assert (done.exists(), wanted.exists()) == (False, True)
        journal.prune(lambda task_id: False)
        assert not wanted.exists()
        assert journal.take("b") == CommandReport.from_json(REPORT)  # read when it was opened


def test_nothing_is_asked_while_no_segment_is_full(tmp_path):
    with LocalCluster(Config(parallelism=1), journal=tmp_path / "journal") as embedded:
        assert moves_of(embedded, [Task(key="k", command="true")])[-1]["state"] == "success"
        assert embedded.journal is not None
        embedded.journal.prune(lambda task_id: pytest.fail("asked"))
        assert len(list((tmp_path / "journal").glob("*.jsonl"))) == 1


def test_a_full_segment_is_followed_by_another_and_only_the_full_one_is_pruned(tmp_path):
    loud = [Task(key=n, command=(sys.executable, "-c", "print('x' * 16_000)")) for n in range(280)]
    with LocalCluster(Config(parallelism=2), journal=tmp_path / "journal") as embedded:
        moves_of(embedded, loud)
        before = set((tmp_path / "journal").glob("*.jsonl"))
        moves_of(embedded, loud)
        after = set((tmp_path / "journal").glob("*.jsonl"))
        assert embedded.journal is not None
        embedded.journal.prune(lambda task_id: False)
        left = set((tmp_path / "journal").glob("*.jsonl"))
    assert before < after
    assert left == {path for path in after if not path.with_suffix("").name.endswith(".0")}


def test_the_last_segment_of_a_killed_supervisor_is_pruned_too(place):
    with LocalCluster(Config(parallelism=1), journal=place.journal) as embedded:
        killer = Task(key="k", command="kill -9 $PPID; sleep 600", on_worker_lost=OnWorkerLost.FAIL)
        moves_of(embedded, [killer, Task(key="next", command="true")])
        segments = list(place.journal.glob("*.jsonl"))
        assert embedded.journal is not None
        embedded.journal.prune(lambda task_id: False)
        left = list(place.journal.glob("*.jsonl"))
    assert (len(segments), len(left)) == (2, 1)


def test_closing_removes_nothing_and_discarding_everything(tmp_path):
    folder = tmp_path / "journal"
    for early in (True, False):
        with LocalCluster(Config(parallelism=1), journal=folder) as embedded:
            moves_of(embedded, [Task(key="k", command="true")])
            assert embedded.journal is not None
            if early:
                embedded.journal.discard()
        if not early:
            assert list(folder.glob("*.jsonl")) != []
            embedded.journal.discard()
        assert not folder.exists()


def test_what_another_process_has_opened_is_not_discarded_and_what_is_not_ours_stays(tmp_path):
    folder = tmp_path / "journal"
    with opened(folder) as first:
        pass
    with opened(folder) as second:
        kept = segment(folder, over("a"))
        first.discard()
        assert kept.exists()
        (folder / "notes").touch()
        second.discard()
    assert [path.name for path in folder.iterdir()] == ["notes"]


# — a disk that is full, a folder that cannot be used —


def test_a_folder_of_no_use_is_refused(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "open").mkdir(mode=0o755)
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "open"):
        with pytest.raises(InvalidConfig, match=f"journal: {folder}: "):
            Journal(folder)


def small_disk(folder: Path, size: str) -> None:
    folder.mkdir(mode=0o700)
    options = f"size={size},mode=700"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode != 0:
        pytest.skip("a small file system cannot be mounted here")


def test_a_full_disk_is_refused(tmp_path):
    disk = tmp_path / "disk"
    small_disk(disk, "8k")
    try:
        subprocess.run(["sh", "-c", f"cat /dev/zero > {disk}/ballast"], capture_output=True)
        with pytest.raises(InvalidConfig, match="No space left on device"):
            Journal(disk / "journal")
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_disk_that_fills_up_costs_a_warning_and_no_result(tmp_path, caplog):
    disk = tmp_path / "disk"
    small_disk(disk, "12k")
    loud = [Task(key=n, id=str(n), command="head -c 3000 /dev/zero | tr '\\0' x; echo; exit 3") for n in range(9)]
    try:
        with LocalCluster(Config(parallelism=1), journal=disk / "journal") as embedded:  # two would race for the space
            moves = moves_of(embedded, loud)
        with opened(disk / "journal") as journal:
            told = [journal.take(str(n)) for n in range(9)]
    finally:
        subprocess.run(["umount", disk], check=True)
    ends = [move for move in moves if move["state"] == "failed"]
    assert [(move["reason"], move["stdout"]["size"]) for move in ends] == [("exit_code", 3001)] * 9
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "celeriac.cluster.local.journal"]
    assert warning.startswith("if celeriac is killed, commands may be run again, for the journal is not kept: ")
    assert isinstance(told[0], CommandReport)
    assert told[8] is None
