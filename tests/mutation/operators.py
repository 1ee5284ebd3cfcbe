"""Make mutants of functions: each has one small change.

Left out by rule: arguments of the logger, messages of errors, f-strings, texts with a space, docstrings, annotations,
assertions, defaults of arguments, and all outside of functions: constants, fields of structs, tables.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any, NamedTuple

OTHER: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
"""What an operator is replaced with."""

NEGATED_BY_OTHER = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
CONDITIONS = ("and_", "or_", "where")
"""Functions of SQLAlchemy that take conditions: each mutant leaves one out."""

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
WRITES = (ast.Attribute, ast.Subscript)


class Mutation(NamedTuple):
    function: str
    """The qualified name of the outermost function."""

    number: int
    """Among those of the function."""

    line: int
    """Where the statement begins."""

    change: str


def functions_of(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield the outermost functions, and the methods of classes, with their qualified names."""
    for node in getattr(tree, "body", []):
        if isinstance(node, FUNCTIONS):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from functions_of(node, f"{prefix}{node.name}.")


def mutations_of(tree: ast.AST) -> list[Mutation]:
    found = []
    for name, function in functions_of(tree):
        if name.rpartition(".")[2] in ("__repr__", "__str__"):
            continue
        mutator = Mutator(None)
        mutator.mutate(function)
        found += [Mutation(name, number, line, change) for number, (line, change) in enumerate(mutator.found)]
    return found


def mutate(tree: ast.AST, mutation: Mutation) -> None:
    """Change a tree in place."""
    function = next(node for name, node in functions_of(tree) if name == mutation.function)
    Mutator(mutation.number).mutate(function)
    ast.fix_missing_locations(tree)


class Mutator(ast.NodeTransformer):
    """Lists the changes of a function, or makes one of them."""

    def __init__(self, chosen: int | None) -> None:
        self.found: list[tuple[int, str]] = []
        self._chosen, self._line = chosen, 0

    def mutate(self, function: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        function.body = [self.visit(statement) for statement in function.body]

    def visit(self, node: ast.AST) -> Any:
        line = self._line
        if isinstance(node, ast.stmt):
            self._line = node.lineno
        for new in changes_of(node):
            if len(self.found) == self._chosen:
                self.found.append((self._line, ""))
                return ast.copy_location(new, node)
            self.found.append((self._line, f"{words(node)} → {words(new)}"))
        if not is_text(node):
            self._visit_children(node)
        self._line = line
        return node

    def _visit_children(self, node: ast.AST) -> None:
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "args", "returns", "decorator_list") and not isinstance(node, ast.Call):
                continue
            if isinstance(value, list):
                value[:] = [self.visit(part) if isinstance(part, ast.AST) else part for part in value]
            elif isinstance(value, ast.AST):
                setattr(node, name, self.visit(value))


def words(node: ast.AST) -> str:
    text = " ".join(ast.unparse(ast.fix_missing_locations(node)).split())
    return text if len(text) <= 90 else text[:87] + "…"


def is_text(node: ast.AST) -> bool:
    """Return whether all inside is left out."""
    match node:
        case ast.JoinedStr() | ast.Raise() | ast.Assert() | ast.pattern():
            return True
        case ast.Expr(value=ast.Constant()):
            return True
        case ast.Call(func=ast.Attribute(value=ast.Name(id="logger"))):
            return True
    return False


def changes_of(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what may stand in the place of a node."""
    match node:
        case ast.Compare(left, [op], comparators):
            yield ast.Compare(left, [other(op)], comparators)
        case ast.BoolOp(op, values):
            yield ast.BoolOp(other(op), values)
            for left_out in range(len(values)):
                rest = [value for number, value in enumerate(values) if number != left_out]
                yield ast.BoolOp(op, rest) if len(rest) > 1 else rest[0]
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield operand
        case ast.BinOp(left, op, right) if type(op) in OTHER:
            yield ast.BinOp(left, other(op), right)
        case ast.AugAssign(target, op, value) if type(op) in OTHER:
            yield ast.AugAssign(target, other(op), value)
            yield ast.Pass()
        case ast.Constant(value):
            yield from constants(value)
        case ast.If(test, body, orelse) if is_negatable(test):
            yield ast.If(negated(test), body, orelse)
        case ast.IfExp(test, body, orelse) if is_negatable(test):
            yield ast.IfExp(negated(test), body, orelse)
        case ast.comprehension(target, iter, [_, *rest], is_async):
            yield ast.comprehension(target, iter, rest, is_async)
        case ast.Return(value) if value is not None and not isinstance(value, ast.Constant):
            yield ast.Return(ast.Constant(None))
        case ast.Raise() | ast.Delete() | ast.Continue() | ast.Break():
            yield ast.Pass()
        case ast.Assign([target], _) if isinstance(target, WRITES):
            yield ast.Pass()
        case ast.Expr(ast.Call() | ast.Await()) if not is_text(node.value):
            yield ast.Pass()
        case ast.Call(ast.Name(name) | ast.Attribute(attr=name), args, keywords) if name in (*CONDITIONS, "values"):
            yield from shorter_calls(node, name, args, keywords)


def shorter_calls(node: ast.Call, name: str, args: list[ast.expr], keywords: list[ast.keyword]) -> Iterator[ast.AST]:
    for left_out in range(len(args)) if name in CONDITIONS and len(args) > 1 else ():
        yield ast.Call(node.func, args[:left_out] + args[left_out + 1 :], keywords)
    for left_out in range(len(keywords)) if name == "values" else ():
        yield ast.Call(node.func, args, keywords[:left_out] + keywords[left_out + 1 :])


def constants(value: object) -> Iterator[ast.Constant]:
    match value:
        case bool():
            yield ast.Constant(not value)
        case int() | float():
            yield ast.Constant(value + 1)
        case str() if value and " " not in value:
            yield ast.Constant(f"XX{value}XX")


def other(op: ast.AST) -> Any:
    return OTHER[type(op)]()


def is_negatable(test: ast.expr) -> bool:
    """Return whether no other change negates the whole condition."""
    match test:
        case ast.UnaryOp(ast.Not()) | ast.Constant():
            return False
        case ast.Compare(_, [op]):
            return not isinstance(op, NEGATED_BY_OTHER)
    return True


def negated(test: ast.expr) -> ast.expr:
    return ast.UnaryOp(ast.Not(), test)
