"""A torch function mode that stays on torch's stack while a person's own modes come and go above it."""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode


def put_below(mode: TorchFunctionMode) -> None:
    """Put it at the bottom of this thread's stack: what others push above it, they pop themselves.

    What `torch.set_default_device` has pushed insists on the very bottom, and keeps it.
    """
    default = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    above = []
    while (stack := _get_current_function_mode_stack()) and stack[-1] is not default:
        above.append(_pop_mode())
    _push_mode(mode)
    for other in reversed(above):
        _push_mode(other)


def take_out(mode: TorchFunctionMode) -> bool:
    """Take it off this thread's stack, wherever it lies; False where it is not on it."""
    if not is_on(mode):
        return False
    above = []
    while (top := _pop_mode()) is not mode:
        above.append(top)
    for other in reversed(above):
        _push_mode(other)
    return True


def is_on(mode: TorchFunctionMode) -> bool:
    """Is it on this thread's stack?"""
    return any(other is mode for other in _get_current_function_mode_stack())
