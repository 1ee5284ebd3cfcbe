"""Templates: what a placeholder becomes, which braces stay, which values each job has, and what is refused."""

from __future__ import annotations

import io
import shlex
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celeriac import CeleriacError, make_tasks, read_tasks
from celeriac.errors import InvalidConfig
from celeriac.runs.job_file import BadJobs, Problem, read_arguments, stream_jobs
from celeriac.runs.job_file.arguments import argument_lists, check_lists, combinations, grid_lists
from celeriac.runs.job_file.template import INPUT, JobTemplate, Pattern, UnknownPlaceholder, ValueList
from celeriac.task.task import Task

WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))

UNKNOWN = (
    "{{x}} names no value; there are {}, {{#}}, {{priority}}, {{queue}}, {{slots}}, {{key}}; "
    "for braces that are no placeholder write {{{{x}}}}"
)


def fill(template: str, **values: str) -> str:
    return Pattern(template, is_quoted=True).fill(values)


def made(text: str, template: str, *, format: str = "auto", name: str = "values", key: str | None = None) -> list[Task]:
    made = JobTemplate(command=template, key=key)
    items = list(stream_jobs(io.BytesIO(text.encode()), name, format, {}, made))
    assert [str(item) for item in items if isinstance(item, Problem)] == []
    return [item for item in items if isinstance(item, Task)]


def problems(text: str, template: str, *, name: str = "values.csv", key: str | None = None) -> list[str]:
    items = stream_jobs(io.BytesIO(text.encode()), name, "auto", {}, JobTemplate(command=template, key=key))
    return [str(item) for item in items if isinstance(item, Problem)]


def commands(tasks: list[Task]) -> list[object]:
    return [task.command for task in tasks]


# — one template —


@pytest.mark.parametrize(
    ("template", "command"),
    [
        ("gzip {}", "gzip 'in/a b.tar.gz'"),
        ("{.}|{/}|{//}|{/.}", "'in/a b.tar'|'a b.tar.gz'|in|'a b.tar'"),
        ("{raw:}", "in/a b.tar.gz"),
        ("{raw:/.}", "a b.tar"),
        ("{sample} {sample id} {sample.}", "'x y' 7 'x y'"),
        ("{ sample }", "'x y'"),
        ("${HOME} $(ls) ${sample}", "${HOME} $(ls) ${sample}"),
        ("{a,b} {1..5} awk '{print $1}' {}{}", "{a,b} {1..5} awk '{print $1}' 'in/a b.tar.gz''in/a b.tar.gz'"),
        ("{{sample}} {{}} {{raw:sample}} {{x.}}", "{sample} {} {raw:sample} {x.}"),
        ("awk '{if(x){y;}}' {{a,b}}", "awk '{if(x){y;}}' {{a,b}}"),
        ("{size (GB)}", "3"),
        ("{ends.}", "dot"),
        ("a\nb {}", "a\nb 'in/a b.tar.gz'"),
    ],
)
def test_placeholders_are_filled_and_other_braces_stay(template, command):
    values = {"": "in/a b.tar.gz", "sample": "x y", "sample id": "7", "size (GB)": "3", "ends.": "dot"}
    assert Pattern(template, is_quoted=True).fill(values) == command


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("a/b.txt", ["a/b", "b.txt", "a", "b"]),
        ("b.tar.gz", ["b.tar", "b.tar.gz", ".", "b.tar"]),
        (".bashrc", [".bashrc", ".bashrc", ".", ".bashrc"]),
        ("a.d/b", ["a.d/b", "b", "a.d", "b"]),
        ("a/b/", ["a/b/", "b", "a", "b"]),
        ("/b", ["/b", "b", "/", "b"]),
        ("/", ["/", "", "/", ""]),
        ("", ["", "", ".", ""]),
    ],
)
def test_parts_of_a_path(path, parts):
    assert [Pattern(form, is_quoted=False).fill({INPUT: path}) for form in ("{.}", "{/}", "{//}", "{/.}")] == parts


@given(WORDS)
def test_a_value_is_always_one_word_for_the_shell(value):
    assert shlex.split(fill("echo {x} end", x=value)) == ["echo", value, "end"]
    assert fill("{raw:x}", x=value) == value


