"""`when_imported`: call a function once a module has been imported, as soon as it has."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


def when_imported(name: str, call: Callable[[], None]) -> None:
    """Call at once if the module is there already, else right after its first import."""
    if name in sys.modules:
        call()
    else:
        sys.meta_path.insert(0, _Waiter(name, call))


class _Waiter:
    """A finder that finds nothing itself; it adds a call to the loader that the others find."""

    def __init__(self, name: str, call: Callable[[], None]) -> None:
        self.name = name
        self.call = call

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.name or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        loader = spec.loader if spec is not None else None
        if loader is None:
            sys.meta_path.insert(0, self)
            return spec
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            loader.exec_module = execute  # type: ignore[method-assign]
            execute(module)
            self.call()

        loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
