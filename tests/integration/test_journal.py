"""The journal of a `LocalCluster`: the process after a killed one reports its commands, and runs none of them twice."""

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

from celeriac import LocalCluster, Task
from celeriac.cluster.local.journal import Journal
from celeriac.errors import InvalidConfig
from celeriac.task.task import OnWorkerLost
from celeriac.worker.supervisor.journal import REPORT_DEFAULTS, STREAM_DEFAULTS, completed, shortened
from celeriac.worker.supervisor.messages import CommandReport
from celeriac.worker.supervisor_start import SUPERVISOR_VARIABLE
from tests.support.cli_runner import Celeriac, jobs, started, until
from tests.support.journal_writer import run_tasks

ROOT = Path(__file__).parents[2]
USUAL_STREAMS: dict[str, Any] = {
    "stdout": STREAM_DEFAULTS,
    "stderr": STREAM_DEFAULTS,
}
REPORT: dict[str, Any] = {
    **REPORT_DEFAULTS,
    "pid": 4711,
    "started": 1.5,
    "duration": 0.25,
    **USUAL_STREAMS,
}


# — the processes and commands of the tests —


class Workplace:
    """A folder with a journal, in which a test starts one process after another."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.journal = folder, folder / "journal"

    @contextmanager
    def process(self, *lines: dict[str, Any]) -> Iterator[Celeriac]:
        """Start a process that runs the jobs. The id of each is its key."""
        file = jobs(self.folder, *({"id": line["key"], **line} for line in lines))
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        with started(
            self.journal, file, cwd=self.folder, program="tests.support.journal_writer", env={"PYTHONPATH": path}
        ) as process:
            yield process

    def run(self, *lines: dict[str, Any]) -> list[dict[str, Any]]:
        """Run the jobs in a process, wait for its end, and return its events."""
        with self.process(*lines) as process:
            ended = process.wait()
            assert process.alive() == []
        assert ended.status == 0, ended.err
        return [json.loads(line) for line in ended.out.splitlines()]

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines of the journal."""
        segments = sorted(self.journal.glob("*.jsonl"))
        return [json.loads(line) for segment in segments for line in segment.read_text().splitlines()]

    def has_ended(self, key: str) -> bool:
        return any(line["id"] == key and "ended" in line for line in self.lines())

    def log(self) -> Counter[str]:
        """Count the lines that the commands wrote about themselves."""
        path = self.folder / "log"
        return Counter(path.read_text().splitlines() if path.exists() else ())

    def has_started(self, *keys: str) -> Callable[[], bool]:
        return lambda: all(self.log()[f"begin {key}"] for key in keys)


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path)


def job(key: str, then: str = "true", **fields: Any) -> dict[str, Any]:
    return {
        "key": key,
        "command": f"echo begin {key} >> log; {then}; code=$?; echo end {key} >> log; exit $code",
    } | fields


WAITS = "while [ ! -e go ]; do sleep 0.02; done"


def by_key(events: list[dict[str, Any]]) -> dict[str, list[tuple[str, str | None]]]:
    """Return the states and reasons of each task, in order."""
    states: dict[str, list[tuple[str, str | None]]] = {}
    for event in events:
        states.setdefault(event["key"], []).append((event["state"], event.get("reason")))
    return states


def kill(process: Celeriac, number: int = signal.SIGKILL) -> None:
    process.signal(number)
    process.process.wait()


def freeze(process: Celeriac) -> None:
    """Stop the process. Its supervisors go on."""
    process.signal(signal.SIGSTOP)
    until(lambda: b"T (stopped)" in Path(f"/proc/{process.process.pid}/status").read_bytes(), "the stop")


# — a process is killed —


def test_a_command_that_ended_before_the_kill_is_reported_and_not_run_again(place):
    well, badly = job("well", f"{WAITS}; echo said"), job("badly", f"{WAITS}; exit 3")
    unknown = {"key": "unknown", "command": ["no-such-program"]}
    with place.process(well, badly) as process:
        until(place.has_started("well", "badly"), "the start of the commands")
        freeze(process)
        (place.folder / "go").touch()
        until(lambda: place.has_ended("well") and place.has_ended("badly"), "the end of the commands")
        kill(process)
        process.wait_until_nothing_is_alive()
    events = place.run(well, badly | {"retries": 0}, unknown)
    last = {event["key"]: event for event in events}
    assert last["well"]["state"] == "success"
    assert last["well"]["exit_code"] == 0
    assert last["well"]["stdout"]["tail"] == "said\n"
    assert (last["badly"]["state"], last["badly"]["reason"], last["badly"]["exit_code"]) == ("failed", "exit_code", 3)
    assert last["unknown"]["reason"] == "not_started"
    assert place.log() == {"begin well": 1, "end well": 1, "begin badly": 1}


