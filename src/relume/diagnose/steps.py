"""What the optimizer did in recent steps: its settings, and per producer the gradient's norm and the step's size.

Kept in a ring of fixed length. A step's size is taken from a sample of each weight, at most 65,536 numbers of it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from relume.diagnose.listening import apart

SAMPLE = 65_536
ROWS = 512


@dataclass(frozen=True)
class Settings:
    """Of the parameter group that a producer's weight is in, at one step. NaN: the optimizer has no such setting.

    Attributes:
        optimizer: its class.
        lr, momentum, weight_decay, beta2: as the group says; for Adam, `momentum` is β₁.
        decays_bias: the bias is in a group with weight decay as well.
        decoupled: weight decay acts on the weights (AdamW) rather than on the gradient.
        scheduled: a scheduler has set the learning rate at some time.
    """

    optimizer: str
    lr: float
    momentum: float
    weight_decay: float
    beta2: float
    decays_bias: bool
    decoupled: bool
    scheduled: bool


@dataclass(frozen=True)
class StepRow:
    """One observed optimizer step; float32 on the weights' device, all 0-dimensional.

    Attributes:
        step: the number of optimizer steps before it.
        settings: by producer; missing where no optimizer that was given holds its weight.
        gradient: norm of the weight's gradient.
        weight: norm of the weight before the step.
        update: norm of what the step changed, divided by the norm of the weight, both of the sample.
    """

    step: int
    settings: Mapping[str, Settings]
    gradient: Mapping[str, Tensor]
    weight: Mapping[str, Tensor]
    update: Mapping[str, Tensor]


class Steps:
    """Recent steps of the producers of a model.

    Args:
        optimizers: those that train it; without one, steps are not seen.
        rows: how many steps are kept.
    """

    def __init__(self, optimizers: Sequence[Optimizer], rows: int = ROWS) -> None:
        self._optimizers = tuple(optimizers)
        self.rows: deque[StepRow] = deque(maxlen=rows)
        self._before: dict[str, tuple[nn.Module, Tensor, Tensor]] = {}

    def begin(self, producers: Iterable[tuple[str, nn.Module]]) -> None:
        """Keep a sample of each weight as it is before the step."""
        with apart():
            for name, module in producers:
                weight = getattr(module, "weight", None)
                if type(weight) is nn.Parameter and not is_lazy(weight):
                    self._before[name] = (module, _sample(weight).clone(), weight.detach().norm().float())

    def stepped(self, step: int) -> None:
        """Look at the step that has just been made; without a `begin` there is nothing to see."""
        before, self._before = self._before, {}
        if not before or not self._optimizers:  # without one, a step is a pass: nothing has been changed yet
            return
        settings, gradient, weights, update = {}, {}, {}, {}
        groups = self._groups()
        with apart():
            for name, (module, sample, norm) in before.items():
                weight: Any = module.weight
                own = settings_of(module, groups)
                if own is not None:
                    settings[name] = own
                if weight.grad is not None and not weight.grad.is_sparse:
                    gradient[name] = weight.grad.norm().float()
                weights[name] = norm
                now = _sample(weight)
                if now.shape == sample.shape:
                    update[name] = ((now - sample).norm() / sample.norm().clamp(min=1e-30)).float()
        self.rows.append(StepRow(step, settings, gradient, weights, update))

    def _groups(self) -> dict[int, tuple[Optimizer, dict[str, Any]]]:
        return {id(p): (o, group) for o in self._optimizers for group in o.param_groups for p in group["params"]}

    def numbers(self, producer: str, what: str) -> tuple[list[int], list[float]]:
        """Steps, and at each the gradient, weight or update of a producer; NaN where there was none."""
        chosen = [(row.step, getattr(row, what).get(producer)) for row in self.rows]
        return [s for s, _ in chosen], [math.nan if v is None else float(v) for _, v in chosen]

    def settings(self, producer: str, step: int | None = None) -> Settings | None:
        """Of a producer at the last observed step not after `step`; None where no optimizer is known to hold it."""
        found = None
        for row in self.rows:
            if step is not None and row.step > step and found is not None:
                break
            found = row.settings.get(producer, found)
        return found


def settings_of(module: nn.Module, groups: Mapping[int, tuple[Optimizer, dict[str, Any]]]) -> Settings | None:
    """Settings of the group that holds the module's weight, out of groups by `id` of the parameter."""
    held = groups.get(id(getattr(module, "weight", None)))
    if held is None:
        return None
    optimizer, group = held
    bias = getattr(module, "bias", None)
    _, of_bias = groups.get(id(bias), (None, {})) if bias is not None else (None, {})
    betas = group.get("betas", (math.nan, math.nan))
    return Settings(
        optimizer=type(optimizer).__name__,
        lr=_number(group.get("lr")),
        momentum=_number(group.get("momentum", betas[0])),
        weight_decay=_number(group.get("weight_decay", 0.0)),
        beta2=_number(betas[1]),
        decays_bias=bool(of_bias.get("weight_decay", 0.0)),
        decoupled=bool(group.get("decoupled_weight_decay", type(optimizer).__name__ == "AdamW")),
        scheduled="initial_lr" in group,
    )


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _sample(weight: Tensor) -> Tensor:
    # A view of whole entries; evenly spaced, so that every row is among them.
    flat = weight.detach().reshape(-1)
    return flat[:: max(1, -(-flat.numel() // SAMPLE))]
