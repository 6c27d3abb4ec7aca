"""Rewrites methods of one module to call a child where they called a function: `self.relu(x)` for `F.relu(x)`.

The module becomes an instance of a subclass of its own class whose methods are ordinary Python: torch.compile, export,
scripting, checkpointing, copies and pickles see nothing out of the way, and a call costs what any module's does.
"""

from __future__ import annotations
import __future__

import ast
import copy
import functools
import hashlib
import itertools
import keyword
import linecache
import weakref
from types import CellType, CodeType, FunctionType
from typing import Any, NamedTuple

from torch import nn

from relume.treat.convert.source import (
    ORIGINS,
    CantRewriteError,
    Definition,
    Position,
    definition_of,
    node_at,
    position_of,
)

_numbers = itertools.count()
_FUTURE = functools.reduce(int.__or__, (getattr(__future__, n).compiler_flag for n in __future__.all_feature_names))


class Edit(NamedTuple):
    """One call to replace.

    Attributes:
        position: of the expression, in lines of the method as it is written.
        argument: where the pre-activation stands: "self" of a method call, a place among the arguments, or a keyword.
        child: name of the module to call instead.
        counted: the place is run several times in one call of the method, each time with a module of its own.
    """

    position: Position
    argument: str | int
    child: str
    counted: bool = False


class MethodEdits(NamedTuple):
    """The edits of one method, and the digest of the text that they belong to."""

    name: str
    digest: str
    edits: tuple[Edit, ...]


class PerUse(nn.ModuleList):
    """One module for each use of a place that runs several times in a call; a use beyond those known has the last's."""

    def forward(self, x: Any, uses: list[None]) -> Any:
        module = self[min(len(uses), len(self) - 1)]
        uses.append(None)
        return module(x)


def digest(function: FunctionType) -> str:
    """Of a function's text; the same on another machine, for another layout, with other comments."""
    return hashlib.sha256(ast.unparse(definition_of(function)).encode()).hexdigest()[:16]


def original_class(cls: type[nn.Module]) -> type[nn.Module]:
    """The class that a rewritten one was made from; any other as it is."""
    return vars(cls).get("_relume_original", cls)  # type: ignore[no-any-return]


def edits_of(cls: type[nn.Module]) -> tuple[MethodEdits, ...]:
    """What has been rewritten."""
    return vars(cls).get("_relume_edits", ())  # type: ignore[no-any-return]


def merged(before: tuple[MethodEdits, ...], more: tuple[MethodEdits, ...]) -> tuple[MethodEdits, ...]:
    """Two sets of edits as one."""
    methods = {m.name: m for m in before}
    for m in more:
        old = methods[m.name].edits if m.name in methods else ()
        methods[m.name] = m._replace(edits=tuple(sorted({*old, *m.edits}, key=lambda e: e.position)))
    return tuple(methods.values())


# Equal rewritings give one class.
_CLASSES: weakref.WeakValueDictionary[Any, type[nn.Module]] = weakref.WeakValueDictionary()


def rewritten(original: type[nn.Module], methods: tuple[MethodEdits, ...]) -> type[nn.Module]:
    """The class with these edits made.

    Raises:
        CantRewriteError: the source is missing, or is not what the edits belong to.
    """
    key = (original, methods)
    made = _CLASSES.get(key)
    if made is not None:
        return made
    members: dict[str, Any] = {m.name: _rewritten_method(original, m) for m in methods}
    made = type(original)(  # type: ignore[misc]
        original.__name__,
        (original,),
        {
            **members,
            "__module__": original.__module__,
            "__qualname__": original.__qualname__,
            "__doc__": original.__doc__,
            "_relume_original": original,
            "_relume_edits": methods,
            "__reduce_ex__": _reduce,
        },
    )
    _CLASSES[key] = made
    return made  # type: ignore[no-any-return]


def _reduce(self: nn.Module, protocol: Any) -> Any:
    """Copies and pickles make the class anew from the original's, which must be importable, as for any pickle."""
    state = self.__getstate__() if hasattr(self, "__getstate__") else self.__dict__
    return _empty, (original_class(type(self)), tuple(map(_plain, edits_of(type(self))))), state


def _plain(m: MethodEdits) -> tuple[Any, ...]:
    return (m.name, m.digest, tuple(tuple(e) for e in m.edits))


