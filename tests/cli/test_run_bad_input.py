"""Bad input: one line for each problem, exit status 2, and no command runs."""

from __future__ import annotations

import json

import pytest

from tests.support.cli_runner import jobs, run

GOOD = '{"key": "good", "command": "touch ran"}\n'
OBJECT = 'write one object a line, for example {"command": "gzip -k data.csv"}'

LINES = [
    (
        "empty command",
        '{"command": "  "}',
        'command: it is empty; write a shell command, for example "gzip -k data.csv"',
    ),
    (
        "empty list",
        '{"command": []}',
        'command: it is empty; name a program, for example ["gzip", "-k", "data.csv"]',
    ),
    ("missing command", '{"key": "x"}', 'command: it is missing; write what to run, for example "gzip -k data.csv"'),
    (
        "unknown field",
        '{"command": "true", "comand": 1}',
        'comand: it is not a field of a job; did you mean "command"?',
    ),
    (
        "wrong type",
        '{"command": "true", "priority": "high"}',
        'priority: "high" is not a whole number from -2147483647 to 2147483647; write for example 5',
    ),
    (
        "true is no number",
        '{"command": "true", "retries": true}',
        "retries: true is not a whole number from 0 to 2147483647; write for example 1",
    ),
    (
        "negative timeout",
        '{"command": "true", "timeout": -5}',
        "timeout: -5 is not a number of seconds above 0; write for example 30 or 0.5",
    ),
    (
        "no timeout at all",
        '{"command": "true", "timeout": 0}',
        "timeout: 0 is not a number of seconds above 0; write for example 30 or 0.5",
    ),
    (
        "negative grace",
        '{"command": "true", "grace": -1}',
        "grace: -1 is not a number of seconds, 0 or more; write for example 30 or 0.5",
    ),
    (
        "a NUL in a string",
        '{"command": "tr\\u0000ue"}',
        "command: it contains a NUL character; remove it: no program can receive one",
    ),
    ("no object", "[1]", f"a list is not a job; {OBJECT}"),
    (
        "a secret of the wrong type",
        '{"command": "true", "env": {"TOKEN": {"secret": 5}}}',
        'env: the value of "TOKEN" is not a string; write "..." or {"secret": "..."}, for a number too: {"TOKEN": "1"}',
    ),
]


@pytest.mark.parametrize(("line", "message"), [case[1:] for case in LINES], ids=[case[0] for case in LINES])
def test_a_bad_line_is_reported_with_place_and_remedy(tmp_path, line, message):
    (tmp_path / "jobs.jsonl").write_text(GOOD + line + "\n")
    ended = run("run", "jobs.jsonl", cwd=tmp_path)
    assert (ended.status, ended.err, ended.out) == (2, f"jobs.jsonl:2: {message}\n", "")
    assert not (tmp_path / "ran").exists()


BYTES = [
    ("bad UTF-8", b'{"command": "caf\xe9"}\n', "byte 17 of the line, 0xe9, is not UTF-8; save the file as UTF-8"),
    ("a NUL", b'{"command": "tr\0ue"}\n', "byte 16 of the line is a NUL; remove it: no command can contain one"),
    (
        "a line of 10 MB",
        b'{"command": "' + b"x" * 10_000_000 + b'"}\n',
        "the line is 10000015 bytes long, more than 1048576; put the data in a file and name it in the command",
    ),
]


@pytest.mark.parametrize(("line", "message"), [case[1:] for case in BYTES], ids=[case[0] for case in BYTES])
def test_bad_bytes_are_reported_with_their_place(tmp_path, line, message):
    (tmp_path / "jobs.jsonl").write_bytes(GOOD.encode() + line)
    ended = run("run", "jobs.jsonl", cwd=tmp_path)
    assert (ended.status, ended.err, ended.out) == (2, f"jobs.jsonl:2: {message}\n", "")
    assert not (tmp_path / "ran").exists()


