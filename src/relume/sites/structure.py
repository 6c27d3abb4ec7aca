"""`Structure`: the names of a model's modules and parameters, kept for as long as the model stays as it is.

Walking a model costs more than a small forward pass; finding out that nothing has changed costs little.
"""

from __future__ import annotations

from torch import nn


class Structure:
    """Names by identity, of one model as it was when this was made.

    Attributes:
        modules: dotted name by `id(module)`; "" is the root. A module that is registered twice has its first name.
        parameters: dotted name by `id(parameter)`.
        flat: all modules, each once.
    """

    def __init__(self, model: nn.Module) -> None:
        named = [(_plain(name), module) for name, module in model.named_modules()]
        self.modules = {id(m): name for name, m in named}
        self.flat = [m for _, m in named]
        self.parameters: dict[int, str] = {}
        for name, module in named:
            for leaf, parameter in module._parameters.items():
                if parameter is not None:
                    self.parameters.setdefault(id(parameter), f"{name}.{leaf}" if name else leaf)
        self._slots = [_slots(m) for m in self.flat]

    def holds(self) -> bool:
        """Has every module still the same children and parameters in the same places?"""
        return all(_slots(m) == slots for m, slots in zip(self.flat, self._slots, strict=True))


def _plain(name: str) -> str:
    """A dotted name as it is before torch.compile wraps a module."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _slots(module: nn.Module) -> tuple[tuple[str, int], ...]:
    # A new object in the same place at the same address has the same name: that is all that is asked.
    return (
        *((name, id(m)) for name, m in module._modules.items()),
        *((name, id(p)) for name, p in module._parameters.items()),
    )
