"""Choose what is mutated, and make a mutant in this process."""

from __future__ import annotations

import ast
import gc
import importlib
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType
from typing import NamedTuple

import celeriac
from tests.mutation import operators, scripts
from tests.mutation.operators import Mutation

SOURCE = Path(celeriac.__file__).parent
CLAIMS = ("claim", "database", "failure_detector", "lease_monitor", "memory", "redis")
MODULES = (
    *(f"executor/{path.stem}" for path in sorted((SOURCE / "executor").glob("*.py"))),
    *(f"backend/claims/{name}" for name in CLAIMS),
)
LUA = "backend/claims/redis: Lua"
UNCHANGED = "unchanged"
functions: dict[str, list[FunctionType]] = {}
"""Those of this process, by file."""


class Mutant(NamedTuple):
    module: str
    mutation: Mutation
    """For a script: `function` is the name of its constant, and the line is 0."""

    @property
    def name(self) -> str:
        return f"{self.module} {self.mutation.function} #{self.mutation.number}"

    @property
    def place(self) -> str:
        """The statement, as `tracing` names it."""
        return f"{self.module}:{self.mutation.line}"


def path_of(module: str) -> Path:
    return SOURCE / f"{module}.py"


@cache
def source_of(module: str) -> str:
    """Read the source once: a run takes long, and files may change meanwhile."""
    return path_of(module).read_text()


def tree_of(module: str) -> ast.Module:
    return ast.parse(source_of(module))


def all_mutants() -> list[Mutant]:
    found = [Mutant(module, mutation) for module in MODULES for mutation in operators.mutations_of(tree_of(module))]
    return found + [Mutant(LUA, Mutation(name, number, 0, change)) for name, number, change in scripts.mutations()]


def sample(mutants: list[Mutant], size: int, seed: int) -> list[Mutant]:
    """Return some mutants, from each module its share. With a size of 0, return all. Their order is random."""
    chance = random.Random(seed)
    by_module: dict[str, list[Mutant]] = {}
    for mutant in mutants:
        by_module.setdefault(mutant.module, []).append(mutant)
    chosen = []
    for of_module in by_module.values():
        share = round(len(of_module) * min(1.0, size / len(mutants))) if size else len(of_module)
        chosen += chance.sample(of_module, share)
    return chance.sample(chosen, len(chosen))


def make(mutant: Mutant) -> None:
    """Make a mutant in this process, which has imported its module."""
    if mutant.module == LUA:
        scripts.apply((mutant.mutation.function, mutant.mutation.number, mutant.mutation.change))
        return
    tree = tree_of(mutant.module)
    operators.mutate(tree, mutant.mutation)
    replace_code(mutant.module, tree, mutant.mutation.function)


def replace_code(module: str, tree: ast.Module, only: str | None = None) -> None:
    """Give the functions of a module the code of a changed tree: all of them, or one."""
    path = str(path_of(module))
    new = {code.co_qualname: code for code in codes_in(compile(tree, path, "exec", dont_inherit=True), classes(module))}
    for function in functions.get(path, []):
        name = function.__code__.co_qualname
        if name in new and only in (None, name) and new[name].co_firstlineno == function.__code__.co_firstlineno:
            function.__code__ = new[name]


def codes_in(code: CodeType, classes: frozenset[str]) -> Iterator[CodeType]:
    """Yield the code of the outermost functions."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_qualname in classes:
                yield from codes_in(constant, classes)
            else:
                yield constant


@cache
def classes(module: str) -> frozenset[str]:
    imported = importlib.import_module("celeriac." + module.replace("/", "."))
    return frozenset(value.__qualname__ for value in vars(imported).values() if isinstance(value, type))


def find_functions() -> None:
    """Import the modules and find all their functions, before `gc.freeze` hides these."""
    for module in MODULES:
        classes(module)
    for function in gc.get_objects():
        if isinstance(function, FunctionType):
            functions.setdefault(function.__code__.co_filename, []).append(function)
