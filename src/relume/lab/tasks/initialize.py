"""Initializations of `relume.init` by name, drawn by a seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import relume.init as init

# By name: does it draw? What does it look at? "torch" leaves a model as it was built.
_BY_NAME: dict[str, Callable[[nn.Module, Tensor, torch.Generator], Any]] = {
    "torch": lambda model, x, generator: None,
    "he": lambda model, x, generator: init.he_(model, x, generator=generator),
    "glorot": lambda model, x, generator: init.glorot_(model, x, generator=generator),
    "orthogonal": lambda model, x, generator: init.orthogonal_(model, x, generator=generator),
    "lsuv": lambda model, x, generator: init.lsuv_(model, x, generator=generator),
    "rai": lambda model, x, generator: init.rai_(model, x, generator=generator),
    "zero": lambda model, x, generator: init.zero_(model),
    "identity": lambda model, x, generator: init.identity_(model),
}
INITS = tuple(_BY_NAME)


def initialize(model: nn.Module, name: str, x: Tensor, seed: int) -> None:
    """Give a model its initial weights.

    Args:
        name: one of `INITS`.
        x: inputs to look at.
        seed: of what is drawn.

    Raises:
        ValueError: there is no such initialization.
    """
    if name not in _BY_NAME:
        raise ValueError(f"init is one of {', '.join(INITS)}, not {name!r}")
    _BY_NAME[name](model, x, torch.Generator().manual_seed(seed))