def test_a_failed_attempt_from_the_journal_is_retried_as_the_next_attempt(place):
    fails = job("k", '[ "$CELERIAC_ATTEMPT" = 2 ]', retries=1, retry_delay=0)
    once = fails | {"retries": 0}
    with place.process(once) as process:
        process.wait()
    events = place.run(fails)
    assert [(event["attempt"], event["state"]) for event in events if event["state"] in ("waiting", "success")] == [
        (1, "waiting"),
        (2, "success"),
    ]
    assert place.log()["begin k"] == 2


def test_a_command_that_the_kill_ended_is_lost(place):
    again, fails = job("again", WAITS), job("fails", WAITS, on_worker_lost="fail")
    with place.process(again, fails) as process:
        until(place.has_started("again", "fails"), "the start of the commands")
        kill(process)
        process.wait_until_nothing_is_alive()
    (place.folder / "go").touch()
    events = by_key(place.run(again, fails))
    assert ("waiting", "lost") in events["again"]
    assert events["again"][-1] == ("success", None)
    assert events["fails"][-1] == ("failed", "lost")
    assert place.log()["begin again"] == 2
    assert place.log()["begin fails"] == 1


def test_a_command_that_ended_just_before_the_kill_keeps_its_result(place):
    plain, leaves = job("plain", WAITS), job("leaves", f"sleep 600 & {WAITS}")
    with place.process(plain, leaves) as process:
        until(place.has_started("plain", "leaves"), "the start of the commands")
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
        process.wait_until_nothing_is_alive()
    last = {event["key"]: event for event in place.run(plain, leaves)}
    assert [last[key]["state"] for key in ("plain", "leaves")] == ["success", "success"]
    assert (last["plain"]["leftovers_ended"], last["leaves"]["leftovers_ended"]) == (False, True)
    assert set(place.log().values()) == {1}


def test_a_terminated_supervisor_ends_its_commands(place):
    runs = job("k", WAITS, on_worker_lost="fail")
    with place.process(runs) as process:
        until(place.has_started("k"), "the start of the command")
        process.supervisors()[0].terminate()
        ended = process.wait()
        assert process.alive() == []
    last = json.loads(ended.out.splitlines()[-1])
    assert (last["state"], last["reason"], last["detail"]) == ("failed", "lost", "its worker ended")


def test_a_command_that_never_started_runs(place):
    runs = [job(str(n), WAITS) for n in range(4)]
    with place.process(*runs, job("later")) as process:
        until(place.has_started(*"0123"), "the start of the commands")
        kill(process)
        process.wait_until_nothing_is_alive()
    assert not place.log()["begin later"]
    (events,) = by_key(place.run(job("later"))).values()
    assert events[-1] == ("success", None)
    assert ("waiting", "lost") not in events
    assert place.log()["begin later"] == 1


def test_commands_of_killed_supervisors_are_dead_before_the_next_process_begins(place):
    command = f"setsid sh -c 'echo own >> log; exec sleep 600' & {WAITS}"
    runs = job("k", command, on_worker_lost="fail")
    with place.process(runs) as process:
        until(lambda: place.has_started("k")() and place.log()["own"], "the start of the command")
        freeze(process)
        for supervisor in process.supervisors():
            supervisor.kill()
        kill(process)
        assert process.alive() != []
        events = place.run(runs)
        assert process.alive() == []
    last = events[-1]
    assert (last["state"], last["reason"], last["detail"]) == ("failed", "lost", "celeriac was killed while it ran")
    assert place.log() == {"begin k": 1, "own": 1}


def test_every_command_ends_once_however_often_the_process_is_killed(place):
    lines = [job(str(n), on_worker_lost="fail") for n in range(60)]
    for at in (1, 20, 40):
        with place.process(*lines) as process:
            until(lambda number=2 * at: sum(place.log().values()) >= number, "some ends")  # type: ignore[misc]
            kill(process)
    events = by_key(place.run(*lines))
    ended_well = {key for key, states in events.items() if states[-1] == ("success", None)}
    lost = {key for key, states in events.items() if states[-1] == ("failed", "lost")}
    by_themselves = {line["id"] for line in place.lines() if "ended" in line and "stopped" not in line["ended"]}
    assert ended_well == by_themselves
    assert ended_well | lost == {str(n) for n in range(60)}
    assert set(place.log().values()) == {1}  # nothing ran twice
    assert {f"end {key}" for key in ended_well} <= place.log().keys()


