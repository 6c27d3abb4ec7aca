"""`Changes`: everything done to a live model, one reversible act after another, so that all of it can be taken back.

Each act knows how to undo itself and whether what it made is still in place: something changed since must be undone
first, or undoing would throw it away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from relume.errors import RelumeError

_MISSING = object()


class Act(NamedTuple):
    """What was done, in words; how it is undone; whether it still stands; where, as later acts may be done there."""

    what: str
    undo: Callable[[], None]
    stands: Callable[[], bool]
    where: Any


class Changes:
    """Acts in the order in which they were done."""

    def __init__(self) -> None:
        self.acts: list[Act] = []

    def undo(self) -> None:
        """Take everything back, latest first.

        Raises:
            RelumeError: something was changed again since; nothing is undone then.
        """
        latest = {a.where if a.where is not None else i: a for i, a in enumerate(self.acts)}
        moved = [a.what for a in latest.values() if not a.stands()]
        if moved:
            raise RelumeError(
                f"can't undo: {', '.join(moved[:5])} changed after this conversion; undo the later conversion first, "
                "or put these back"
            )
        self.roll_back()

    def roll_back(self) -> None:
        """The same without asking, after an error half-way."""
        while self.acts:
            self.acts.pop().undo()

    def do(
        self, what: str, undo: Callable[[], None], stands: Callable[[], bool] = lambda: True, where: Any = None
    ) -> None:
        """Note an act that has just been done."""
        self.acts.append(Act(what, undo, stands, where))

    def put_child(self, parent: nn.Module, key: str, new: nn.Module, what: str) -> None:
        """Put a module in a slot of its parent: one that is taken keeps its place in the order, a new one is last."""
        modules, values = parent._modules, parent.__dict__
        was = modules.get(key, _MISSING)
        plain = values.pop(key, _MISSING)  # a function kept as an ordinary attribute
        modules[key] = new

        def undo() -> None:
            if was is _MISSING:
                modules.pop(key, None)
            else:
                modules[key] = was  # type: ignore[assignment]
            if plain is not _MISSING:
                values[key] = plain

        self.do(what, undo, lambda: modules.get(key) is new, (id(parent), key))

    def put_attribute(self, owner: Any, name: str, value: Any, what: str) -> None:
        """Set a plain attribute."""
        values = owner.__dict__
        was = values.get(name, _MISSING)
        values[name] = value

        def undo() -> None:
            if was is _MISSING:
                values.pop(name, None)
            else:
                values[name] = was

        self.do(what, undo, lambda: values.get(name, _MISSING) is value, (id(owner), name))

    def put_class(self, module: nn.Module, cls: type[nn.Module], what: str) -> None:
        """Make a module an instance of another class with the same state."""
        was = type(module)
        module.__class__ = cls

        def undo() -> None:
            module.__class__ = was

        self.do(what, undo, lambda: type(module) is cls, id(module))

    def put_buffer(self, module: nn.Module, name: str, value: Any, what: str) -> None:
        """Register a buffer, or replace it."""
        buffers = module._buffers
        was = buffers.get(name, _MISSING)
        buffers[name] = value

        def undo() -> None:
            if was is _MISSING:
                buffers.pop(name, None)
            else:
                buffers[name] = was  # type: ignore[assignment]

        self.do(what, undo, lambda: buffers.get(name, _MISSING) is not _MISSING, (id(module), name))