def test_all_problems_are_reported_at_once(tmp_path):
    jobs(tmp_path, {"command": "touch ran"}, {"command": "", "priority": 1.5}, {"command": "true", "slots": 0})
    ended = run("run", "jobs.jsonl", cwd=tmp_path)
    assert ended.status == 2
    assert [line.split(": ")[:2] for line in ended.err.splitlines()] == [
        ["jobs.jsonl:2", "command"],
        ["jobs.jsonl:2", "priority"],
        ["jobs.jsonl:3", "slots"],
    ]
    assert not (tmp_path / "ran").exists()


def test_a_duplicate_key_is_reported_with_both_lines(tmp_path):
    (tmp_path / "jobs.jsonl").write_text(GOOD + '{"command": "true"}\n' + GOOD)
    ended = run("run", "jobs.jsonl", cwd=tmp_path)
    message = 'jobs.jsonl:3: key: "good" is already the key of line 1; give each job its own key\n'
    assert (ended.status, ended.err) == (2, message)
    assert not (tmp_path / "ran").exists()


def test_unknown_needs_and_cycles_are_reported_and_nothing_runs(tmp_path):
    jobs(
        tmp_path,
        {"key": "a", "command": "touch ran"},
        {"key": "b", "command": "touch ran", "needs": ["a", "c"]},
        {"key": "c", "command": "touch ran", "needs": ["d"]},
        {"key": "d", "command": "touch ran", "needs": ["b", "unknown"]},
        {"key": "e", "command": "touch ran", "needs": ["e"]},
    )
    ended = run("run", "jobs.jsonl", cwd=tmp_path)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.splitlines() == [
        "jobs.jsonl:2: needs: tasks need each other in a cycle: b needs c needs d needs b; remove one of these needs",
        'jobs.jsonl:4: needs: "unknown" is not the key of any line; name the key of a job in this file',
        "jobs.jsonl:5: needs: the task needs itself; remove its own key",
    ]
    assert not (tmp_path / "ran").exists()


def test_a_task_with_too_many_slots_is_refused(tmp_path):
    (tmp_path / "jobs.jsonl").write_text(GOOD + '{"key": "wide", "command": "true", "slots": 9}\n')
    ended = run("run", "jobs.jsonl", "-j4", cwd=tmp_path)
    message = "jobs.jsonl:2: slots: task 'wide' asks for 9 of 4; ask for fewer, or raise the parallelism\n"
    assert (ended.status, ended.err) == (2, message)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "jobs.txt: it contains no command; write at least one command"),
        (b"\n# only words\n\n", "jobs.txt: it contains no command; write at least one command"),
    ],
    ids=["empty", "comments"],
)
def test_a_file_with_nothing_to_run_is_refused(tmp_path, content, message):
    (tmp_path / "jobs.txt").write_bytes(content)
    ended = run("run", "jobs.txt", cwd=tmp_path)
    assert (ended.status, ended.err, ended.out) == (2, f"{message}\n", "")


def test_a_missing_file_is_refused(tmp_path):
    ended = run("run", "jobs.txt", cwd=tmp_path)
    message = "jobs.txt: there is no such file; check its name and directory\n"
    assert (ended.status, ended.err, ended.out) == (2, message, "")


def test_a_directory_is_refused(tmp_path):
    ended = run("run", ".", cwd=tmp_path)
    assert (ended.status, ended.err, ended.out) == (2, ".: it is a directory; name a file in it\n", "")


