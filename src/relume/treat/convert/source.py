"""Where in a model's code an activation is called: from a running frame to the method and the node of its syntax tree.

Python 3.11 and later say for each instruction from where to where in the source its expression goes, which tells two
calls in one line apart.
"""

from __future__ import annotations

import ast
import functools
import linecache
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FrameType, FunctionType
from typing import Any

from torch import nn

# Line and column where an expression begins and where it ends; lines count from the method's first.
Position = tuple[int, int, int, int]
# By the file name of a rewritten method: positions in its text, and those in the text it was made from.
ORIGINS: dict[str, dict[Position, Position]] = {}

Definition = ast.FunctionDef | ast.AsyncFunctionDef


class CantRewriteError(Exception):
    """Why a call can't be rewritten, in words that go into the Conversion."""


@dataclass(frozen=True)
class Method:
    """A method as its class has it.

    Attributes:
        name: of the attribute of the class.
        held: what the class holds there: the function, or a decorator's wrapper around it.
        function: in whose code the activation is called.
    """

    name: str
    held: Any
    function: FunctionType


def position_in(frame: FrameType) -> Position:
    """From where to where the expression that a frame is now evaluating goes, in lines of its file."""
    if sys.version_info < (3, 11):
        raise CantRewriteError("calls of functions are told apart from Python 3.11 on only")
    found = list(frame.f_code.co_positions())[frame.f_lasti // 2]
    if None in found:
        raise CantRewriteError("Python was told to keep no positions of code (PYTHONNODEBUGRANGES)")
    first, last, start, end = found
    return (first, start, last, end)  # type: ignore[return-value]


def within(code: CodeType, inner: CodeType) -> bool:
    """Is it the same code, or that of a function written inside?"""
    return code is inner or any(isinstance(c, CodeType) and within(c, inner) for c in code.co_consts)


def method_of(owner: nn.Module, code: CodeType) -> Method:
    """The method of a module in whose body some code stands.

    Raises:
        CantRewriteError: it is no method of the module's class, or not the one by which the class is called.
    """
    mro = [c for c in type(owner).__mro__ if c is not nn.Module]
    for cls in mro:
        for name, held in vars(cls).items():
            function = next((f for f in _functions(held) if within(f.__code__, code)), None)
            if function is None:
                continue
            if name in owner.__dict__:
                raise CantRewriteError(f"'{name}' was put on the module itself, over its class's (by accelerate, say)")
            if next(c for c in mro if name in vars(c)) is not cls:
                raise CantRewriteError(f"{cls.__name__}.{name} is called through super()")
            return Method(name, held, function)
    raise CantRewriteError(
        f"it is called in {code.co_name}() ({_short(code.co_filename)}:{code.co_firstlineno}), outside the methods of "
        f"{type(owner).__name__}; make it a module, or a method"
    )


def definition_of(function: FunctionType) -> Definition:
    """The syntax tree of a function, out of its file.

    Raises:
        CantRewriteError: there is no source, or it is not what runs.
    """
    code = function.__code__
    where = f"{_short(code.co_filename)}:{code.co_firstlineno}"
    for node in ast.walk(_tree(code.co_filename, function.__globals__)):
        if isinstance(node, Definition) and node.name == code.co_name and _first_line(node) == code.co_firstlineno:
            return node
    raise CantRewriteError(f"no method {code.co_name}() stands at {where}")


def check_runs(function: FunctionType, definition: Definition) -> None:
    """Raise CantRewriteError unless what stands on disk is what runs."""
    was = function.__code__
    if was.co_filename in ORIGINS or any(isinstance(n, ast.Assert) for n in ast.walk(definition)):
        return  # pytest compiles its own assertions
    source = "".join(linecache.getlines(was.co_filename, function.__globals__))
    for now in _codes(_compiled(source, was.co_filename)):
        if (now.co_name, now.co_firstlineno) == (was.co_name, was.co_firstlineno):
            if (now.co_code, now.co_names, _constants(now)) == (was.co_code, was.co_names, _constants(was)):
                return
            break
    raise CantRewriteError("the source on disk is not what runs: it has been changed since it was imported")


def origin(code: CodeType, position: Position, definition: Definition) -> Position:
    """A position in a file as one in the definition that it stands in, as that was before any rewriting."""
    first, start, last, end = position
    relative = (first - definition.lineno, start, last - definition.lineno, end)
    if code.co_filename in ORIGINS:
        try:
            return ORIGINS[code.co_filename][relative]
        except KeyError:
            raise CantRewriteError("it stands in code that an earlier conversion wrote") from None
    return relative


def position_of(node: Any, definition: Definition) -> Position:
    """Where a node stands, in lines of the definition."""
    return (node.lineno - definition.lineno, node.col_offset, node.end_lineno - definition.lineno, node.end_col_offset)


def node_at(definition: ast.AST, position: Position, first_line: int) -> ast.AST:
    """The call, operation or assignment that goes from here to there."""
    first, start, last, end = position
    wanted = (first + first_line, start, last + first_line, end)
    for node in ast.walk(definition):
        if isinstance(node, ast.Call | ast.BinOp | ast.AugAssign | ast.Subscript) and wanted == (
            node.lineno, node.col_offset, node.end_lineno, node.end_col_offset,
        ):  # fmt: skip
            return node
    raise CantRewriteError("the source on disk is not what runs: it has been changed since it was imported")


def only_passes_on(code: CodeType, names: dict[str, Any], position: Position, argument: int) -> int | None:
    """Is a helper no more than `return activation(x)`? Then which of its parameters x is, else None."""
    for node in ast.walk(_tree(code.co_filename, names)):
        body: ast.expr | None = None
        if isinstance(node, ast.Lambda) and code.co_name == "<lambda>":
            body = node.body
        elif isinstance(node, ast.FunctionDef) and node.name == code.co_name:
            rest = [s for s in node.body if not _is_docstring(s)]
            if len(rest) == 1 and isinstance(rest[0], ast.Return):
                body = rest[0].value
        if body is None or (body.lineno, body.col_offset, body.end_lineno, body.end_col_offset) != position:
            continue
        assert isinstance(node, ast.Lambda | ast.FunctionDef)
        parameters = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
        operands: list[ast.expr] = []
        if isinstance(body, ast.BinOp):
            operands = [body.left, body.right]
        elif isinstance(body, ast.Call):
            method = isinstance(body.func, ast.Attribute) and getattr(body.func.value, "id", None) in parameters
            operands = [body.func.value] if method and isinstance(body.func, ast.Attribute) else []
            operands += body.args or [k.value for k in body.keywords]
        x = operands[argument] if argument < len(operands) else None
        return parameters.index(x.id) if isinstance(x, ast.Name) and x.id in parameters else None
    return None


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _functions(held: Any, depth: int = 0) -> Iterator[FunctionType]:
    """A function, and what its decorators have wrapped, however deep."""
    if isinstance(held, FunctionType):
        yield held
        for cell in held.__closure__ or () if depth < 8 else ():
            try:
                yield from _functions(cell.cell_contents, depth + 1)
            except ValueError:  # an empty cell
                continue


def _first_line(node: Definition) -> int:
    return node.decorator_list[0].lineno if node.decorator_list else node.lineno


@functools.lru_cache(maxsize=64)
def _parsed(source: str) -> ast.Module:
    return ast.parse(source)


@functools.lru_cache(maxsize=64)
def _compiled(source: str, filename: str) -> CodeType:
    return compile(source, filename, "exec", dont_inherit=True)


def _codes(code: CodeType) -> Iterator[CodeType]:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield inner
            yield from _codes(inner)


def _constants(code: CodeType) -> list[str]:
    return [repr(c) for c in code.co_consts if not isinstance(c, CodeType)]


def _tree(filename: str, names: dict[str, Any]) -> ast.Module:
    source = "".join(linecache.getlines(filename, names))
    if not source:
        raise CantRewriteError(f"there is no source of {_short(filename)}")
    try:
        return _parsed(source)
    except SyntaxError as error:
        raise CantRewriteError(f"{_short(filename)} can't be parsed: {error}") from None


def _short(filename: str) -> str:
    return filename.replace("\\", "/").rpartition("/")[2]
