"""Builds, loads and calls `meter.cpp`: at first use, with the machine's own compiler, in about a second; then cached.

`RELUME_KERNELS=off` does without it, and so does a machine without a compiler: the counts are the same, only slower.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from relume.watch.kernels.counting import Counting

_SOURCE = Path(__file__).with_name("meter.cpp")
_FLAGS = ("-O3", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
# Tried in turn: not every compiler knows wide vectors, or the machine it runs on.
_TUNED = (("-march=native", "-mprefer-vector-width=512"), ("-march=native",), ())
_BUILD_SECONDS = 60

OFF = ("off", "0", "no")
Kernel = Callable[..., int]


class BuildError(Exception):
    """The compiler refused."""


@functools.cache
def load() -> dict[torch.dtype, Kernel] | None:
    """The kernels by dtype, or None where they are off or can't be built; `reason()` says why."""
    if os.environ.get("RELUME_KERNELS", "").lower() in OFF:
        _said.append("turned off by RELUME_KERNELS")
        return None
    compiler = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    if compiler is None or sys.platform == "win32":
        _said.append("no C++ compiler was found")
        return None
    try:
        library = ctypes.CDLL(str(_built(compiler)))
        kernels: dict[torch.dtype, Kernel] = {}
        for dtype, name in ((torch.float32, "relume_observe_f32"), (torch.float64, "relume_observe_f64")):
            function = getattr(library, name)
            function.argtypes = [
                ctypes.c_void_p, *[ctypes.c_int64] * 4, *[ctypes.c_double] * 2, *[ctypes.c_int] * 3,
                ctypes.c_double, ctypes.c_void_p,
            ]  # fmt: skip
            function.restype = ctypes.c_int
            kernels[dtype] = function
    except (BuildError, OSError, subprocess.SubprocessError, AttributeError) as error:
        _said.append(f"the C++ kernel could not be built or loaded: {error}")
        return None
    return kernels


_said: list[str] = []


def reason() -> str:
    """Why `load` gave None; empty when it did not."""
    return _said[0] if load() is None and _said else ""


def _built(compiler: str) -> Path:
    """The shared library, from the cache or built into it; its name holds all that its code depends on."""
    made_of = "\0".join((_SOURCE.read_text(), compiler, *_FLAGS, repr(_TUNED), platform.machine(), _cpu()))
    name = f"meter-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.so"
    for folder in _folders():
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not _mine(folder):
                continue
            path = folder / name
            if not path.exists():
                _build(compiler, path)
            return path
        except OSError:
            continue
    raise OSError("no folder to keep it in can be written")


def _folders() -> list[Path]:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    uid = os.getuid() if hasattr(os, "getuid") else "user"
    return [Path(home) / "relume", Path(tempfile.gettempdir()) / f"relume-{uid}"]


def _mine(folder: Path) -> bool:
    """Code is loaded only from a folder that nobody else can write to."""
    status = folder.stat()
    return not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o022)


def _build(compiler: str, path: Path) -> None:
    """Built aside and moved in place, so that several processes may do it at once."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        out = os.path.join(folder, "meter.so")
        for tuned in _TUNED:
            command = [compiler, *_FLAGS, *tuned, "-o", out, str(_SOURCE)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_SECONDS)
            if done.returncode == 0:
                os.replace(out, path)
                return
        lines = done.stderr.strip().splitlines()
        raise BuildError(f"{compiler}: {lines[0] if lines else f'exit code {done.returncode}'}")


def _cpu() -> str:
    """What the processor can do: a cache may be shared by machines of several kinds."""
    try:
        with open("/proc/cpuinfo") as file:
            return next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.processor()


def prepared(x: Tensor, how: Counting, state: Tensor) -> Callable[[Tensor, int], bool] | None:
    """A call that adds samples like `x` to a meter's state; see `kernels.prepared`."""
    kernel = (load() or {}).get(x.dtype)
    if kernel is None:
        return None
    rest = (*how.sizes, *how.edges, int(how.relu), int(how.counted), int(how.flat))

    def run(x: Tensor, step: int) -> bool:
        return kernel(x.data_ptr(), *rest, float(step), state.data_ptr()) == 0

    return run
