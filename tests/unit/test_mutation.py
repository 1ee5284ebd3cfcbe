"""The mutants that the tests of the executor and of the claims are tried with."""

from __future__ import annotations

import ast

import pytest

from celeriac.backend.claims import redis
from tests.mutation import mutants, operators, scripts


def changed(source: str) -> list[str]:
    """Return each mutant of the body of a function."""
    text = f"def function(a, b):\n    {source}"
    found = []
    for mutation in operators.mutations_of(ast.parse(text)):
        tree = ast.parse(text)
        operators.mutate(tree, mutation)
        found.append(ast.unparse(tree).partition("\n    ")[2])
    return found


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("return a < b", ["return None", "return a <= b"]),
        ("a.x = a and b", ["pass", "a.x = a or b", "a.x = b", "a.x = a"]),
        ("a += 1", ["a -= 1", "pass", "a += 2"]),
        ("a(not b)", ["pass", "a(b)"]),
        ("return {x for x in a if x}", ["return None", "return {x for x in a}"]),
        ("return where(a, b)", ["return None", "return where(b)", "return where(a)"]),
        ("a = 'word', 'two words', f'{b + 1}'", ["a = ('XXwordXX', 'two words', f'{b + 1}')"]),
        ("logger.info('x', a + b)", []),
        ("raise a('x')", ["pass"]),
    ],
)
def test_each_mutant_has_one_change(source, expected):
    assert changed(source) == expected


def test_a_condition_is_negated_once():
    assert changed("if a: b()") == ["if not a:\n        b()", "if a:\n        pass"]
    assert changed("if a is b: b()") == ["if a is not b:\n        b()", "if a is b:\n        pass"]


def test_each_mutant_of_a_script_differs_from_it(monkeypatch):
    found = scripts.mutations()
    assert len(found) > 100
    for mutation in found:
        with monkeypatch.context() as context:
            for name in scripts.NAMES:
                context.setattr(redis, name, getattr(redis, name))
            before = [getattr(redis, name) for name in scripts.NAMES]
            scripts.apply(mutation)
            assert [getattr(redis, name) for name in scripts.NAMES] != before


def test_a_sample_has_mutants_of_each_module_and_is_the_same_each_time():
    every = mutants.all_mutants()
    sample = mutants.sample(every, 400, seed=1)
    assert sample == mutants.sample(every, 400, seed=1)
    assert len(set(sample)) == len(sample)
    assert {mutant.module for mutant in sample} > {mutants.LUA, "backend/claims/memory", "executor/slots"}
