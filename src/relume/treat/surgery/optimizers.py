"""What an optimizer remembers of single entries of a parameter, forgotten: moments to what they are at the start.

Counts of steps are kept per tensor, not per entry, and stay as they are. With an empty second moment, as in the
reference code of ReDo (Sokar et al. 2023), Adam's next steps would be those of a late step with empty moments: 3.2
times the learning rate at once and up to 6.6 times a few steps on, since nothing corrects for the start any more. So
second moments begin at the mean of the parameter's other entries.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from relume.errors import RelumeError
from relume.treat.surgery.edits import Edits

# Copies or averages of the weights themselves, by the names that optimizers give them: they follow the new weights.
_WEIGHTS = {
    "ax", "z", "master_param", "master_params", "master_weight", "fp32_param", "fp32_params", "param_fp32",
    "slow_param", "slow_params", "slow_buffer", "slow_weights", "cached_params", "anchor", "ema",
}  # fmt: skip
# Running means of squared gradients that steps are divided by.
_SECOND = {"exp_avg_sq", "max_exp_avg_sq", "square_avg"}
# Learning rates per entry, which start at the group's.
_RATES = {"step_size"}


def known_start(second_moments: str) -> str:
    """What second moments may begin as; ValueError for anything else."""
    if second_moments not in ("mean", "zero"):
        raise ValueError(f"second_moments is 'mean' or 'zero', not {second_moments!r}")
    return second_moments


def as_list(optimizer: Any) -> list[Any]:
    """None, one optimizer, or several; each unwrapped (accelerate's, for one)."""
    found = [] if optimizer is None else list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    for i, given in enumerate(found):
        while not hasattr(given, "param_groups") or (hasattr(given, "optimizer") and not hasattr(given, "state")):
            if not hasattr(given, "optimizer"):
                raise TypeError(f"optimizer= is a torch.optim.Optimizer or a list of them, not {type(given).__name__}")
            given = given.optimizer
        found[i] = given
    return found


class OptimizerStates:
    """The state that optimizers keep for a model's parameters.

    Args:
        model, optimizers: see there.
        second_moments: of entries that are reset: "mean" of the parameter's other entries, or "zero".

    Raises:
        RelumeError: an optimizer holds no parameter of the model, nor a copy of one.
        ValueError: another word for `second_moments`.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Any], second_moments: str = "mean") -> None:
        self._empty = known_start(second_moments) == "zero"
        self.optimizers = list(optimizers)
        self._held: dict[int, list[tuple[Any, int, Tensor]]] = {}
        self._names = {id(p): name for name, p in model.named_parameters()}
        parameters = list(model.parameters())
        own = {id(p) for p in parameters}
        for optimizer in self.optimizers:
            held = [(i, p) for i, group in enumerate(optimizer.param_groups) for p in group["params"]]
            matched = [(i, p, p) for i, p in held if id(p) in own]
            if not matched:
                matched = [(i, master, p) for i, master, p in _masters(held, parameters)]
            if not matched:
                raise RelumeError(
                    f"the optimizer ({type(optimizer).__name__}) holds no parameter of this {type(model).__name__}: "
                    "pass the optimizer that trains this model"
                )
            for group, kept, parameter in matched:
                self._held.setdefault(id(parameter), []).append((optimizer, group, kept))

    def holds(self, parameter: Tensor) -> bool:
        return id(parameter) in self._held

    def check(self, parameter: Tensor) -> None:
        """Raise unless what is kept for a parameter can be reset entry by entry.

        Raises:
            RelumeError: no optimizer holds it, or one keeps state of another form.
        """
        if not self.optimizers:
            return
        name = self._names.get(id(parameter), "a parameter")
        if id(parameter) not in self._held:
            kinds = ", ".join(type(o).__name__ for o in self.optimizers)
            raise RelumeError(
                f"'{name}' is to be rewritten, and no optimizer given ({kinds}) holds it, so that it would never "
                "learn: pass all optimizers of the model as a list, or leave its units out with units="
            )
        for optimizer, _, kept in self._held[id(parameter)]:
            kind = type(optimizer).__name__
            if kind == "LBFGS":
                raise RelumeError("LBFGS keeps a history of whole steps, which can't be reset entry by entry")
            for key, value in _state(optimizer, kept).items():
                if isinstance(value, list | tuple) and any(isinstance(v, Tensor) and v.numel() > 1 for v in value):
                    whole = False
                elif not isinstance(value, Tensor) or value.numel() <= 1 != kept.numel() <= 1:
                    continue
                else:
                    whole = value.shape == kept.shape and value.is_floating_point()
                if not whole and not (isinstance(value, Tensor) and value.numel() <= 1):
                    shape = list(value.shape) if isinstance(value, Tensor) else "a list of tensors"
                    raise RelumeError(
                        f"{kind} keeps '{key}' for '{name}' as {shape} ({getattr(value, 'dtype', '')}), not entry by "
                        "entry, so that the state of single units can't be reset: drop the state of the whole "
                        f"parameter (del optimizer.state[model.{name}]) or revive without optimizer="
                    )

    def copies(self, parameter: Tensor) -> dict[int, set[str]]:
        """By optimizer, the state that holds the very weights in higher precision: ask before they are written."""
        return {
            id(optimizer): {
                key
                for key, value in _state(optimizer, kept).items()
                if isinstance(value, Tensor) and value.shape == kept.shape and value.dtype != parameter.dtype
                and value.is_floating_point() and torch.equal(value.to(parameter), parameter) and parameter.any()
            }
            for optimizer, _, kept in self._held.get(id(parameter), ())
        }  # fmt: skip

    def reset(
        self, edits: Edits, parameter: Tensor, numbers: Tensor, copies: dict[int, set[str]] | None = None
    ) -> list[str]:
        """Forget what is kept of these entries; call it after their new values are written.

        Args:
            edits: to write by.
            parameter, numbers: the entries.
            copies: what `copies` said before.

        Returns:
            Names of what was reset, "Adam.exp_avg".
        """
        done = []
        copies = copies or {}
        for optimizer, group, kept in self._held.get(id(parameter), ()):
            if kept is not parameter:
                edits.write(kept, numbers, _entries(parameter, numbers))
                done.append(f"{type(optimizer).__name__} master copy")
            state = _state(optimizer, kept)
            for key, value in state.items():
                if not isinstance(value, Tensor) or value.shape != kept.shape or not value.is_floating_point():
                    continue
                if value.dim() == 0 and key == "step":
                    continue
                start: Tensor | float = 0.0
                if key in _WEIGHTS or key in copies.get(id(optimizer), ()):
                    start = _entries(parameter, numbers)
                elif key in _SECOND and not self._empty and "acc_delta" not in state:  # Adadelta's steps begin small
                    start = _usual(value, numbers)
                elif key in _RATES:
                    start = float(optimizer.param_groups[group]["lr"])
                elif key == "sum":
                    start = float(optimizer.param_groups[group].get("initial_accumulator_value", 0.0))

                def find(optimizer: Any = optimizer, kept: Tensor = kept, key: str = key) -> Tensor | None:
                    now = _state(optimizer, kept).get(key)
                    return now if isinstance(now, Tensor) and now.shape == kept.shape else None

                edits.write(value, numbers, start, find)
                done.append(f"{type(optimizer).__name__}.{key}")
        if parameter.grad is not None and parameter.grad.layout is torch.strided:
            edits.write(parameter.grad, numbers, 0.0, lambda: parameter.grad)
        return done


def _state(optimizer: Any, parameter: Tensor) -> dict[str, Any]:
    state = optimizer.state
    found = state.get(parameter, {}) if hasattr(state, "get") else {}
    return found if isinstance(found, dict) else {}


def _usual(moment: Tensor, numbers: Tensor) -> float:
    """Mean of the other entries, but for those of units that get no gradient and have none; 0 where all are such."""
    others = torch.ones(moment.shape, dtype=torch.bool, device=moment.device).flatten()
    others[numbers.to(moment.device)] = False
    known = moment.detach().flatten()[others]
    known = known[(known > 0) & known.isfinite()]
    return float(known.double().mean()) if len(known) else 0.0


def _entries(tensor: Tensor, numbers: Tensor) -> Tensor:
    flat = tensor.detach()
    return flat[torch.unravel_index(numbers.to(flat.device), flat.shape)] if flat.dim() else flat


def _masters(held: Sequence[tuple[int, Tensor]], parameters: Iterable[Tensor]) -> list[tuple[int, Tensor, Tensor]]:
    """Copies in higher precision that an optimizer holds in the place of the model's parameters, in their order."""
    trained = [p for p in parameters if p.requires_grad]
    if len(held) != len(trained):
        return []
    pairs = []
    for (group, master), parameter in zip(held, trained, strict=True):
        if master.shape != parameter.shape or master.dtype == parameter.dtype:
            return []
        if not torch.equal(master.detach().to(parameter.dtype), parameter.detach().to(master.device)):
            return []
        pairs.append((group, master, parameter))
    return pairs
