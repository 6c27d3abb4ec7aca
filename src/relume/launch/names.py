"""`name_of`: what a script calls a model, by the variables and attributes that hold it where it is called."""

from __future__ import annotations

import inspect
import re
import sys
import sysconfig
from collections.abc import Iterator
from types import FrameType
from typing import Any

from torch import nn

# Names that say nothing of what they hold.
_GENERIC = {
    "self", "cls", "m", "mod", "module", "module_", "layer", "fn", "f", "func", "obj", "x", "o", "args", "kwargs",
    "value", "inner", "wrapped", "target", "this", "instance",
}  # fmt: skip
# By which a function may hold on to the dictionary of its own variables.
_READERS = {"locals", "exec"}
_LIBRARIES = tuple(
    {sysconfig.get_path(k) + "/" for k in ("stdlib", "platstdlib", "purelib", "platlib")} | {"<frozen ", "<string>"}
)
_OWN = __name__.partition(".")[0] + "."


def name_of(module: nn.Module, frame: FrameType | None) -> str:
    """The name of a model that is being called, seen from the calling frame outwards.

    Frames of the script's own code come before those of libraries, near ones before far ones; in each, a variable
    comes before an attribute of an object (`self.generator` → `generator`), and both before the path in a model that
    contains it (`mlp_extractor.policy_net`). Where nothing holds it under a name that says something: its class.
    """
    frames = list(_callers(frame))
    for library in (False, True):
        for at in frames:
            if at.f_code.co_filename.startswith(_LIBRARIES) == library:
                name = _in(module, _variables(at))
                if name is not None:
                    return name
    return type(module).__name__


def unique(name: str, taken: set[str]) -> str:
    """The name as a folder's, with a number where another model has it: `model`, `model-2`."""
    plain = re.sub(r"[^\w.-]+", "_", name).strip("._") or "model"
    found, n = plain, 1
    while found.lower() in taken:
        n += 1
        found = f"{plain}-{n}"
    taken.add(found.lower())
    return found


def _callers(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        if not frame.f_globals.get("__name__", "").startswith(("torch.", _OWN)):
            yield frame
        frame = frame.f_back


def _variables(frame: FrameType) -> dict[str, Any]:
    """A copy of a frame's variables that leaves no trace.

    Before Python 3.13 asking for them makes a dictionary that the frame keeps, and all in it alive as long as the
    function runs; it is the one that the function's own `locals()` returns, so such functions are left alone.
    """
    if sys.version_info >= (3, 13) or not frame.f_code.co_flags & inspect.CO_OPTIMIZED:
        return dict(frame.f_locals)
    if not _READERS.isdisjoint(frame.f_code.co_names):
        return {}
    kept = frame.f_locals
    found = dict(kept)
    kept.clear()
    return found


def _in(module: nn.Module, variables: dict[str, Any]) -> str | None:
    for name, value in variables.items():
        if value is module and _says_something(name):
            return name
    for holder in variables.values():
        for name, value in _attributes(holder):
            if value is module and _says_something(name):
                return str(name).strip("_")
    for holder in variables.values():
        if isinstance(holder, nn.Module) and holder is not module:
            path = next((path for path, part in holder.named_modules() if part is module), None)
            if path:
                return str(path)
    return None


def _says_something(name: str) -> bool:
    return name not in _GENERIC and not name.startswith("_") and name.isidentifier()


def _attributes(holder: Any) -> list[tuple[str, Any]]:
    """Without calling anything of the script's."""
    try:
        own = object.__getattribute__(holder, "__dict__")
    except AttributeError:
        return []
    if not isinstance(own, dict) or isinstance(holder, type):
        return []
    return [*list(own.get("_modules", {}).items() if isinstance(holder, nn.Module) else ()), *list(own.items())]
