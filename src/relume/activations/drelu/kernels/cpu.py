"""Loads and calls `drelu.cpp`, built at first use with the machine's own compiler (see `relume.native`).

It runs on torch's own pool of threads, of the number that torch is set to: a pool of its own would have to wait for
torch's, whose threads hold on to their cores for a while after each operation.
"""

from __future__ import annotations

import ctypes
import functools
import glob
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relume.activations.drelu.layout import Layout
from relume.native import FLAGS, BuildError, library

_SOURCE = Path(__file__).with_name("drelu.cpp")
_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


@functools.cache
def load() -> tuple[Any, Any, Any] | None:
    """The library's forward, backward and move; None where there is no library: `reason()` says why."""
    try:
        built = library(_SOURCE, (*FLAGS, "-O2"))
        forward, backward, move = built.relume_drelu_forward, built.relume_drelu_backward, built.relume_drelu_move
    except (BuildError, AttributeError) as error:
        _said.append(str(error))
        return None
    number, size, address = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
    start: list[Any] = [number, size, size, size, number, number]
    values: list[Any] = [address, size, address, size, address]
    forward.argtypes = [*start, address, address, *values]
    backward.argtypes = [*start, address, address, address, *values]
    move.argtypes = [address, address, address, size, ctypes.c_double, ctypes.c_double]
    forward.restype = backward.restype = move.restype = None
    use_threads = built.relume_drelu_threads
    use_threads.argtypes = [ctypes.c_void_p] * 2
    use_threads.restype = None
    pool = _pool()
    if pool is not None:
        use_threads(*pool)
    return forward, backward, move


_said: list[str] = []


def reason() -> str:
    """Why `load` gave None; empty when it did not."""
    return _said[0] if load() is None and _said else ""


@functools.cache
def _pool() -> tuple[ctypes.c_void_p, ctypes.c_void_p] | None:
    """GOMP_parallel and omp_get_thread_num of the OpenMP library that torch was linked with; None: one thread."""
    for path in glob.glob(os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cpu.*")):
        try:
            torch_cpu = ctypes.CDLL(path)  # already loaded; names are looked up in what it depends on, too
            pair = (torch_cpu.GOMP_parallel, torch_cpu.omp_get_thread_num)
        except (OSError, AttributeError):
            continue
        return ctypes.cast(pair[0], ctypes.c_void_p), ctypes.cast(pair[1], ctypes.c_void_p)
    return None


def threads() -> int:
    """How many it takes at most."""
    return torch.get_num_threads() if _pool() is not None else 1


def forward(
    x: Tensor, y: Tensor, layout: Layout, tau: Tensor, alpha: Tensor, form: str, statistics: Tensor | None
) -> None:
    """Write f(x) into y, and the batch's statistics, if wanted, into float64 [2, channels].

    Args:
        x: without gaps.
        y: as x, and with its strides.
        layout: of both.
        tau: contiguous, one value or one per channel; float64 where x is, else float32; alpha alike.
    """
    run, _, _ = load()  # type: ignore[misc]
    run(
        _CODES[x.dtype], *layout, torch.get_num_threads(), form != "rational", x.data_ptr(), y.data_ptr(),
        tau.data_ptr(), tau.numel(), alpha.data_ptr(), alpha.numel(),
        None if statistics is None else statistics.data_ptr(),
    )  # fmt: skip


def backward(
    g: Tensor, kept: Tensor, dx: Tensor, layout: Layout, tau: Tensor, alpha: Tensor, form: str, sums: Tensor | None
) -> None:
    """Write g f'(x) into dx, and the gradients of τ and α, if wanted, into float64 [2, channels]."""
    _, run, _ = load()  # type: ignore[misc]
    run(
        _CODES[kept.dtype], *layout, torch.get_num_threads(), form != "rational", g.data_ptr(), kept.data_ptr(),
        dx.data_ptr(), tau.data_ptr(), tau.numel(), alpha.data_ptr(), alpha.numel(),
        None if sums is None else sums.data_ptr(),
    )  # fmt: skip


def move(tau: Tensor, batches: Tensor, batch: Tensor, momentum: float, least: float) -> bool:
    """`statistics.moved` in place: float32 τ, float64 batch. False, with nothing done, where it can't."""
    loaded = load()
    if loaded is None or not (tau.is_cpu and tau.dtype == torch.float32 and batch.dtype == torch.float64):
        return False
    if not (tau.is_contiguous() and batches.is_contiguous()):
        return False
    loaded[2](batch.data_ptr(), tau.data_ptr(), batches.data_ptr(), tau.numel(), momentum, least)
    torch.autograd.graph.increment_version(tau)
    return True
