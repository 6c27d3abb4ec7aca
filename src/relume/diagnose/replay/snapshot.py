"""`Snapshot`: all that a training stands on at one moment: weights, buffers, gradients, optimizers, random state.

`State` names the tensors that it is about; the copies of a replay have the same names.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from relume.diagnose.replay.surroundings import RandomState
from relume.diagnose.replay.tape import plain

_PLAIN = (int, float, bool, str, type(None))


@dataclass(frozen=True, eq=False)
class State:
    """The tensors that a training changes, and where they are.

    Attributes:
        names: "p:layer.weight", "b:norm.running_mean"; "o:0.1" is the second of an optimizer's own.
        tensors: in the same order.
        modules: of the model, in the order of `named_modules`.
    """

    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    modules: tuple[nn.Module, ...]

    @classmethod
    def of(cls, model: nn.Module, optimizers: Sequence[Optimizer]) -> State:
        """Parameters and buffers of the model, then what its optimizers train beside."""
        found: dict[int, tuple[str, Tensor]] = {}
        for name, parameter in model.named_parameters():
            found.setdefault(id(parameter), (f"p:{name}", parameter))
        for name, buffer in model.named_buffers():
            found.setdefault(id(buffer), (f"b:{name}", buffer))
        for i, optimizer in enumerate(optimizers):
            others = [p for group in optimizer.param_groups for p in group["params"]]
            for j, parameter in enumerate(others):
                found.setdefault(id(parameter), (f"o:{i}.{j}", parameter))
        names, tensors = zip(*found.values(), strict=True) if found else ((), ())
        return cls(names, tensors, tuple(model.modules()))

    @property
    def lazy(self) -> bool:
        """Are there tensors without numbers yet?"""
        return any(is_lazy(t) or t.is_meta for t in self.tensors)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Copies of what a `State` names, and of what else a training stands on.

    Attributes:
        names: of the state.
        values: its tensors, detached.
        grads: of each, None where there is none.
        needs: does each require a gradient?
        optimizers: per optimizer, settings of its groups and, by number in `names`, the state of each parameter.
        plain: per module, its plain attributes (counters and the like).
        random: random state.
    """

    names: tuple[str, ...]
    values: tuple[Tensor, ...]
    grads: tuple[Tensor | None, ...]
    needs: tuple[bool, ...]
    optimizers: tuple[tuple[list[dict[str, Any]], dict[int, dict[str, Any]]], ...]
    plain: tuple[dict[str, Any], ...]
    random: RandomState

    @classmethod
    def take(cls, state: State, optimizers: Sequence[Optimizer], cuda: tuple[int, ...]) -> Snapshot:
        """Copy all of it, on the devices where it is."""
        number = {id(t): i for i, t in enumerate(state.tensors)}
        with torch.no_grad():
            values = tuple(t.detach().clone() for t in state.tensors)
            grads = tuple(None if not t.is_leaf or t.grad is None else t.grad.detach().clone() for t in state.tensors)
            kept = tuple(
                (
                    [plain(group) for group in optimizer.param_groups],
                    {
                        number[id(p)]: {key: _copied(v) for key, v in own.items()}
                        for p, own in optimizer.state.items()
                        if id(p) in number
                    },
                )
                for optimizer in optimizers
            )
        own = tuple({k: v for k, v in vars(m).items() if isinstance(v, _PLAIN)} for m in state.modules)
        needs = tuple(t.requires_grad for t in state.tensors)
        return cls(state.names, values, grads, needs, kept, own, RandomState.now(cuda))

    def restore(self, state: State, optimizers: Sequence[Optimizer]) -> None:
        """Make a state, that of a copy, what it was here."""
        with torch.no_grad():
            for tensor, value, grad, needs in zip(state.tensors, self.values, self.grads, self.needs, strict=True):
                if tensor.shape != value.shape or tensor.dtype != value.dtype:
                    tensor.data = value.clone()
                else:
                    tensor.copy_(value)
                if tensor.is_leaf:
                    tensor.requires_grad_(needs)
                    tensor.grad = None if grad is None else grad.clone()
        for optimizer, (groups, own) in zip(optimizers, self.optimizers, strict=True):
            for group, settings in zip(optimizer.param_groups, groups, strict=True):
                group.update(plain(settings))
            optimizer.state.clear()
            for i, values in own.items():
                optimizer.state[state.tensors[i]] = {key: _copied(v) for key, v in values.items()}
        for module, attributes in zip(state.modules, self.plain, strict=True):
            for name, attribute in attributes.items():
                if vars(module).get(name) != attribute:
                    vars(module)[name] = attribute

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        tensors = [*self.values, *(g for g in self.grads if g is not None)]
        for _, own in self.optimizers:
            tensors += [v for values in own.values() for v in values.values() if isinstance(v, Tensor)]
        return sum(t.numel() * t.element_size() for t in tensors) + RandomState.nbytes


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
