"""`Structure`: the names of a model's modules and parameters, kept for as long as the model stays as it is.

Walking a model costs more than a small forward pass; finding out that nothing has changed costs little.
"""

from __future__ import annotations

import torch
from torch import nn

from relume.activations import registry

# These leave a fused inference path, with other rounding, as soon as any torch function mode is active.
FUSED_IN_EVAL = (nn.TransformerEncoder, nn.TransformerEncoderLayer, nn.MultiheadAttention)
# These say by `batch_first` which axis of their input is the batch.
SEQUENCE_FIRST = (
    nn.RNNBase,
    nn.MultiheadAttention,
    nn.Transformer,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)


class Structure:
    """Names by identity, of one model as it was when this was made.

    Attributes:
        modules: dotted name by `id(module)`; "" is the root. A module that is registered twice has its first name.
        parameters: dotted name by `id(parameter)`.
        flat: all modules, each once.
        fused: those that torch may run by a fused path in evaluation.
        ordinary: `id` of those below the root whose calls say nothing but where torch's functions are called from.
    """

    def __init__(self, model: nn.Module) -> None:
        named = [(_plain(name), module) for name, module in model.named_modules()]
        self.modules = {id(m): name for name, m in named}
        self.flat = [m for _, m in named]
        self.fused = [m for m in self.flat if isinstance(m, FUSED_IN_EVAL)]
        self._registrations = registry.registrations()
        self.ordinary = {id(m) for m in self.flat if m is not model and _ordinary(m)}
        self.parameters: dict[int, str] = {}
        for name, module in named:
            for leaf, parameter in module._parameters.items():
                if parameter is not None:
                    self.parameters.setdefault(id(parameter), f"{name}.{leaf}" if name else leaf)
        self._slots = [_slots(m) for m in self.flat]

    def holds(self) -> bool:
        """Has every module still the same children and parameters in the same places, and is no activation new?"""
        return self._registrations == registry.registrations() and self._slots == [_slots(m) for m in self.flat]


def _ordinary(module: nn.Module) -> bool:
    special = isinstance(module, (torch.jit.ScriptModule, *SEQUENCE_FIRST))
    return not special and registry.registered_module(type(module)) is None


def _plain(name: str) -> str:
    """A dotted name as it is before torch.compile wraps a module."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _slots(module: nn.Module) -> tuple[object, ...]:
    # A new object in the same place at the same address has the same name: that is all that is asked.
    modules, parameters = module._modules, module._parameters
    return (*modules.keys(), *map(id, modules.values()), *parameters.keys(), *map(id, parameters.values()))
