"""`Held`: settings of an optimizer held lower while it makes a step, whatever a scheduler sets them to.

The learning rate is multiplied just before each step and put back just after, so that schedulers, which read and write
it between steps, go on as they would.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer


class Held:
    """Factors on learning rate and weight decay, and a limit on the gradient's norm, of one optimizer.

    Attributes:
        lr, decay: factors; 1 changes nothing.
        clip: the largest norm that the gradient of all its parameters may have; None clips nothing.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.lr = 1.0
        self.decay = 1.0
        self.clip: float | None = None
        self.optimizer = optimizer
        self._put_back: list[tuple[dict[str, Any], str, Any]] = []
        # Last of all: what others have hung there still sees the settings that the step was made with.
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    @property
    def idle(self) -> bool:
        return self.lr == 1 and self.decay == 1 and self.clip is None

    @property
    def rates(self) -> list[float]:
        """The learning rate that steps are made with, of each group."""
        factor = 1 if self._put_back else self.lr  # in the midst of a step it is in place
        return [float(group["lr"]) * factor for group in self.optimizer.param_groups if "lr" in group]

    @property
    def decays(self) -> bool:
        """Does any of its parameters decay?"""
        return any(float(group.get("weight_decay", 0)) != 0 for group in self.optimizer.param_groups)

    def release(self) -> None:
        """From now on the optimizer's own settings hold. Idempotent."""
        self._restore()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._restore()  # of a step that has failed
        if self.idle:
            return
        for group in optimizer.param_groups:
            for name, factor in (("lr", self.lr), ("weight_decay", self.decay)):
                if name in group:
                    self._put_back.append((group, name, group[name]))
                    group[name] = group[name] * factor
        # Gradients that are still scaled by a GradScaler (fused optimizers unscale by themselves) are not clipped.
        if self.clip is not None and getattr(optimizer, "grad_scale", None) is None:
            clipped = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            torch.nn.utils.clip_grad_norm_(clipped, self.clip)

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._restore()

    def _restore(self) -> None:
        for group, name, value in self._put_back:
            group[name] = value
        self._put_back = []