def test_a_table_with_an_unknown_column_is_refused(tmp_path):
    (tmp_path / "jobs.csv").write_text("command,priorty\ntouch ran,1\n")
    ended = run("run", "jobs.csv", cwd=tmp_path)
    assert ended.status == 2
    assert ended.err == 'jobs.csv:1: priorty: it is not a field of a job; did you mean "priority"?\n'
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--timeout=-1"], "celeriac: timeout: -1.0 is not a number of seconds above 0; write for example 30 or 0.5\n"),
        (["--queue-limit=gpu"], "celeriac: --queue-limit: 'gpu' is not a limit; write QUEUE=N, for example gpu=1\n"),
        (
            ["--max-load=0%"],
            (
                "celeriac: --max-load: '0%' is neither a load nor a per cent of the processors; give for example 8 "
                "or 100%\n"
            ),
        ),
        (
            ["--max-load=8", "--broker=redis://localhost:1/0"],
            (
                "celeriac: --max-load: is a limit of the machine that runs the commands, which are workers here; "
                "give it to celeriac worker: celeriac worker --max-load …\n"
            ),
        ),
        (
            ["--min-free-memory=2X"],
            (
                "celeriac: --min-free-memory: '2X' is not a size of memory; "
                'write for example "2G" or "512M", or bytes\n'
            ),
        ),
        (["--delay=-1"], "celeriac: --delay: '-1' is not a number of seconds; give for example 2 or 0.5\n"),
        (
            ["--output=/dev/null/here"],
            "celeriac: --output: /dev/null/here: Not a directory; name a folder to write in\n",
        ),
        (
            ["--events=/dev/null/here"],
            "celeriac: --events: /dev/null/here: Not a directory; name a file that can be written\n",
        ),
    ],
    ids=["timeout", "queue limit", "load", "load of workers", "memory", "delay", "output", "events"],
)
def test_a_bad_option_is_reported_by_name(tmp_path, option, message):
    (tmp_path / "jobs.jsonl").write_text(GOOD)
    ended = run("run", "jobs.jsonl", *option, cwd=tmp_path)
    assert (ended.status, ended.err, ended.out) == (2, message, "")
    assert not (tmp_path / "ran").exists()


def test_a_bad_default_for_a_stream_is_reported_before_anything_runs(tmp_path):
    ended = run("run", "-", "--timeout=-1", cwd=tmp_path, stdin=GOOD.encode())
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith("celeriac: timeout: -1.0 is not a number of seconds above 0")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [
        '["touch ran", "$(touch ran)"]\n',
        '[\n  {"comand": "$(touch ran)"}\n]\n',
        "sample,file,cmd\na,b,touch ran\n$(touch ran),b,c\n",
        "sample;file;cmd\na;b;touch ran\n",
    ],
    ids=["strings", "an unknown field", "commas", "semicolons"],
)
@pytest.mark.parametrize("name", ["jobs", "-"])
def test_another_format_never_runs_as_shell_commands(tmp_path, content, name):
    (tmp_path / "jobs").write_text(content)
    ended = run("run", name, "--ledger", "none", cwd=tmp_path, stdin=content.encode())
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.splitlines()[0].startswith(("jobs:", "<stdin>:"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["jobs.jsonl", "./jobs.jsonl", "link", "notes"])
def test_events_overwrite_no_file_of_another_kind(tmp_path, name):
    (tmp_path / "jobs.jsonl").write_text(GOOD)
    (tmp_path / "notes").write_text("precious\n")
    (tmp_path / "link").symlink_to("jobs.jsonl")
    ended = run("run", "jobs.jsonl", "--events", name, cwd=tmp_path)
    message = f"celeriac: --events: {name} exists and holds no events; remove it, or name another file\n"
    assert (ended.status, ended.err, ended.out) == (2, message, "")
    assert (tmp_path / "jobs.jsonl").read_text() == GOOD
    assert (tmp_path / "notes").read_text() == "precious\n"
    assert not (tmp_path / "ran").exists()


def test_events_and_a_summary_do_not_share_standard_output(tmp_path):
    (tmp_path / "jobs.jsonl").write_text(GOOD)
    error = "--events: - is standard output, to which this run writes something else; name a file"
    as_json = json.dumps({"error": error}) + "\n"
    for arguments, out in ((["jobs.jsonl", "--json"], as_json), (["--", "touch", "ran"], "")):
        ended = run("run", "--events", "-", *arguments, cwd=tmp_path)
        assert (ended.status, ended.err, ended.out) == (2, f"celeriac: {error}\n", out)
    assert not (tmp_path / "ran").exists()


def test_output_does_not_overwrite_the_job_file(tmp_path):
    (tmp_path / "good.out").write_text(GOOD)
    ended = run("run", "good.out", "--output", ".", cwd=tmp_path)
    message = "celeriac: --output: the output of task 'good' would overwrite good.out; name another folder\n"
    assert (ended.status, ended.err, ended.out) == (2, message, "")
    assert not (tmp_path / "ran").exists()


def test_an_empty_name_of_a_file_is_not_standard_input(tmp_path):
    ended = run("run", "", cwd=tmp_path, stdin=GOOD.encode())
    assert (ended.status, ended.err, ended.out) == (2, "celeriac: FILE: it is empty; give a value\n", "")
    assert not (tmp_path / "ran").exists()


def test_neither_a_file_nor_a_command_is_a_usage_error(tmp_path):
    ended = run("run", cwd=tmp_path)
    assert ended.status == 2
    assert ended.err.endswith("Error: give either a FILE, with - for standard input, or a command after '--'\n")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["run", "my", "jobs.txt"], "; quote the name: celeriac run 'my jobs.txt'\n"),
        (["run", "ls", "-l"], "; to run one command, write it after --: celeriac run -- ls -l\n"),
        (["run", "echo", "a b"], "; to run one command, write it after --: celeriac run -- echo 'a b'\n"),
        (["my jobs.txt"], "; to run this file, write celeriac run 'my jobs.txt'\n"),
    ],
)
def test_a_wrong_call_says_what_was_probably_meant(tmp_path, words, hint):
    (tmp_path / "my jobs.txt").write_text("touch ran\n")
    ended = run(*words, cwd=tmp_path)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.endswith(hint)
    assert not (tmp_path / "ran").exists()


