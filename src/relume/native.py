"""Builds a plain C++ source with the machine's own compiler at first use, keeps the library in a cache, and loads it.

Plain C++ called through ctypes builds in seconds and depends on no version of torch. Whoever uses it must do without
where `library` raises `BuildError`.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

OFF = ("off", "0", "no")
FLAGS = ("-O3", "-std=c++17", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-w")
# Tried in turn: not every compiler knows the machine it runs on.
TUNED = (("-march=native",), ("-mcpu=native",), ())
_BUILD_SECONDS = 120


class BuildError(Exception):
    """There is no library; the message says why."""


def library(source: Path, flags: Sequence[str] = FLAGS, tuned: Sequence[Sequence[str]] = TUNED) -> ctypes.CDLL:
    """The shared library made of one C++ source, from the cache or built into it.

    Args:
        source: a file that includes nothing but the standard library and the machine's intrinsics.
        flags: for the compiler.
        tuned: further flags, tried in turn until the compiler accepts some.

    Raises:
        BuildError: kernels are turned off, there is no compiler, it refused, or no folder can be written to.
    """
    if os.environ.get("RELUME_KERNELS", "").lower() in OFF:
        raise BuildError("turned off by RELUME_KERNELS")
    compiler = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    if compiler is None or sys.platform == "win32":
        raise BuildError("no C++ compiler was found")
    try:
        return ctypes.CDLL(str(_built(source, compiler, flags, tuned)))
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"the C++ kernel could not be built or loaded: {error}") from error


def _built(source: Path, compiler: str, flags: Sequence[str], tuned: Sequence[Sequence[str]]) -> Path:
    """The library's path; its name holds all that its code depends on."""
    made_of = "\0".join((source.read_text(), compiler, *flags, repr(tuned), platform.machine(), _processor()))
    name = f"{source.stem}-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.so"
    for folder in _folders():
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not _mine(folder):
                continue
            path = folder / name
            if not path.exists():
                _build(source, compiler, flags, tuned, path)
            return path
        except OSError:
            continue
    raise OSError("no folder to keep it in can be written")


def cache() -> Path:
    """relume's folder among the user's caches; it may not be there yet."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(home) / "relume"


def _folders() -> list[Path]:
    uid = os.getuid() if hasattr(os, "getuid") else "user"
    return [cache(), Path(tempfile.gettempdir()) / f"relume-{uid}"]


def _mine(folder: Path) -> bool:
    """Code is loaded only from a folder that nobody else can write to."""
    status = folder.stat()
    return not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o022)


def _build(source: Path, compiler: str, flags: Sequence[str], tuned: Sequence[Sequence[str]], path: Path) -> None:
    """Built aside and moved in place, so that several processes may do it at once."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        out = os.path.join(folder, path.name)
        said = ""
        for machine in tuned:
            command = [compiler, *flags, *machine, "-o", out, str(source)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_SECONDS)
            if done.returncode == 0:
                os.replace(out, path)
                return
            said = next(iter(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
    raise BuildError(f"the C++ kernel could not be built: {compiler}: {said}")


def _processor() -> str:
    """What the processor can do: a cache may be shared by machines of several kinds."""
    try:
        with open("/proc/cpuinfo") as file:
            return next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.processor()