def test_a_shell_gets_the_values_as_they_are():
    value = "$(touch no) `touch no` 'a\" \\ *\n;&"
    done = subprocess.run(["sh", "-c", fill("printf %s {x}", x=value)], capture_output=True, text=True, check=True)
    assert done.stdout == value


@pytest.mark.parametrize("template", ["{smple}", "{print}", "{2}", "{}", "{smple.}", "{raw:smple}"])
def test_an_unknown_placeholder_is_refused_with_the_names_that_there_are(template):
    with pytest.raises(UnknownPlaceholder) as raised:
        fill(template, sample="a", lr="b")
    assert str(raised.value) == f"{template} names no value"
    assert (
        raised.value.remedy == f"there are {{sample}}, {{lr}}; for braces that are no placeholder write {{{template}}}"
    )


def test_few_of_many_names_are_shown():
    with pytest.raises(UnknownPlaceholder) as raised:
        Pattern("{x}", is_quoted=True).fill({f"c{number}": "" for number in range(100)})
    assert "{c11} and 88 more;" in raised.value.remedy


# — tables —


def test_columns_are_values_and_fields():
    table = "sample,lr,slots,priority,Retry Delay\na b,0.1,2,,\nc,,,7,2.5\n"
    first, second = made(table, "x {sample} {lr} {slots} {priority} {queue} {#} {key}", name="s.csv")
    assert first.command == "x 'a b' 0.1 2 0 default 1 2"
    assert second.command == "x c '' 1 7 default 2 3"
    assert (first.slots, first.key, second.priority, second.retry_delay) == (2, "2", 7, 2.5)


def test_a_column_named_command_is_a_value():
    (task,) = made("command,priority\nls -l | wc,3\n", "nice sh -c {command}", name="s.csv")
    assert (task.command, task.priority) == ("nice sh -c 'ls -l | wc'", 3)


@pytest.mark.parametrize(
    "table", ["a;b\n1;2\n", "sep=|\na|b\n1|2\n", "\n\na,b\n1,2\n", "a,b\r\n1,2\r\n", '"a","b"\n1,2']
)
def test_the_separator_of_a_table_is_found_by_the_names_of_the_template(table):
    assert commands(made(table, "{a} {b}", name="s.csv")) == ["1 2"]


def test_a_short_row_has_empty_values():
    assert commands(made("a,b\n1\n", "{a} {b}", name="s.csv")) == ["1 ''"]


def test_keys_are_made_by_a_template():
    first, second = made("s,key\na b,x\nc,y\n", "echo {key}", name="s.csv", key="{s}/{#}")
    assert [(task.key, task.command) for task in (first, second)] == [("a b/1", "echo 'a b/1'"), ("c/2", "echo c/2")]


@pytest.mark.parametrize(
    ("table", "template", "key", "expected"),
    [
        ("a,b\n1,2\n", "{c}", None, "values.csv:1: template: {c} names no value; there are {a}, {b}, {#}"),
        ("a,a\n1,2\n", "{a}", None, "values.csv:1: a: it is the name of two columns; keep one of them"),
        ("a,\n1,2\n", "{a}", None, "values.csv:1: column 2 has no name; name it, or remove it"),
        ("a\n1,2\n", "{a}", None, "values.csv:2: the row has 2 cells and the header 1; quote"),
        ("a,slots\n1,x\n", "{a}", None, "values.csv:2: slots: "),
        ("a\n1\n1\n", "{a}", "{a}", 'values.csv:3: key: "1" is already the key of line 2; give each job its own key'),
        ("a\n", "{a}", None, "values.csv: it contains no value; write at least one value"),
        ("a,cmd\n1, \n", "{raw:cmd}", None, "values.csv:2: command: "),
    ],
)
def test_a_bad_table_is_refused(table, template, key, expected):
    found = problems(table, template, key=key)
    assert len(found) == 1
    assert found[0].startswith(expected)


# — lines and JSON —


def test_each_line_is_a_value_also_one_like_a_comment_or_a_table():
    text = "#one\n\n  two words \r\nkey,command\n{\n"
    assert commands(made(text, "echo {}")) == ["echo '#one'", "echo 'two words'", "echo key,command", "echo '{'"]


