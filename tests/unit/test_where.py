"""The conditions of `--where`: what is written is what is parsed, and it holds as a model says."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celeriac.errors import InvalidConfig
from celeriac.ledger.where.condition import parse_condition
from celeriac.ledger.where.fields import ALIASES, FIELDS, seconds_taken
from celeriac.ledger.where.parser import TEXT_OPERATORS, parse_where
from celeriac.ledger.where.quantities import parse_duration, parse_number
from celeriac.ledger.where.tree import All, Comparison, Either, Node, Not, Operator, holds
from celeriac.task.size import parse_size

TEXTS = st.text(st.characters(exclude_characters="'\"", codec="utf-8"), max_size=6) | st.sampled_from(
    ["a", "A b", "and", "x=1", "(", ""]
)
TEXT_FIELDS, NUMBER_FIELDS = ("key", "queue", "tag", "host"), ("attempt", "priority", "exit_code", "lost")
NUMBERS = st.integers(-3, 3)
COMPARISONS = st.builds(Comparison, st.sampled_from(TEXT_FIELDS), st.sampled_from(TEXT_OPERATORS), TEXTS) | st.builds(
    Comparison,
    st.sampled_from(NUMBER_FIELDS),
    st.sampled_from([operator for operator in Operator if operator not in TEXT_OPERATORS[2:]]),
    NUMBERS,
)
NODES: st.SearchStrategy[Node] = st.recursive(
    COMPARISONS,
    lambda inner: (
        inner.map(Not)
        | st.lists(inner, min_size=2, max_size=3).map(lambda parts: All(tuple(parts)))
        | st.lists(inner, min_size=2, max_size=3).map(lambda parts: Either(tuple(parts)))
    ),
    max_leaves=8,
)
VALUES = st.fixed_dictionaries(
    {
        **{name: st.none() | TEXTS for name in ("key", "queue", "host")},
        "tag": st.lists(TEXTS, max_size=3).map(tuple),
        **{name: st.none() | NUMBERS for name in NUMBER_FIELDS},
    }
)


def written(node: Node) -> str:
    """Return a condition as a person might write it, with parentheses around each part that may need them."""
    match node:
        case Comparison():
            value = f"'{node.value}'" if isinstance(node.value, str) else str(node.value)
            return f"{node.field} {node.operator}{value}"
        case Not():
            return f"NOT ({written(node.part)})"
        case All():
            return " and ".join(f"({written(part)})" for part in node.parts)
        case Either():
            return "\tOr ".join(f"({written(part)})" for part in node.parts)


def model(node: Node, values: dict[str, Any]) -> bool:
    """Return what the documentation says: a missing value meets no comparison but != and !~."""
    if isinstance(node, Not):
        return not model(node.part, values)
    if isinstance(node, All | Either):
        held = [model(part, values) for part in node.parts]
        return all(held) if isinstance(node, All) else any(held)
    value, wanted = values[node.field], node.value
    present: list[Any] = [] if value is None else list(value) if isinstance(value, tuple) else [value]
    tests = {
        "=": any(each == wanted for each in present),
        "!=": all(each != wanted for each in present),
        "~": any(str(wanted).casefold() in str(each).casefold() for each in present),
        "!~": all(str(wanted).casefold() not in str(each).casefold() for each in present),
    }
    if node.operator in tests:
        return tests[node.operator]
    return any(
        {"<": each < wanted, "<=": each <= wanted, ">": each > wanted, ">=": each >= wanted}[node.operator]
        for each in present
    )


@settings(deadline=None)
@given(NODES)
def test_what_is_written_is_what_is_parsed(node: Node) -> None:
    assert parse_where(written(node), FIELDS, ALIASES, "--where") == node


@settings(deadline=None)
@given(NODES, VALUES)
def test_a_condition_holds_as_the_model_says(node: Node, values: dict[str, Any]) -> None:
    assert holds(node, values.__getitem__) == model(node, values)


@settings(deadline=None)
@given(
    st.text(max_size=30) | st.lists(st.sampled_from(["a", "(", ")", "'", "key", "=", "not", "and", " "])).map("".join)
)
def test_any_other_text_is_one_clear_line(text: str) -> None:
    error = error_of(text)
    assert error is None or error.startswith("--where: at ")
    assert error is None or error.isprintable() or not text.isprintable()


def error_of(text: str) -> str | None:
    try:
        parse_condition(text)
    except InvalidConfig as error:
        return str(error)
    return None


def test_and_binds_more_than_or_and_not_more_than_both():
    def named(name: str) -> Comparison:
        return Comparison("key", Operator.EQUAL, name)

    parsed = parse_condition("key=a or not key=b and key=c").node
    assert parsed == Either((named("a"), All((Not(named("b")), named("c")))))


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("queue=gpu and took>60", "QUEUE == 'gpu' AND duration > 1m"),
        ("exit=1", "exit_code=1"),
        ("worker~n1", "host ~ n1"),
        ("tag=lr=0.1", "tags='lr=0.1'"),
        ("memory>=2G", "memory >= 2048MiB"),
        ("took<1h30m", "took<5400"),
    ],
)
def test_two_ways_to_say_the_same(text, same):
    assert parse_condition(text) == parse_condition(same)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "at the end: a field is missing; the fields are key, command, queue, "),
        ("queu=1", "at character 1, 'queu': it is not a field; did you mean queue? the fields are key, "),
        ("took", "at the end: an operator after took is missing; "),
        ("took>", "at the end: a value after took> is missing; "),
        ("took>x", "at character 6, 'x': it is not a duration; write for example 60, 90s, 5m or 1h30m"),
        ("state=done", "at character 7, 'done': it is not a state; write waiting, publishing, queued, running, "),
        ("queue<3", "at character 6, '<': it cannot compare queue; write queue = or != or ~ or !~ and a value"),
        ("took=!3", "at character 5, '=!': it is not an operator; "),
        ("(lost=1", "at character 1, '(': the parenthesis is never closed; add a )"),
        ("lost=1)", "at character 7, ')': no parenthesis is open; "),
        ("key='a", "at character 5, \"'a\": the quote is never closed; add a '"),
        ("key=a key=b", 'at character 7, \'key\': it is neither "and" nor "or"; join two comparisons with and, or'),
        ("(" * 200, "at character 101, '(': it is nested too deeply; "),
        ("x" * 9000, "it is longer than 4,000 characters; write a shorter one"),
    ],
)
def test_an_error_names_its_place(text, line):
    with pytest.raises(InvalidConfig) as caught:
        parse_condition(text)
    assert str(caught.value).startswith(f"--where: {line}")


def test_numbers_durations_and_sizes():
    assert [parse_number(text) for text in ("3", "-1", "x", "1.5", "")] == [3, -1, None, None, None]
    durations = ["60", "1.5", "90s", "250ms", "5m", "1h30m", "2d", "h", "5 m", "-1", "1h30"]
    assert [parse_duration(text) for text in durations] == [
        60, 1.5, 90, 0.25, 300, 5400, 172800, None, None, None, None,
    ]  # fmt: skip
    sizes = ["100", "1k", "2M", "1.5GiB", "1TB", "7b", "x", "G"]
    assert [parse_size(text) for text in sizes] == [
        100, 2**10, 2**21, 1.5 * 2**30, 2**40, 7, None, None,
    ]  # fmt: skip


def test_a_running_task_has_taken_the_time_until_now():
    assert seconds_taken("running", 5.0, None, 12.0) == 7
    assert seconds_taken("running", 5.0, None, None) is None
    assert seconds_taken("success", 5.0, 3.0, 12.0) == 3
    assert seconds_taken("waiting", None, None, 12.0) is None
