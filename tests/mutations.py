"""The small mistakes that can be made in a module: one operator or constant is another one."""

from __future__ import annotations

import ast
import difflib
import io
import itertools
import random
import tokenize
from typing import NamedTuple

SWAPS = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "is": "is not", "is not": "is", "in": "not in",
    "not in": "in", "and": "or", "or": "and", "+": "-", "-": "+", "*": "/", "/": "*", "//": "/", "%": "*", "**": "*",
    "|": "&", "&": "|", "^": "&", "<<": ">>", ">>": "<<", "+=": "-=", "-=": "+=", "*=": "/=", "/=": "*=", "|=": "&=",
    "True": "False", "False": "True",
}  # fmt: skip
LOGS = {"critical", "debug", "error", "exception", "info", "log", "warn", "warning"}
DECLARATIONS = {"frozen", "gc", "kw_only", "slots", "strict"}
"""Keywords that guard against mistakes of programmers, which a correct program cannot show."""


class Mutant(NamedTuple):
    """One change of one file; places are offsets of characters."""

    path: str
    line: int
    lines: range
    start: int
    end: int
    new: str

    def apply(self, source: str) -> str:
        return source[: self.start] + self.new + source[self.end :]

    def diff(self, source: str) -> str:
        old, new = source.splitlines(), self.apply(source).splitlines()
        changed = [line for line in difflib.unified_diff(old, new, n=0, lineterm="") if line[:3] not in ("---", "+++")]
        return "\n".join(line for line in changed if not line.startswith("@@"))


def find_mutants(path: str, source: str, drawn: random.Random) -> list[Mutant]:
    """Returns all mutants of a module; `drawn` chooses where there are several at one place."""
    return _Finder(path, source, drawn).found


class _Finder(ast.NodeVisitor):
    """Visits a module, and collects its mutants."""

    def __init__(self, path: str, source: str, drawn: random.Random) -> None:
        self._path, self._drawn, self.source = path, drawn, source
        self._starts = [0]
        for line in self.source.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        tokens = tokenize.generate_tokens(io.StringIO(self.source).readline)
        self._tokens = [(self._starts[t.start[0] - 1] + t.start[1], t.string) for t in tokens]
        self._statement: ast.stmt | None = None
        self.found: list[Mutant] = []
        self.visit(ast.parse(self.source))

    def visit(self, node: ast.AST) -> None:
        if self._is_excluded(node):
            return
        outer = self._statement
        if isinstance(node, ast.stmt):
            self._statement = node
        self._change(node)
        for name, value in ast.iter_fields(node):
            if name not in ("annotation", "returns", "decorator_list"):
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.AST):
                        self.visit(child)
        self._statement = outer

    @staticmethod
    def _is_excluded(node: ast.AST) -> bool:
        """Error text, log messages, checks for mypy, type aliases and declarations."""
        match node:
            case ast.Raise() | ast.Assert() | ast.If(test=ast.Name("TYPE_CHECKING")):
                return True
            case ast.Call(func=ast.Attribute(value=ast.Name(id), attr=attr)):
                return attr in LOGS and id.lower().endswith(("log", "logger", "logging", "warnings"))
            case ast.Assign(value=ast.BinOp(op=ast.BitOr()) | ast.Subscript(value=ast.Name())):
                return isinstance(node.targets[0], ast.Name) and node.targets[0].id[0].isupper()
            case ast.keyword(arg=arg):
                return arg in DECLARATIONS
        return False

    def _change(self, node: ast.AST) -> None:
        match node:
            case ast.Compare(left=left, comparators=comparators):
                for before, after in itertools.pairwise([left, *comparators]):
                    self._swap(before, after)
            case ast.BoolOp(values=values):
                for before, after in itertools.pairwise(values):
                    self._swap(before, after)
            case ast.BinOp(left=left, right=right):
                self._swap(left, right)
            case ast.AugAssign(target=target, value=value):
                self._swap(target, value)
            case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
                self._add(node, self._at(node.lineno, node.col_offset), self._start(operand), "")
            case ast.Constant(value=bool(value)):
                self._add(node, self._start(node), self._end(node), str(not value))
            case ast.Constant(value=int(value) | float(value)):
                self._add(node, self._start(node), self._end(node), repr(value + self._drawn.choice([-1, 1])))
            case ast.Return(value=ast.expr() as value) if not _is_none(value):
                self._add(node, self._start(value), self._end(value), "None")
            case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
                if isinstance(test, ast.Name | ast.Call | ast.Attribute):
                    self._add(test, self._start(test), self._start(test), "not ")

    def _swap(self, before: ast.expr, after: ast.expr) -> None:
        """Replaces the operator between two expressions."""
        start, end = self._end(before), self._start(after)
        between = [(place, text) for place, text in self._tokens if start <= place < end and text.strip("()\\\n ")]
        operator = [(place, text) for place, text in between if not text.startswith("#")]
        words = " ".join(text for _, text in operator)
        if words in SWAPS:
            place, last = operator[0][0], operator[-1]
            self._add(before, place, last[0] + len(last[1]), SWAPS[words])

    def _add(self, node: ast.expr | ast.stmt, start: int, end: int, new: str) -> None:
        statement = self._statement or node
        lines = range(min(statement.lineno, node.lineno), (node.end_lineno or node.lineno) + 1)
        mutant = Mutant(self._path, self.source.count("\n", 0, start) + 1, lines, start, end, new)
        try:
            compile(mutant.apply(self.source), self._path, "exec")
        except SyntaxError:
            return
        self.found.append(mutant)

    def _at(self, line: int, column: int) -> int:
        start = self._starts[line - 1]
        text = self.source[start : self._starts[line]]
        return start + len(text.encode()[:column].decode())  # ast counts bytes

    def _start(self, node: ast.expr) -> int:
        return self._at(node.lineno, node.col_offset)

    def _end(self, node: ast.expr) -> int:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._at(node.end_lineno, node.end_col_offset)


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