def test_a_file_in_which_each_line_is_wrong_shows_the_first_problems(tmp_path):
    (tmp_path / "jobs.jsonl").write_text("echo hello\n" * 500)
    ended = run("run", "jobs.jsonl", cwd=tmp_path)
    lines = ended.err.splitlines()
    assert (ended.status, len(lines), lines[-1]) == (2, 101, "and 400 more problems")


def test_an_unknown_program_fails_only_its_task(tmp_path):
    jobs(tmp_path, {"key": "typo", "command": ["gzpi", "-k"]}, {"key": "good", "command": "touch ran"})
    ended = run("run", "jobs.jsonl", "--json", cwd=tmp_path)
    assert ended.status == 1
    (failure,) = ended.summary["failures"]
    assert failure["detail"] == "cannot start 'gzpi': there is no such program"
    assert failure["reason"] == "not_started"
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("cwd", "detail"),
    [("/nowhere", "cwd '/nowhere' does not exist"), ("/dev/null", "cwd '/dev/null' is not a directory")],
)
def test_an_unusable_working_directory_fails_only_its_task(tmp_path, cwd, detail):
    ended = run("run", jobs(tmp_path, {"command": "true", "cwd": cwd}), "--json", cwd=tmp_path)
    assert ended.status == 1
    assert ended.summary["failures"][0]["detail"] == detail


def test_a_file_without_execute_permission_fails_only_its_task(tmp_path):
    (tmp_path / "script").write_text("echo no\n")
    ended = run("run", jobs(tmp_path, {"command": [f"{tmp_path}/script"]}), "--json", cwd=tmp_path)
    assert ended.summary["failures"][0]["detail"] == f"cannot start '{tmp_path}/script': it is not executable"


def test_good_lines_of_a_stream_run_and_bad_lines_are_reported(tmp_path):
    lines = GOOD + '{"comand": "x"}\n' + json.dumps({"key": "other", "command": "touch other"}) + "\n"
    ended = run("run", "-", "--json", cwd=tmp_path, stdin=lines.encode())
    assert ended.status == 2
    assert ended.err.splitlines()[0] == '<stdin>:2: comand: it is not a field of a job; did you mean "command"?'
    assert (ended.summary["succeeded"], ended.summary["refused_lines"]) == (2, 2)
    assert (tmp_path / "ran").exists()
    assert (tmp_path / "other").exists()


def test_garbage_never_causes_a_traceback(tmp_path):
    for garbage in (b"\xff\xfe\x00", b'{"command": ' * 1000, b"\r\r\r", b'{"command":"x"}{"command":"y"}\n'):
        (tmp_path / "jobs.jsonl").write_bytes(garbage)
        ended = run("run", "jobs.jsonl", cwd=tmp_path)
        assert ended.status == 2
        assert "Traceback" not in ended.err
        assert ended.err.startswith("jobs.jsonl:") or garbage.isspace()