def test_lines_have_no_columns():
    (problem,) = problems("a\nb\n", "{x}", name="values.txt")
    assert problem == f"values.txt: template: {UNKNOWN.format('{}')}"


@pytest.mark.parametrize("layout", ["{}\n{}\n", "[{},\n{}]"])
def test_members_of_objects_are_values_and_fields(layout):
    text = layout.replace("{}", '{"a": "x y", "b": 2, "c": true, "d": null, "priority": 4}', 1)
    text = text.replace("{}", '{"a": 1.5, "b": "", "c": false, "d": "", "key": "k"}', 1)
    first, second = made(text, "{a} {b} {c} {d} {priority} {key}", name="s.json")
    assert (first.command, first.priority) == ("'x y' 2 true '' 4 1", 4)
    assert (second.command, second.key) == ("1.5 '' false '' 0 k", "k")


def test_scalars_of_json_are_values():
    assert commands(made('["a b", 2, 1.5]', "echo {}", name="s.json")) == ["echo 'a b'", "echo 2", "echo 1.5"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"a": [1]}', "values.jsonl:1: a: a list is not a value of a template; write a text or a number"),
        ('{"b": 1}', "values.jsonl:1: template: {a} names no value; there are {b}, {#}"),
        ('{"a": 1, "a": 2}', "values.jsonl:1: a: it is given twice; keep one of them"),
        ('{"a": 1, "slots": 0}', "values.jsonl:1: slots: "),
        ("true", "values.jsonl:1: true is not a job"),
    ],
)
def test_a_bad_object_is_refused(line, expected):
    (found,) = problems(line, "{a}", name="values.jsonl")
    assert found.startswith(expected)


# — arguments and grids —


def test_lists_are_combined_or_linked():
    lists = argument_lists([":::", "a", "b", ":::+", "1", "2", ":::", "x", "y"])
    rows = [tuple(row.values()) for row in combinations(lists)]
    assert rows == [("a", "1", "x"), ("a", "1", "y"), ("b", "2", "x"), ("b", "2", "y")]
    assert list(next(combinations(lists))) == ["1", "2", "3"]


def test_arguments_and_a_grid_make_jobs():
    lists = (*argument_lists([":::", "a b", "c"]), *grid_lists(["lr=0.1,0.01", "seed=1..2"]))
    tasks = read_arguments(JobTemplate(command="x {} {lr} {seed}", key="{1}-{lr}-{seed}", lists=lists))
    assert len(tasks) == 8
    assert [(task.key, task.command) for task in tasks[:2]] == [
        ("a b-0.1-1", "x 'a b' 0.1 1"),
        ("a b-0.1-2", "x 'a b' 0.1 2"),
    ]


def test_all_arguments_are_several_words():
    lists = tuple(argument_lists([":::", "a/b c", ":::", "d"]))
    (task,) = read_arguments(JobTemplate(command="{} {2} {/}", lists=lists))
    assert task.command == "'a/b c' d d 'b c' d"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1..3", ["1", "2", "3"]),
        ("3..1", ["3", "2", "1"]),
        ("-1..1", ["-1", "0", "1"]),
        ("0..1..0.25", ["0.00", "0.25", "0.50", "0.75", "1.00"]),
        ("10..0..-5", ["10", "5", "0"]),
        ("1..3,7,a..b", ["1", "2", "3", "7", "a..b"]),
        ("x", ["x"]),
        ("a,", ["a", ""]),
    ],
)
def test_the_values_of_a_grid(text, values):
    (one,) = grid_lists([f"n={text}"])
    assert one == ValueList(name="n", values=tuple(values))


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["x"], "'x' is not NAME=VALUES"),
        (["=1"], "'=1' is not NAME=VALUES"),
        (["a b=1"], "'a b=1' is not NAME=VALUES"),
        (["x="], "x has no value"),
        (["x=1", "x=2"], "x is given twice"),
        (["x=1..5..0"], "x: 1..5..0 never ends"),
        (["x=1..5..-1"], "x: 1..5..-1 never ends"),
        (["x=1..99999999999"], "x: 1..99999999999 are more than"),
    ],
)
def test_a_bad_grid_is_refused(words, problem):
    with pytest.raises(InvalidConfig) as raised:
        grid_lists(words)
    assert problem in str(raised.value)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([":::"], ":::: no value follows it"),
        ([":::", "a", ":::"], ":::: no value follows it"),
        ([":::+", "a"], ":::+: there is no list before it"),
        (["::::", "a"], "::::: it is not known"),
        ([":::", "a", "b", ":::+", "1"], ":::+: lists of 2 and 1 values are linked"),
        ([":::", *"abcdefghij"] * 8, ":::: there are 100,000,000 combinations"),
    ],
)
def test_bad_arguments_are_refused(words, problem):
    with pytest.raises(InvalidConfig) as raised:
        check_lists(argument_lists(words))
    assert problem in str(raised.value)


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (JobTemplate(command=" "), "--template: it is empty"),
        (JobTemplate(command="gzip"), "--template: 'gzip' has no placeholder"),
        (JobTemplate(command="gzip {a,b}"), "--template: 'gzip {a,b}' has no placeholder"),
        (JobTemplate(command="gzip {}", key="same"), "--key: 'same' has no placeholder"),
    ],
)
def test_a_template_without_a_placeholder_is_refused(template, problem):
    with pytest.raises(InvalidConfig) as raised:
        list(stream_jobs(io.BytesIO(b"a\n"), "values", "auto", {}, template))
    assert str(raised.value).startswith(problem)


