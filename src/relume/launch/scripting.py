"""A script may compile with TorchScript what relume watches; TorchScript takes hooks for part of the model."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from relume.watch.calls import Hook


def without_hooks() -> Callable[[], None]:
    """From now on relume's hooks are off a module while it is scripted; returns a function that ends this."""
    recursive = torch.jit._recursive
    create = recursive.create_script_module

    @functools.wraps(create)
    def create_script_module(nn_module: Any, *args: Any, **kwargs: Any) -> Any:
        with _aside(nn_module):
            return create(nn_module, *args, **kwargs)

    recursive.create_script_module = create_script_module

    def end() -> None:
        recursive.create_script_module = create

    return end


@contextlib.contextmanager
def _aside(module: Any) -> Iterator[None]:
    """Take relume's hooks off a module and all in it; put them back, in their places."""
    modules = list(module.modules()) if isinstance(module, nn.Module) else []
    kept = [(hooks, list(hooks.items())) for m in modules for hooks in (m._forward_pre_hooks, m._forward_hooks)]
    try:
        for hooks, items in kept:
            for key, hook in items:
                if isinstance(hook, Hook):
                    del hooks[key]
        yield
    finally:
        for hooks, items in kept:
            if len(hooks) != len(items):
                hooks.clear()
                hooks.update(items)
