"""The small faults that can be planted in a source file: one changed expression or statement each."""

from __future__ import annotations

import ast
import difflib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

BINARY = {
    ast.Add: ast.Sub(),
    ast.Sub: ast.Add(),
    ast.Mult: ast.Div(),
    ast.Div: ast.Mult(),
    ast.FloorDiv: ast.Mult(),
    ast.Mod: ast.Mult(),
    ast.Pow: ast.Mult(),
    ast.BitAnd: ast.BitOr(),
    ast.BitOr: ast.BitAnd(),
    ast.MatMult: ast.Mult(),
}
COMPARE = {
    ast.Lt: ast.LtE(),
    ast.LtE: ast.Lt(),
    ast.Gt: ast.GtE(),
    ast.GtE: ast.Gt(),
    ast.Eq: ast.NotEq(),
    ast.NotEq: ast.Eq(),
    ast.Is: ast.IsNot(),
    ast.IsNot: ast.Is(),
    ast.In: ast.NotIn(),
    ast.NotIn: ast.In(),
}
CALLS = {"min": "max", "max": "min", "any": "all", "all": "any", "sum": "mean", "mean": "sum", "ceil": "floor"}
CALLS |= {"argmax": "argmin", "argsort": "sort", "sqrt": "abs", "square": "abs", "cumsum": "sort"}
WRAPPERS = ("detach", "abs", "sqrt", "square", "clamp", "float", "double", "sort", "sorted", "rint", "exp", "log")


@dataclass(frozen=True)
class Mutant:
    """One changed expression or statement of a file; lines count from 1, columns are bytes from 0."""

    file: str
    line: int
    old: str
    new: str
    start: int  # place in the file's bytes
    stop: int

    def applied(self, source: bytes) -> bytes:
        """The whole file with the change."""
        return source[: self.start] + self.new.encode() + source[self.stop :]

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {' '.join(self.old.split())}  ->  {self.new}"


def mutants(file: str, source: bytes) -> Iterator[Mutant]:
    """Every mutant of a file, in order."""
    lines = source.splitlines(keepends=True)
    starts = [sum(map(len, lines[:i])) for i in range(len(lines))]
    for node in code_nodes(ast.parse(source)):
        for new in changes(node):
            start = starts[node.lineno - 1] + node.col_offset
            stop = starts[node.end_lineno - 1] + node.end_col_offset
            old = source[start:stop].decode()
            text = new if isinstance(new, str) else f"({ast.unparse(new)})" if isinstance(new, ast.expr) else "pass"
            if text.strip("()") != old:
                yield Mutant(file, node.lineno, old, text, start, stop)


def code_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that do something: no annotations, docstrings, imports, messages of exceptions, or parts of f-strings."""
    for name, value in ast.iter_fields(tree):
        if isinstance(tree, ast.keyword) and tree.arg == "strict":
            continue
        if name in ("annotation", "returns", "ctx", "bases", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            skipped = ast.Import | ast.ImportFrom | ast.JoinedStr | ast.Raise | ast.Assert
            if not isinstance(child, ast.AST) or isinstance(child, skipped):
                continue
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                continue
            if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
                continue
            yield child
            yield from code_nodes(child)


def changes(node: ast.AST) -> Iterator[ast.AST | str]:
    """The replacements of a node."""
    if isinstance(node, ast.BinOp) and type(node.op) in BINARY:
        yield ast.BinOp(node.left, BINARY[type(node.op)], node.right)
        yield from (node.left, node.right)
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield ast.Compare(node.left, [COMPARE[type(node.ops[0])]], node.comparators)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.And() if isinstance(node.op, ast.Or) else ast.Or(), node.values)
        yield from node.values
    elif isinstance(node, ast.UnaryOp) and not isinstance(node.op, ast.UAdd):
        yield node.operand
    elif isinstance(node, ast.IfExp):
        yield from (node.body, node.orelse)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        yield repr(not node.value) if isinstance(node.value, bool) else repr(node.value + 1)
    elif isinstance(node, ast.Call):
        yield from changed_calls(node)
    elif isinstance(node, ast.AugAssign | ast.Continue | ast.Break) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        yield ast.Pass()
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice):
        yield node.value


def changed_calls(node: ast.Call) -> Iterator[ast.AST]:
    """A call of another function, without its keyword arguments one at a time, or what it is called on."""
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if isinstance(node.func, ast.Attribute):
        if name in CALLS:
            yield ast.Call(ast.Attribute(node.func.value, CALLS[name], ast.Load()), node.args, node.keywords)
        if name in WRAPPERS and not (isinstance(node.func.value, ast.Name) and node.func.value.id in ("np", "math")):
            yield node.func.value
    elif name in CALLS and CALLS[name] not in ("mean", "sort"):
        yield ast.Call(ast.Name(CALLS[name], ast.Load()), node.args, node.keywords)
    if name in WRAPPERS and len(node.args) == 1:
        yield node.args[0]
    for i, keyword in enumerate(node.keywords):
        if keyword.arg not in (None, "description", "dtype", "device", "strict"):
            yield ast.Call(node.func, node.args, node.keywords[:i] + node.keywords[i + 1 :])


def drawn(root: Path, files: Sequence[str], count: int, seed: int) -> list[Mutant]:
    """`count` mutants of the files (paths relative to `root`, or PATH:LINE for one line), in order; 0: all mutants."""
    every = [
        mutant
        for file, _, line in (name.partition(":") for name in files)
        for mutant in mutants(file, (root / file).read_bytes())
        if not line or mutant.line == int(line)
    ]
    if not count or count >= len(every):
        return every
    chosen = random.Random(seed).sample(range(len(every)), count)
    return [every[i] for i in sorted(chosen)]


def difference(root: Path, mutant: Mutant) -> str:
    """The change as a patch."""
    source = (root / mutant.file).read_bytes()
    old, new = (text.decode().splitlines(keepends=True) for text in (source, mutant.applied(source)))
    return "".join(difflib.unified_diff(old, new, f"a/{mutant.file}", f"b/{mutant.file}", n=1))