def methods_from(plain: Any) -> tuple[MethodEdits, ...]:
    """Inverse of what is pickled or read from JSON.

    Raises:
        ValueError: a child's name is none: it goes into the text of a method, which no checkpoint may write.
    """
    methods = tuple(
        MethodEdits(name, text, tuple(Edit(tuple(p), a, c, bool(n)) for p, a, c, n in edits))
        for name, text, edits in plain
    )
    for child in (e.child for m in methods for e in m.edits):
        if not isinstance(child, str) or not child.isidentifier() or keyword.iskeyword(child):
            raise ValueError(f"{child!r} is no name of a module")
    return methods


def _empty(original: type[nn.Module], plain: Any) -> nn.Module:
    cls = rewritten(original, methods_from(plain))
    return cls.__new__(cls)


def _rewritten_method(cls: type[nn.Module], method: MethodEdits) -> Any:
    held = next((vars(c)[method.name] for c in cls.__mro__ if method.name in vars(c)), None)
    for function in _reachable(held):
        try:
            if digest(function) == method.digest:
                break
        except CantRewriteError:
            continue
    else:
        raise CantRewriteError(
            f"{cls.__name__}.{method.name} is not written as it was when its activations were converted, or its source "
            "is missing: convert it anew"
        )
    return _with(held, function, _compiled(cls, function, method))


def _text(cls: type[nn.Module], function: FunctionType, definition: Definition) -> str:
    """A method written out where it may be compiled.

    Inside a class for names with two leading underscores, inside a function for the variables around the method.
    """
    variables = function.__code__.co_freevars
    defining = function.__qualname__.rpartition(".")[0].rpartition(".")[2]
    name = defining if defining.isidentifier() else cls.__name__
    module = ast.parse(f"def make({', '.join(v for v in variables if v != '__class__')}):\n    pass")
    # By its name the method means the global class, or that of its closure, not this one, which only lends its name.
    held = ast.ClassDef(name, [], [], [definition], [])
    module.body[0].body = [*([] if name in variables else [ast.Global([name])]), held]  # type: ignore[attr-defined]
    return ast.unparse(ast.fix_missing_locations(module)) + "\n"


def _code(text: str, filename: str, function: FunctionType) -> CodeType:
    flags = function.__code__.co_flags & _FUTURE
    compiled: CodeType = compile(text, filename, "exec", flags=flags, dont_inherit=True)
    for _ in range(3):  # in the module the function, in it the class, in it the method
        compiled = next(c for c in compiled.co_consts if isinstance(c, CodeType))
    return compiled


def _compiled(cls: type[nn.Module], function: FunctionType, method: MethodEdits) -> FunctionType:
    filename = f"<relume.convert {next(_numbers)}: {cls.__module__}.{cls.__qualname__}.{method.name}>"
    code = function.__code__
    changed, origins = _edited(definition_of(function), method)
    text = _text(cls, function, changed)
    made = ast.parse(text).body[0].body[-1].body[0]  # type: ignore[attr-defined]
    ORIGINS[filename] = _matched(changed, made, origins)
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    compiled = _code(text, filename, function)
    cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
    new = FunctionType(
        compiled,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        tuple(cells[v] for v in compiled.co_freevars),
    )
    new.__kwdefaults__, new.__qualname__ = function.__kwdefaults__, function.__qualname__
    new.__doc__, new.__module__ = function.__doc__, function.__module__
    new.__annotations__ = dict(function.__annotations__)
    new.__dict__.update(function.__dict__)
    return new


def _edited(definition: Definition, method: MethodEdits) -> tuple[Definition, dict[int, Position]]:
    tree = copy.deepcopy(definition)
    tree.decorator_list = []
    origins = {id(n): position_of(n, tree) for n in ast.walk(tree) if isinstance(n, ast.expr | ast.stmt)}
    targets = {id(node_at(tree, e.position, tree.lineno)): e for e in method.edits}
    arguments = [*tree.args.posonlyargs, *tree.args.args]
    if not arguments:
        raise CantRewriteError(f"{method.name} has no parameter for the module itself")
    _Calls(targets, arguments[0].arg).visit(tree)
    counted = [e.child for e in method.edits if e.counted]
    at = 1 if ast.get_docstring(tree, clean=False) is not None else 0
    tree.body[at:at] = [ast.parse(f"{_counter(child)} = []").body[0] for child in counted]
    return ast.fix_missing_locations(tree), origins


def _counter(child: str) -> str:
    return f"_relume_uses_{child}"