def test_an_unknown_name_of_arguments_is_one_problem():
    lists = tuple(argument_lists([":::", "a", "b"]))
    with pytest.raises(BadJobs) as raised:
        read_arguments(JobTemplate(command="{x}", lists=lists))
    (problem,) = raised.value.problems
    assert str(problem) == f"<arguments>: template: {UNKNOWN.format('{1}')}"


def test_a_nul_in_a_value_is_refused():
    with pytest.raises(BadJobs, match="NUL"):
        read_arguments(JobTemplate(command="{}", lists=(ValueList(values=("a\0b",)),)))


def test_python_makes_tasks_of_values_and_of_a_file(tmp_path):
    made = make_tasks("gzip {}", ["a b", "c"], key="{}", retries=2)
    assert [(task.key, task.command, task.retries) for task in made] == [("a b", "gzip 'a b'", 2), ("c", "gzip c", 2)]
    pairs = [task.command for task in make_tasks("{1}-{2}", ["ab"], [1], grid={"x": range(1)})]
    assert pairs == ["ab-1"]
    linked = [task.command for task in make_tasks("{1}{2}", ["a", "b"], [1, 2], linked=True)]
    assert linked == ["a1", "b2"]
    grid = [task.key for task in make_tasks("{lr} {n}", grid={"lr": [0.1, 0.01], "n": [1, 2]}, key="{lr}-{n}")]
    assert grid == ["0.1-1", "0.1-2", "0.01-1", "0.01-2"]
    (tmp_path / "s.csv").write_text("s,slots\nx y,2\n")
    (read,) = read_tasks(tmp_path / "s.csv", template="wc {s}", key="{s}", queue="gpu")
    assert (read.key, read.command, read.slots, read.queue) == ("x y", "wc 'x y'", 2, "gpu")
    (tmp_path / "jobs.jsonl").write_text('{"key": "a", "command": "true"}\n')
    assert [task.key for task in read_tasks(tmp_path / "jobs.jsonl")] == ["a"]


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: make_tasks("gzip {}"), "template: there are no values"),
        (lambda: make_tasks("gzip {}", "abc"), "template: 'abc' is no list of values; write ['abc']"),
        (lambda: make_tasks("gzip", ["a"]), "'gzip' has no placeholder"),
        (lambda: make_tasks("{x}", ["a"]), "{x} names no value"),
        (lambda: make_tasks("{1}{2}", ["a"], ["b", "c"], linked=True), "lists of 1 and 2 values are linked"),
        (lambda: read_tasks("s.csv", key="{s}"), "key: it needs a template"),
        (lambda: make_tasks("{}", ["a"], timeout=-1), "timeout"),
    ],
)
def test_wrong_values_in_python_are_refused(make, problem):
    with pytest.raises(CeleriacError) as raised:
        make()
    assert problem in str(raised.value)