def test_the_next_process_waits_for_the_end_of_a_frozen_one(place):
    runs, other = job("runs", f"trap 'echo gone >> log; exit 0' TERM; {WAITS}"), job("other", "cp log seen")
    with place.process(runs) as process:
        until(place.has_started("runs"), "the start of the command")
        freeze(process)
        with place.process(other) as following:
            following.wait_for_stderr(
                f"waiting until the commands of an earlier process have ended: journal {place.journal}\n"
            )
            assert not place.log()["begin other"]
            kill(process)
            ended = following.wait()
    assert (ended.status, ended.err) == (0, "")
    assert (place.folder / "seen").read_text().splitlines() == ["begin runs", "gone", "begin other"]


def test_a_command_inherits_neither_the_lock_nor_a_segment(place):
    place.run({"key": "k", "command": "ls -l /proc/self/fd > descriptors"})
    assert str(place.journal) not in (place.folder / "descriptors").read_text()


# — the content —


def test_the_journal_is_private_and_holds_neither_environments_nor_commands(place):
    task = {"key": "k", "command": "true $SECRET argument-of-the-command", "secret": "hunter2"}
    place.run(task)
    assert stat.S_IMODE(place.journal.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in place.journal.iterdir()} == {0o600}
    kept = b"".join(path.read_bytes() for path in place.journal.iterdir())
    assert b"hunter2" not in kept
    assert b"argument-of-the-command" not in kept
    assert b'"id":"k"' in kept


def test_a_printed_secret_is_masked_in_the_report_of_an_earlier_process(place):
    task = {"key": "k", "command": "echo $SECRET", "secret": "hunter2"}
    place.run(task)
    (success,) = [event for event in place.run(task) if event["state"] == "success"]
    assert success["stdout"]["tail"] == "******\n"


def test_a_shortened_report_can_be_completed():
    reports = [
        REPORT,
        REPORT | {"status": None, "error": {"errno": 2, "about": "program", "text": "no"}},
        REPORT | {"stopped": "timeout", "leftovers_ended": True, "peak_memory": 5},
        REPORT | {"stdout": {"path": "/o", "size": 3, "left_out": 1, "tail": "abc"}},
    ]
    assert [completed(json.loads(json.dumps(shortened(report)))) for report in reports] == reports
    assert shortened(REPORT) == {"pid": 4711, "started": 1.5, "duration": 0.25}


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
    return json.dumps({"id": task_id, "ended": shortened(REPORT)}) + "\n"


@contextmanager
def opened(folder: Path) -> Iterator[Journal]:
    journal = Journal(folder)
    try:
        yield journal
    finally:
        journal.close()


def test_a_line_that_was_written_in_part_is_ignored(tmp_path):
    folder = tmp_path / "journal"
    segment(folder, begun("a") + over("a")[:-20])
    segment(folder, begun("b") + begun("c")[:-8] + "\n" + over("b"))
    with opened(folder) as journal:
        assert str(journal.take_report("a")) == "celeriac was killed while it ran"
        assert journal.take_report("b") == CommandReport.from_json(REPORT)
        assert journal.take_report("c") is None


def test_a_report_with_a_path_that_is_not_utf_8_is_read(tmp_path):
    folder, report = tmp_path / "journal", REPORT | {"output_error": "/caf\udce9.out: No space left on device"}
    segment(folder, begun("a") + json.dumps({"id": "a", "ended": shortened(report)}) + "\n")
    with opened(folder) as journal:
        assert journal.take_report("a") == CommandReport.from_json(report)


def test_a_report_in_a_later_segment_counts_and_is_returned_once(tmp_path):
    folder, mark = tmp_path / "journal", str(uuid4())
    segment(folder, begun("a"), mark, 0)
    segment(folder, over("a"), mark, 1)
    with opened(folder) as journal:
        assert journal.take_report("a") == CommandReport.from_json(REPORT)
        assert journal.take_report("a") is None
    with opened(folder) as journal:  # the ledger may not hold the end yet
        assert journal.take_report("a") == CommandReport.from_json(REPORT)


