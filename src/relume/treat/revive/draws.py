"""New weights from the distribution that a layer was first drawn from."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

INITS = ("own", "xavier", "he")


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """The global random state, drawn from a generator for as long as it lasts, then put back."""
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def fresh(model: nn.Module, name: str, generator: torch.Generator, *, init: str = "own", fan_in: int = 1) -> Tensor:
    """A whole parameter drawn anew, float32 on the CPU.

    Args:
        model: that has the parameter.
        name: of the parameter.
        generator: of what is drawn.
        init: "own" calls the layer's own `reset_parameters`, and where it has none draws as nn.Linear does, from
            U(−1/√fan_in, 1/√fan_in); "xavier" is Glorot's uniform, "he" He's normal with the gain of ReLU.
        fan_in: entries that make one row.
    """
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    parameter: Tensor = module._parameters[leaf]  # type: ignore[assignment]
    if init == "own":
        reset = getattr(type(module), "reset_parameters", None) or getattr(type(module), "_reset_parameters", None)
        if reset is not None:
            twin = _twin(module)
            with seeded(generator), torch.no_grad():
                reset(twin)
            return twin._parameters[leaf].detach()  # type: ignore[union-attr]
    value = torch.empty(parameter.shape)
    if init == "he":
        return value.normal_(0, math.sqrt(2 / fan_in), generator=generator)
    bound = 1 / math.sqrt(fan_in)
    if init == "xavier" and value.dim() >= 2:
        inputs, outputs = nn.init._calculate_fan_in_and_fan_out(value)
        bound = math.sqrt(6 / (inputs + outputs))
    return value.uniform_(-bound, bound, generator=generator)


def _twin(module: nn.Module) -> nn.Module:
    """A module of the same settings with parameters of its own."""
    twin = copy.copy(module)
    twin.__dict__ = dict(module.__dict__)
    twin._parameters = {
        k: None if p is None else nn.Parameter(torch.zeros(p.shape)) for k, p in module._parameters.items()
    }
    twin._buffers = {k: None if b is None else b.detach().clone() for k, b in module._buffers.items()}
    twin._modules = {k: None if m is None else _twin(m) for k, m in module._modules.items()}
    return twin