class _Calls(ast.NodeTransformer):
    """Puts the calls of the children in their places."""

    def __init__(self, targets: dict[int, Edit], self_name: str) -> None:
        self.targets, self.self_name = targets, self_name

    def call(self, edit: Edit, x: ast.expr) -> ast.Call:
        function = ast.Attribute(ast.Name(self.self_name, ast.Load()), edit.child, ast.Load())
        counter = [ast.Name(_counter(edit.child), ast.Load())] if edit.counted else []
        return ast.Call(function, [x, *counter], [])

    def written_back(self, edit: Edit, x: ast.expr) -> ast.Expr:
        """The statement changes a tensor in place: `x.copy_(self.relu(x.clone()))`."""
        x = copy.deepcopy(x)
        for node in ast.walk(x):
            if isinstance(getattr(node, "ctx", None), ast.Store | ast.Del):
                node.ctx = ast.Load()  # type: ignore[attr-defined]
        cloned = ast.Call(ast.Attribute(copy.deepcopy(x), "clone", ast.Load()), [], [])
        return ast.Expr(ast.Call(ast.Attribute(x, "copy_", ast.Load()), [self.call(edit, cloned)], []))

    def visit_Call(self, node: ast.Call) -> ast.AST:
        edit = self.targets.get(id(node))
        self.generic_visit(node)
        return node if edit is None else self.call(edit, operand(node, edit.argument))

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        edit = self.targets.get(id(node))
        self.generic_visit(node)
        return node if edit is None else self.call(edit, operand(node, edit.argument))

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        edit = self.targets.get(id(node.value))
        if edit is None or not isinstance(node.value, ast.Call):
            return self.generic_visit(node)
        return self.written_back(edit, operand(node.value, edit.argument))

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        edit = self.targets.get(id(node))
        return self.generic_visit(node) if edit is None else self.written_back(edit, node.target)

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        edit = self.targets.get(id(node.targets[0]))
        if edit is None or not isinstance(node.targets[0], ast.Subscript):
            return self.generic_visit(node)
        return self.written_back(edit, node.targets[0].value)


def operand(node: ast.AST, argument: str | int) -> ast.expr:
    """The expression that an edit's `argument` speaks of."""
    if isinstance(node, ast.BinOp):
        return node.left if argument == 0 else node.right
    if isinstance(node, ast.AugAssign):
        return node.target
    if isinstance(node, ast.Subscript):
        return node.value
    assert isinstance(node, ast.Call)
    if argument == "self" and isinstance(node.func, ast.Attribute):
        return node.func.value
    if (
        isinstance(argument, int)
        and argument < len(node.args)
        and not any(isinstance(a, ast.Starred) for a in node.args[: argument + 1])
    ):
        return node.args[argument]
    found = next((k.value for k in node.keywords if k.arg == argument), None)
    if found is None:
        raise CantRewriteError("its arguments are passed on by * or **, or by a name that can't be told")
    return found


def _matched(changed: ast.AST, made: ast.AST, origins: dict[int, Position]) -> dict[Position, Position]:
    """Positions in the text that was written, and where they were in the one it was made from."""
    found: dict[Position, Position] = {}
    assert isinstance(made, Definition)
    for old, new in zip(ast.walk(changed), ast.walk(made), strict=False):
        if type(old) is not type(new):
            break  # written out otherwise than it was built: nothing more can be said
        if id(old) in origins and isinstance(new, ast.expr | ast.stmt):
            found[position_of(new, made)] = origins[id(old)]
    return found


def _reachable(held: Any) -> list[FunctionType]:
    if not isinstance(held, FunctionType):
        return []
    found = [held]
    for cell in held.__closure__ or ():
        try:
            found += _reachable(cell.cell_contents)
        except ValueError:
            continue
    return found


def _with(held: Any, function: FunctionType, new: FunctionType) -> Any:
    """A decorated method with the function inside exchanged; the wrappers around it are copied."""
    if held is function:
        return new
    cells = []
    for cell in held.__closure__ or ():
        inner = cell.cell_contents
        holds = isinstance(inner, FunctionType) and function in _reachable(inner)
        cells.append(CellType(_with(inner, function, new)) if holds else cell)
    made = FunctionType(held.__code__, held.__globals__, held.__name__, held.__defaults__, tuple(cells))
    made.__kwdefaults__ = held.__kwdefaults__
    made.__dict__.update(held.__dict__)
    if made.__dict__.get("__wrapped__") in _reachable(held):
        made.__dict__["__wrapped__"] = _with(made.__dict__["__wrapped__"], function, new)
    made.__doc__, made.__qualname__, made.__module__ = held.__doc__, held.__qualname__, held.__module__
    return made