def test_only_processes_with_the_mark_of_an_old_supervisor_are_killed(tmp_path):
    folder, mark = tmp_path / "journal", str(uuid4())
    marked = subprocess.Popen(["sleep", "600"], env={**os.environ, SUPERVISOR_VARIABLE: mark})
    other = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        folder.mkdir(mode=0o700)
        (folder / f"{mark}.{other.pid}.0.jsonl").touch()  # another process has its process id by now
        with opened(folder):
            assert marked.wait() == -signal.SIGKILL
            assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_segment_is_removed_when_none_of_its_tasks_is_needed(tmp_path):
    folder = tmp_path / "journal"
    done, needed = segment(folder, begun("a") + over("a")), segment(folder, over("b") + over("c"))
    with opened(folder) as journal:
        journal.prune(lambda task_id: task_id == "b")
        assert (done.exists(), needed.exists()) == (False, True)
        journal.prune(lambda task_id: False)
        assert not needed.exists()
        assert journal.take_report("b") == CommandReport.from_json(REPORT)  # the journal read it when it was opened


def test_prune_costs_nothing_while_no_segment_is_complete(tmp_path):
    with LocalCluster(parallelism=1, journal=tmp_path / "journal") as cluster:
        assert run_tasks(cluster, [Task(key="k", command="true")])[-1]["state"] == "success"
        assert cluster.journal is not None
        cluster.journal.prune(lambda task_id: pytest.fail("called"))
        assert len(list((tmp_path / "journal").glob("*.jsonl"))) == 1


def test_only_complete_segments_are_pruned(tmp_path):
    loud = [Task(key=n, command=(sys.executable, "-c", "print('x' * 16_000)")) for n in range(280)]
    with LocalCluster(parallelism=2, journal=tmp_path / "journal") as cluster:
        run_tasks(cluster, loud)
        before = set((tmp_path / "journal").glob("*.jsonl"))
        run_tasks(cluster, loud)
        after = set((tmp_path / "journal").glob("*.jsonl"))
        assert cluster.journal is not None
        cluster.journal.prune(lambda task_id: False)
        left = set((tmp_path / "journal").glob("*.jsonl"))
    assert before < after
    assert left == {path for path in after if not path.with_suffix("").name.endswith(".0")}


def test_the_last_segment_of_a_killed_supervisor_is_pruned(place):
    with LocalCluster(parallelism=1, journal=place.journal) as cluster:
        killer = Task(key="k", command="kill -9 $PPID; sleep 600", on_worker_lost=OnWorkerLost.FAIL)
        run_tasks(cluster, [killer, Task(key="next", command="true")])
        segments = list(place.journal.glob("*.jsonl"))
        assert cluster.journal is not None
        cluster.journal.prune(lambda task_id: False)
        left = list(place.journal.glob("*.jsonl"))
    assert (len(segments), len(left)) == (2, 1)


def test_close_keeps_the_journal_and_discard_removes_it(tmp_path):
    folder = tmp_path / "journal"
    for early in (True, False):
        with LocalCluster(parallelism=1, journal=folder) as cluster:
            run_tasks(cluster, [Task(key="k", command="true")])
            assert cluster.journal is not None
            if early:
                cluster.journal.discard()
        if not early:
            assert list(folder.glob("*.jsonl")) != []
            cluster.journal.discard()
        assert not folder.exists()


def test_discard_keeps_an_open_journal_and_files_of_others(tmp_path):
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


# — full disks and unusable folders —


def test_an_unusable_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "open").mkdir(mode=0o755)
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "open"):
        with pytest.raises(InvalidConfig, match=f"journal: {folder}: "):
            Journal(folder)


def small_disk(folder: Path, size: str) -> None:
    """Mount a file system of that size."""
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


def test_a_disk_that_fills_up_costs_one_warning_and_no_result(tmp_path, caplog):
    disk = tmp_path / "disk"
    small_disk(disk, "12k")
    loud = [Task(key=n, id=str(n), command="head -c 3000 /dev/zero | tr '\\0' x; echo; exit 3") for n in range(9)]
    try:
        with LocalCluster(parallelism=1, journal=disk / "journal") as cluster:  # two would race for the space
            events = run_tasks(cluster, loud)
        with opened(disk / "journal") as journal:
            reports = [journal.take_report(str(n)) for n in range(9)]
    finally:
        subprocess.run(["umount", disk], check=True)
    ends = [event for event in events if event["state"] == "failed"]
    assert [(event["reason"], event["stdout"]["size"]) for event in ends] == [("exit_code", 3001)] * 9
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "celeriac.cluster.local.journal"]
    assert warning.startswith("cannot write the journal; if celeriac is killed now, commands may run again: ")
    assert isinstance(reports[0], CommandReport)
    assert reports[8] is None
