"""`Target`: what MODULE:NAME on the command line stands for, imported; and the model and batches that it gives.

Importing runs the user's own file, as `python -m` would: a training script needs its `if __name__ == "__main__"`.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from relume.errors import RelumeError


class InputError(RelumeError):
    """What was named on the command line can't be imported, built, loaded or run."""


@contextlib.contextmanager
def blamed(doing: str) -> Iterator[None]:
    """Errors of the user's own code become one line that says what relume was doing and where they were raised."""
    try:
        yield
    except RelumeError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{doing} raised {type(error).__name__}: {_one_line(error)}{_where(error)}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or "no message"


def _where(error: BaseException) -> str:
    """The innermost line outside of libraries."""
    if isinstance(error, SyntaxError):
        return ""  # its own message says it
    at, found = error.__traceback__, ""
    while at is not None:
        name = at.tb_frame.f_code.co_filename
        if (
            "site-packages" not in name
            and not name.startswith("<")
            and Path(__file__).parents[1] not in Path(name).parents
        ):
            found = f" ({name}:{at.tb_lineno})"
        at = at.tb_next
    return found


@dataclass(frozen=True)
class Target:
    """A value named by MODULE:NAME.

    Attributes:
        text: as it was named.
        value: what it is.
        file: that the module was imported from; None for one without.
        line: where the name is defined in it, from 1.
    """

    text: str
    value: Any
    file: Path | None
    line: int

    @classmethod
    def find(cls, text: str, option: str) -> Target:
        """Import MODULE and look NAME up in it.

        Args:
            text: MODULE is a dotted name, found from the working folder too, or the path of a .py file; NAME may be
                dotted.
            option: how the command line calls it, for messages.

        Raises:
            InputError: it isn't of that form, the module can't be imported, or there is no such name.
        """
        where, colon, name = text.rpartition(":")
        if not colon or not where or not name:
            raise InputError(f"{option} is named as MODULE:NAME, such as train:model or src/net.py:Net, not {text!r}")
        module = _import(where)
        value: Any = module
        for part in name.split("."):
            try:
                value = getattr(value, part)
            except AttributeError:
                raise InputError(f"{option}: {where} has no {name!r}{_near(part, value)}") from None
        file = getattr(module, "__file__", None)
        path = None if file is None else Path(file)
        return cls(text, value, path, _line(path, name))


def _import(where: str) -> ModuleType:
    path = Path(where)
    if path.suffix == ".py":
        if not path.is_file():
            raise InputError(f"there is no file {where}")
        return _import_file(path.resolve())
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    with blamed(f"importing {where}"):
        return importlib.import_module(where)


def _import_file(path: Path) -> ModuleType:
    loaded = sys.modules.get(path.stem)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        return loaded  # model and data often come from one file, which is run once
    # A file may be called as a library is, which others must still find by that name.
    taken = loaded is not None or _found_elsewhere(path)
    name = f"_relume_check_{path.stem}" if taken else path.stem
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # its neighbours, as when it is run as a script
    if name in sys.modules and sys.modules[name].__file__ == str(path):
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with blamed(f"importing {path.name}"):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _found_elsewhere(path: Path) -> bool:
    try:
        spec = importlib.util.find_spec(path.stem)
    except (ImportError, ValueError):
        return True
    return spec is not None and spec.origin != str(path)


def _near(name: str, owner: Any) -> str:
    known = [n for n in dir(owner) if not n.startswith("_")]
    close = difflib.get_close_matches(name, known, 3)
    if not close and isinstance(owner, ModuleType):
        close = [n for n in known if getattr(getattr(owner, n), "__module__", None) == owner.__name__][:8]
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _line(path: Path | None, name: str) -> int:
    """Where a module-level name is last given a value; 1 where that can't be seen."""
    if path is None or path.suffix != ".py":
        return 1
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return 1
    first, found = name.partition(".")[0], 1
    for node in tree.body:
        names = {getattr(node, "name", None)}  # of a class or function
        given = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names |= {n.id for target in given for n in ast.walk(target) if isinstance(n, ast.Name)}
        if first in names:
            found = node.lineno
    return found


def load_model(target: Target) -> nn.Module:
    """The model itself, or what calling it without arguments returns.

    Raises:
        InputError: calling it fails, or it gives no module.
    """
    value = target.value
    if not isinstance(value, nn.Module):
        if not callable(value):
            raise InputError(f"{target.text} is a {type(value).__name__}, not a torch.nn.Module or what makes one")
        with blamed(f"calling {target.text}() for the model"):
            value = value()
    if not isinstance(value, nn.Module):
        raise InputError(f"{target.text}() returned a {type(value).__name__}, not a torch.nn.Module")
    return value


def load_batches(target: Target, at_most: int | None = None) -> Any:
    """A tensor, or an iterator over batches: of the value itself, or of what calling it without arguments returns.

    Args:
        target: names a DataLoader, tensor or iterable of batches, or what makes one.
        at_most: batches to take; None takes all.

    Raises:
        InputError: it is none of these.
    """
    value = target.value
    if callable(value) and (isinstance(value, type) or not hasattr(value, "__iter__")):
        with blamed(f"calling {target.text}() for the data"):
            value = value()
    if isinstance(value, torch.utils.data.Dataset) and not isinstance(value, torch.utils.data.IterableDataset):
        raise InputError(
            f"{target.text} is a Dataset, which yields single examples: wrap it in torch.utils.data.DataLoader"
        )
    if isinstance(value, torch.Tensor):
        return value
    if not isinstance(value, Iterable) or isinstance(value, str | bytes):
        raise InputError(f"{target.text} gives a {type(value).__name__}: --data takes a DataLoader, tensor or batches")
    return _each(value, f"reading a batch of {target.text}", at_most)


def _each(batches: Iterable[Any], doing: str, at_most: int | None) -> Iterator[Any]:
    with blamed(doing):
        following: Callable[[], Any] = islice(iter(batches), at_most).__next__
    while True:
        with blamed(doing):
            try:
                batch = following()
            except StopIteration:
                return
        yield batch
