"""Loads and calls `meter.cpp`, built at first use with the machine's own compiler (see `relume.native`)."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from relume.native import FLAGS, BuildError, library
from relume.watch.kernels.counting import Counting
from relume.watch.kernels.state import State

_SOURCE = Path(__file__).with_name("meter.cpp")
# Tried in turn: not every compiler knows wide vectors, or the machine it runs on.
_TUNED = (("-march=native", "-mprefer-vector-width=512"), ("-march=native",), ())

_ROWS = ("fired", "samples_fired", "sum", "squares", "output", "max", "min", "first", "last", "pivot")
Kernel = Callable[..., int]


@functools.cache
def load() -> dict[torch.dtype, Kernel] | None:
    """The kernels by dtype, or None where they are off or can't be built; `reason()` says why."""
    try:
        built = library(_SOURCE, FLAGS, _TUNED)
        kernels: dict[torch.dtype, Kernel] = {}
        for dtype, name in ((torch.float32, "relume_observe_f32"), (torch.float64, "relume_observe_f64")):
            function = getattr(built, name)
            function.argtypes = [
                ctypes.c_void_p, *[ctypes.c_int64] * 4, *[ctypes.c_double] * 2, *[ctypes.c_int] * 3,
                ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p,
            ]  # fmt: skip
            function.restype = ctypes.c_int
            kernels[dtype] = function
    except (BuildError, AttributeError) as error:
        _said.append(str(error))
        return None
    return kernels


_said: list[str] = []


def reason() -> str:
    """Why `load` gave None; empty when it did not."""
    return _said[0] if load() is None and _said else ""


def prepared(x: Tensor, how: Counting, state: State) -> Callable[[Tensor, int, int | None], bool] | None:
    """A call that adds samples like `x` to a meter's state; see `kernels.prepared`."""
    kernel = (load() or {}).get(x.dtype)
    if kernel is None:
        return None
    rest = (*how.sizes, *how.edges, int(how.relu), int(how.counted), int(how.flat))
    given = state.rows()
    # `struct State` of meter.cpp.
    rows = (ctypes.c_void_p * (len(_ROWS) + 2))(
        *(given[name].data_ptr() if name in given else None for name in _ROWS),
        int(state.wide_counts),
        int(state.wide_extremes),
    )
    address = ctypes.addressof(rows)

    def run(x: Tensor, step: int, moments: int | None, _holds: object = (given, rows)) -> bool:
        return kernel(x.data_ptr(), *rest, step, address, moments) == 0

    return run
