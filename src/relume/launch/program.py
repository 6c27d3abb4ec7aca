"""`Program`: a script or module run as `python SCRIPT ARGS…` or `python -m MODULE ARGS…` would run it.

What a program can see of that is set up alike: `sys.argv`, `sys.path[0]`, and a `__main__` with its file and spec, so
that pickles, spawned processes and `inspect` find it. Its exit code, exceptions and signals meet the interpreter as
they are; only relume's own frames are left out of a traceback.
"""

from __future__ import annotations

import importlib.util
import io
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any

from relume.errors import RelumeError


class Start(BaseException):
    """Carries a program out of the command line's error handling, which would take its exceptions and interrupts."""

    def __init__(self, run: Callable[[], None]) -> None:
        super().__init__()
        self.run = run


class NoModuleError(RelumeError):
    """`-m` names no module that can be run."""


@dataclass(frozen=True)
class Program:
    """What to run: a file (or a folder with a `__main__.py`), or a module by its name, with its arguments."""

    target: str
    args: Sequence[str] = ()
    module: bool = False

    @property
    def name(self) -> str:
        """Short, for folders: `train` for `examples/train.py` and for `-m project.train`."""
        if self.module:
            return self.target.removesuffix(".__main__").rpartition(".")[2]
        return Path(os.path.abspath(self.target)).stem

    def check(self) -> None:
        """Raise RelumeError if there is no such file; a module can only be looked for when it is run."""
        path = Path(self.target)
        if not self.module and not (path / "__main__.py" if path.is_dir() else path).is_file():
            what = f"folder without a __main__.py: {path}" if path.is_dir() else f"no file {path}"
            raise RelumeError(f"{what}; `relume run SCRIPT` takes a file, `relume run -m MODULE` a module")

    def run(self) -> None:
        """Run it to its end, in this process and as its `__main__`.

        Raises:
            NoModuleError: there is none of that name. Else whatever it raises.
        """
        main, code = self._module() if self.module else self._file()
        # The former __main__ must outlive its program: its frames are still running.
        main.__dict__["__builtins__"] = sys.modules["builtins"]
        former, sys.modules["__main__"] = sys.modules["__main__"], main
        try:
            _execute(code, main.__dict__)
        except BaseException:
            _hide_own_frames()
            raise
        finally:
            del former

    def _file(self) -> tuple[ModuleType, Callable[[], CodeType]]:
        path, main = os.path.abspath(self.target), ModuleType("__main__")
        _set_search_path(os.path.realpath(path) if os.path.isdir(path) else os.path.dirname(os.path.realpath(path)))
        sys.argv = [self.target, *self.args]
        folder = os.path.isdir(path)
        file = os.path.join(path, "__main__.py") if folder else path
        main.__dict__.update(__file__=file, __cached__=None, __spec__=None, __package__="" if folder else None)

        def code() -> CodeType:
            with io.open_code(file) as source:
                return compile(source.read(), file, "exec", dont_inherit=True)

        return main, code

    def _module(self) -> tuple[ModuleType, Callable[[], CodeType]]:
        _set_search_path(os.getcwd())
        sys.argv = ["-m", *self.args]  # as Python has it while it looks for the module
        spec = _find(self.target)
        if spec is None or spec.loader is None or not hasattr(spec.loader, "get_code"):
            raise NoModuleError(f"there is no module {self.target!r} that can be run")
        sys.argv[0] = str(spec.origin)
        main, loader = ModuleType("__main__"), spec.loader
        main.__dict__.update(
            __file__=spec.origin, __cached__=spec.cached, __spec__=spec, __loader__=loader, __package__=spec.parent
        )
        return main, lambda: loader.get_code(spec.name)


def _find(name: str) -> ModuleSpec | None:
    """Of a module, or of a package's `__main__`."""
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        # A parent that is missing is a wrong name; an import that fails inside a parent is the program's own error.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        return None
    if spec is not None and spec.submodule_search_locations is not None and not name.endswith(".__main__"):
        return _find(f"{name}.__main__")
    return spec


def _set_search_path(folder: str) -> None:
    """Put the program's folder where relume's command has its own (`python -P` has none)."""
    if not getattr(sys.flags, "safe_path", False):
        sys.path[:1] = [folder]


def _execute(code: Callable[[], CodeType], names: dict[str, Any]) -> None:
    exec(code(), names)


def _hide_own_frames() -> None:
    """From now on an uncaught exception is shown without the frames of relume that called the program."""
    show = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        kept = trace
        while kept is not None and kept.tb_frame.f_code is not _execute.__code__:
            kept = kept.tb_next
        while kept is not None and kept.tb_frame.f_code.co_filename == __file__:
            kept = kept.tb_next
        trace = error.__traceback__ = kept
        sys.excepthook = show
        show(kind, error, trace)

    sys.excepthook = hook
