"""What torch.compile makes of a model: its wrappers, found and unwrapped, and the ways to keep it from compiling.

A compiled model runs no hook of its own in Python: the compiler traces them once. So a watch hangs on the wrapper, a
`Door`, whose own hooks run outside of compiled code, and looks at a pass aside (`Probe`).
"""

from __future__ import annotations

import contextlib
import gc
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from relume.watch.calls import Hook

_EVAL_FRAME = "torch._dynamo.eval_frame"
_MODULE = "torch.nn.modules.module"


def _dynamo() -> Any:
    """torch's module that compiles, or None while nothing has imported it: then nothing is compiled."""
    return sys.modules.get(_EVAL_FRAME)


def is_wrapper(module: object) -> bool:
    """Is it what `torch.compile(module)` returns?"""
    return _dynamo() is not None and isinstance(module, _dynamo().OptimizedModule)


def original(module: nn.Module) -> nn.Module:
    """The module that a compiled one was made from; any other as it is."""
    while is_wrapper(module):
        module = module._orig_mod  # type: ignore[assignment]
    return module


def wrappers_of(model: nn.Module) -> list[nn.Module]:
    """All that `torch.compile` has wrapped around the model, or around a module that contains it."""
    if _dynamo() is None:
        return []
    wrapper = _dynamo().OptimizedModule
    found = [o for o in gc.get_objects() if type(o) is wrapper]
    return [o for o in found if any(m is model for m in o._orig_mod.modules())]


def in_place(module: nn.Module) -> bool:
    """Has `module.compile()` been called?"""
    return module.__dict__.get("_compiled_call_impl") is not None


def any_compiled(modules: Iterable[nn.Module]) -> bool:
    """Is one of them what `torch.compile` returns, or compiled in place?"""
    if _dynamo() is None:
        return False
    wrapper = _dynamo().OptimizedModule
    return any(m._compiled_call_impl is not None or isinstance(m, wrapper) for m in modules)


def compiles() -> bool:
    """May this program have compiled anything?"""
    if _dynamo() is None:
        return False
    backends = getattr(_dynamo(), "cached_backends", None)
    return backends is None or any(b is not None for b in backends.values())


# Entering a stance is not safe in several threads: the one that leaves last would put back another's.
_stance = threading.RLock()


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Run compiled modules and functions by their own code, in the whole program while it lasts."""
    if _dynamo() is None or not hasattr(torch.compiler, "set_stance"):  # before torch 2.6
        yield
        return
    with _stance:
        # torch warns of the hooks that tell the modules apart; not `catch_warnings`, after which all of the user's
        # own warnings would be shown anew.
        ignored: Any = ("ignore", re.compile("Using `torch.compile"), UserWarning, None, 0)
        filters: list[Any] = warnings.filters  # type: ignore[assignment]
        filters.insert(0, ignored)
        try:
            with torch.compiler.set_stance("force_eager"):
                yield
        finally:
            with contextlib.suppress(ValueError):
                filters.remove(ignored)


class Compiling(NamedTuple):
    """A call that the compiler is tracing now: what was compiled (a module, or a function) and its arguments."""

    what: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def now_compiling() -> Compiling | None:
    """The outermost call of this thread for which the compiler runs."""
    found: Compiling | None = None
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if _is_compiled_call(frame):
            outer = frame.f_back
            given = frame.f_locals
            found = Compiling(given.get("fn"), given.get("args", ()), given.get("kwargs", {}))
            while outer is not None and outer.f_globals.get("__name__") in (_MODULE, __name__):
                module = outer.f_locals.get("self")
                if is_wrapper(module) or (isinstance(module, nn.Module) and in_place(module)):
                    found = found._replace(what=module)
                    break
                outer = outer.f_back
        frame = frame.f_back
    return found


def _is_compiled_call(frame: FrameType) -> bool:
    if frame.f_globals.get("__name__") != _EVAL_FRAME:
        return False
    return isinstance(frame.f_locals.get("self"), _dynamo().OptimizeContext) and "fn" in frame.f_locals


class Lookout(TorchFunctionMode):
    """Under `eager`: does what runs below this call anything compiled?"""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False
        self._base = sys._getframe(1)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        frame: FrameType | None = None if self.seen else sys._getframe(1)
        while frame is not None and frame is not self._base:
            self.seen = self.seen or _is_compiled_call(frame)
            frame = frame.f_back
        return func(*args, **(kwargs or {}))


class _Entrance:
    """In the place of what `module.compile()` has put on a module: the same, with a word before and after."""

    def __init__(self, module: nn.Module, before: Callable[..., None], after: Callable[..., None]) -> None:
        self.module, self.before, self.after = module, before, after
        self.compiled: Any = module.__dict__["_compiled_call_impl"]
        module.__dict__["_compiled_call_impl"] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return self.compiled(*args, **kwargs)
        self.before(self.module, args, kwargs)
        output = None
        try:
            output = self.compiled(*args, **kwargs)
            return output
        finally:
            self.after(self.module, args, kwargs, output)

    def remove(self) -> None:
        """Put back what was there, also where another watch has come in between."""
        holder = self.module.__dict__
        if holder.get("_compiled_call_impl") is self:
            holder["_compiled_call_impl"] = self.compiled
            return
        above = holder.get("_compiled_call_impl")
        while isinstance(above, _Entrance):
            if above.compiled is self:
                above.compiled = self.compiled
            above = above.compiled


class Doors:
    """The ways into compiled code that runs a model: hooks on wrappers, entrances on modules compiled in place.

    Args:
        before, after: as forward pre-hook and forward hook, both with keyword arguments.

    Attributes:
        opened: there is any.
    """

    def __init__(self, before: Callable[..., None], after: Callable[..., None]) -> None:
        self._before, self._after = before, after
        self._handles: dict[int, tuple[nn.Module, list[Any]]] = {}
        self.opened = False

    def __contains__(self, module: object) -> bool:
        return self.opened and id(module) in self._handles

    def open(self, module: nn.Module) -> None:
        if module in self:
            return
        handles: list[Any]
        if is_wrapper(module):
            handles = [
                module.register_forward_pre_hook(Hook(self._before), with_kwargs=True),
                module.register_forward_hook(Hook(self._after), with_kwargs=True, always_call=True),
            ]
        else:
            handles = [_Entrance(module, self._before, self._after)]
        self._handles[id(module)] = (module, handles)
        self.opened = True

    def close(self) -> None:
        for _, handles in self._handles.values():
            for handle in handles:
                handle.remove()
        self._handles.clear()
        self.opened = False
