"""`Parameters`: those of all members in one flat tensor, each with its member's learning rate, stepped by few calls.

The arithmetic is that of torch.optim, in the same order; only learning rates are tensors here and numbers there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from relume.lab.member import Member

_MOMENTUM, _BETA1, _BETA2, _EPS = 0.9, 0.9, 0.999, 1e-8


class Parameters:
    """The parameters of members that are trained together.

    `add` them all, `close`, then read them by number: leaves of the autograd graph, which share the flat tensor's
    memory. `step(loss)` is backward and the optimizer's step.

    Args:
        members: in the order in which their parameters are stacked; all of one optimizer.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = members
        self._given: list[tuple[Tensor, slice]] = []
        self._leaves: list[Tensor] = []
        self._steps = 0

    def add(self, stacked: Tensor, members: slice = slice(None)) -> int:
        """Take a parameter of some members, [members, …]; returns its number."""
        self._given.append((stacked.detach(), members))
        return len(self._given) - 1

    def close(self) -> None:
        """All have been added."""
        self._flat = torch.cat([values.reshape(-1) for values, _ in self._given])
        self._grad = torch.empty_like(self._flat)
        self._slow_lr = -self._spread("lr")
        decays = {m.weight_decay for m in self._members}
        self._decay = None if decays == {0.0} else self._spread("weight_decay")
        # The optimizer's memory: momentum, or Adam's two moments.
        self._first = torch.zeros_like(self._flat)
        self._second = torch.zeros_like(self._flat)
        start = 0
        for values, _ in self._given:
            leaf = self._flat[start : start + values.numel()].view(values.shape).detach()
            self._leaves.append(leaf.requires_grad_())
            start += values.numel()

    def _spread(self, setting: str) -> Tensor:
        """A setting of each number's member, as long as the flat tensor."""
        of_member = torch.tensor([getattr(m, setting) for m in self._members], dtype=self._flat.dtype)
        return torch.cat([of_member[members].repeat_interleave(values[0].numel()) for values, members in self._given])

    def __getitem__(self, number: int) -> Tensor:
        return self._leaves[number]

    def step(self, loss: Tensor) -> None:
        """Lower a sum of the members' losses by one step of the optimizer."""
        grads = torch.autograd.grad(loss, self._leaves)
        with torch.no_grad():
            torch.cat([g.reshape(-1) for g in grads], out=self._grad)
            self._steps += 1
            _STEPS[self._members[0].optimizer](self)

    def _decayed(self) -> Tensor:
        return self._grad if self._decay is None else self._grad.addcmul_(self._flat, self._decay)

    def _sgd(self) -> None:
        self._flat.addcmul_(self._decayed(), self._slow_lr)

    def _momentum(self) -> None:
        self._flat.addcmul_(self._first.mul_(_MOMENTUM).add_(self._decayed()), self._slow_lr)

    def _adam(self) -> None:
        self._adams(self._decayed())

    def _adamw(self) -> None:
        if self._decay is not None:
            self._flat.mul_(1 + self._slow_lr * self._decay)
        self._adams(self._grad)

    def _adams(self, grad: Tensor) -> None:
        self._first.lerp_(grad, 1 - _BETA1)
        self._second.mul_(_BETA2).addcmul_(grad, grad, value=1 - _BETA2)
        root = (self._second.sqrt() / (1 - _BETA2**self._steps) ** 0.5).add_(_EPS)
        move = torch.div(self._first, root, out=root).mul_(self._slow_lr)
        self._flat.add_(move, alpha=1 / (1 - _BETA1**self._steps))


_STEPS = {
    "sgd": Parameters._sgd,
    "momentum": Parameters._momentum,
    "adam": Parameters._adam,
    "adamw": Parameters._adamw,
}
