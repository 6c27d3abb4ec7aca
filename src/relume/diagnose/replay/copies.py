"""`Copies`: a model and its optimizers once more, apart from the live ones: tensors, attributes, a person's hooks."""

from __future__ import annotations

import copy
import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from relume.diagnose.replay.snapshot import State
from relume.errors import RelumeError
from relume.watch.calls import Hook

_HOOKS = (
    "_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks",
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip


class Copies:
    """Of a training, for one replay.

    Args:
        model: the live one.
        optimizers: the live ones.
        shared: what is not to be copied though something leads to it.

    Attributes:
        model, optimizers: the copies. Hooks of relume's are not among theirs; a person's functions are copied with
            what they have closed over, so that they leave the live objects alone.
        state: the tensors of the copies.

    Raises:
        RelumeError: something of it can't be copied.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer], shared: Sequence[Any] = ()) -> None:
        memo: dict[int, Any] = {id(thing): thing for thing in shared}
        _spare(model, memo)
        try:
            self.model: nn.Module = copy.deepcopy(model, memo)
            self.optimizers: tuple[Optimizer, ...] = copy.deepcopy(tuple(optimizers), memo)
        except Exception as error:
            raise RelumeError(f"it can't be copied ({type(error).__name__}: {error})") from error
        for module in self.model.modules():
            for name in _HOOKS:
                hooks: dict[int, Any] = vars(module).get(name) or {}
                for key, hook in list(hooks.items()):
                    hooks[key] = isolated(hook, memo)
        for tensor in (*model.parameters(), *model.buffers()):
            _hooks_of_tensor(tensor, memo)
        self.memo = memo
        self.state = State.of(self.model, self.optimizers)


def _spare(model: nn.Module, memo: dict[int, Any]) -> None:
    """What torch can't copy, or what should not come along."""
    for module in model.modules():
        for name in _HOOKS:
            for hook in (vars(module).get(name) or {}).values():
                if isinstance(hook, Hook) or isinstance(getattr(hook, "hook", None), Hook):
                    memo[id(hook)] = _nothing
        for attribute in vars(module).values():
            if isinstance(attribute, Tensor) and attribute.grad_fn is not None:
                memo[id(attribute)] = attribute.detach().clone()
            elif isinstance(attribute, torch.Generator):
                memo[id(attribute)] = attribute.clone_state()


def _nothing(*args: Any, **kwargs: Any) -> None:
    """In the place of a hook of relume's."""


def _hooks_of_tensor(tensor: Tensor, memo: dict[int, Any]) -> None:
    copied = memo.get(id(tensor))
    if not isinstance(copied, Tensor):
        return
    for hook in list((tensor._backward_hooks or {}).values()):
        copied.register_hook(isolated(hook, memo))
    for hook in list((getattr(tensor, "_post_accumulate_grad_hooks", None) or {}).values()):
        copied.register_post_accumulate_grad_hook(isolated(hook, memo))


def isolated(function: Any, memo: dict[int, Any]) -> Any:
    """A function with copies of what it has closed over; what can't be copied it shares."""
    if not isinstance(function, types.FunctionType) or not function.__closure__:
        return function
    cells = []
    for cell in function.__closure__:
        try:
            cells.append(types.CellType(copy.deepcopy(cell.cell_contents, memo)))
        except Exception:  # empty, or not to be copied
            cells.append(cell)
    own = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, tuple(cells)
    )
    own.__kwdefaults__ = function.__kwdefaults__
    return own
