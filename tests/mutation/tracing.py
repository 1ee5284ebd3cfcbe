"""Find out which statements of the mutated modules each test and each history reaches."""

from __future__ import annotations

import ast
import builtins

from tests.mutation.mutants import MODULES, replace_code, tree_of
from tests.mutation.operators import functions_of

NAME = "__celeriac_reached__"

reached: set[str] = set()
"""The statements that were reached since this set was cleared, each as MODULE:LINE."""


def trace() -> None:
    """Let each statement note that it is reached, in all modules, in this process."""
    setattr(builtins, NAME, reached.add)
    for module in MODULES:
        tree = tree_of(module)
        for _, function in functions_of(tree):
            mark(function, module)
        replace_code(module, ast.fix_missing_locations(tree))


def mark(node: ast.AST, module: str) -> None:
    """Put a note before each statement inside a node."""
    for child in ast.iter_child_nodes(node):
        mark(child, module)
    for block in ("body", "orelse", "finalbody"):
        statements = getattr(node, block, None)
        if isinstance(statements, list):
            setattr(node, block, [each for statement in statements for each in (note(statement, module), statement)])


def note(statement: ast.stmt, module: str) -> ast.stmt:
    call = ast.Call(ast.Name(NAME, ast.Load()), [ast.Constant(f"{module}:{statement.lineno}")], [])
    return ast.copy_location(ast.Expr(call), statement)
