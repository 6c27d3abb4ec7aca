"""`aside(model)`: run a model once more, for its counts alone, and leave no trace of it.

What a forward pass may write is put back: buffers, what modules keep in plain attributes, random state. What lies
outside of the model (files, global variables, objects of the user's own inside attributes) is not.
"""

from __future__ import annotations

import contextlib
import copy
import random
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_CONTAINERS = (dict, OrderedDict, defaultdict, list, set, deque)
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)


@contextlib.contextmanager
def aside(model: nn.Module, *, grad: bool = False) -> Iterator[None]:
    """Put back all that running the model writes; gradients are not recorded unless `grad`."""
    cached = torch.is_autocast_cache_enabled()
    put_back = _Written(model)
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=_devices(model)), torch.set_grad_enabled(grad), _saving_nowhere(grad):
            # A weight cast without gradients, and kept by autocast, would cost the real pass its gradient.
            torch.set_autocast_cache_enabled(False)
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        put_back()


def _saving_nowhere(grad: bool) -> contextlib.AbstractContextManager[object]:
    """What autograd saves here is of no concern to a checkpoint around it, which counts what is saved within."""
    if not grad or not torch._C._autograd._saved_tensors_hooks_is_enabled():  # type: ignore[attr-defined]
        return contextlib.nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)


class _Written:
    """What the modules of a model hold, but for the values of its parameters; calling it puts that back."""

    def __init__(self, model: nn.Module) -> None:
        self._held: list[tuple[Any, Any]] = []
        self._tensors: dict[int, tuple[Tensor, Tensor]] = {}
        self._generators: list[tuple[torch.Generator, Tensor]] = []
        for module in model.modules():
            if not isinstance(module, torch.jit.ScriptModule):
                self._keep(module.__dict__)
        for buffer in model.buffers():
            self._keep(buffer)

    def _keep(self, value: Any, depth: int = 3) -> None:
        if isinstance(value, Tensor):
            if not isinstance(value, nn.Parameter) and value.layout is torch.strided and not value.is_meta:
                self._tensors.setdefault(id(value), (value, value.detach().clone()))
        elif isinstance(value, torch.Generator):
            self._generators.append((value, value.get_state()))
        elif type(value) in _CONTAINERS and depth:
            self._held.append((value, copy.copy(value)))
            for item in list(value.values()) if isinstance(value, dict) else list(value):
                self._keep(item, depth - 1)

    def __call__(self) -> None:
        for held, before in self._held:
            if not _same(held, before):
                held.clear()
                held.update(before) if isinstance(held, dict | set) else held.extend(before)
        for tensor, value in self._tensors.values():
            # Through `.data`, as autograd must not take this for a change of what it has saved.
            if tensor.shape != value.shape or not torch.equal(tensor, value):
                with torch.no_grad():
                    if tensor.shape != value.shape:
                        tensor.resize_(value.shape)
                    tensor.data.copy_(value)
        for generator, state in self._generators:
            generator.set_state(state)


def _same(held: Any, before: Any) -> bool:
    if len(held) != len(before):
        return False
    if isinstance(held, dict):
        return all(a is b and held[a] is before[b] for a, b in zip(held, before, strict=True))
    if isinstance(held, set):
        return {id(a) for a in held} == {id(b) for b in before}
    return all(a is b for a, b in zip(held, before, strict=True))


def copied(value: Any, memo: dict[int, Any] | None = None) -> Any:
    """Arguments of a model that may be written to: tensors copied, what holds them rebuilt, all else as it is."""
    memo = {} if memo is None else memo
    if id(value) in memo:
        return memo[id(value)]
    new: Any
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Tensor):
        with torch.no_grad():
            new = value.detach().clone().requires_grad_(value.requires_grad)
    elif isinstance(value, tuple):
        items = [copied(v, memo) for v in value]
        new = type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    elif type(value) is list:
        new = [copied(v, memo) for v in value]
    elif type(value) is dict:
        new = {k: copied(v, memo) for k, v in value.items()}
    elif isinstance(value, nn.Module) or callable(value):
        return value
    else:
        new = _copied_object(value, memo)
    memo[id(value)] = new
    return new


def _copied_object(value: Any, memo: dict[int, Any]) -> Any:
    """An object of some class, such as a cache of keys and values: what it holds is copied too."""
    try:
        new = copy.copy(value)
        if hasattr(new, "__dict__"):
            new.__dict__.update({k: copied(v, memo) for k, v in value.__dict__.items()})
        if isinstance(new, dict):
            new.update({k: copied(v, memo) for k, v in value.items()})
    except Exception:
        return value
    return new


def _devices(model: nn.Module) -> list[torch.device]:
    return list({p.device for p in model.parameters() if p.device.type == "cuda"})
