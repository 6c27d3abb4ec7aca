"""`Listening`: hears the calls of producers and normalizations during one forward pass, and what each was given.

Hooks hang on those modules while the pass lasts and never longer. They read: means of inputs and the products of
weights with them, with one pass over the weights per call.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from relume.diagnose.normalization import NORMS, Norm, norm_of
from relume.diagnose.producer import Unknown, bias, matrix, mean_input, response, units_of, why_unknown

_PRODUCERS = (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding, nn.EmbeddingBag)


@dataclass(frozen=True)
class Heard:
    """One call of a producer; tensors are float64.

    Attributes:
        name: dotted name of the module.
        call: the how many-th call of it in the pass, from 0.
        units: what it gives out.
        mean_input: [groups, k].
        bias, response: [units].
        crossed: the weights as they are now times the mean input of the same call in the pass before, [units]; None in
            the first pass.
    """

    name: str
    call: int
    units: int
    mean_input: Tensor
    bias: Tensor
    response: Tensor
    crossed: Tensor | None


@dataclass(frozen=True)
class Chain:
    """What made one tensor: a producer's call, and the normalization after it, if there is one."""

    heard: Heard | Unknown
    norm: Norm | Unknown | None = None


class Listening:
    """One pass of a model, from `open` to `close`.

    Args:
        modules: by dotted name; those that are neither producers nor normalizations are left alone.
        before: mean inputs of the pass before, by name and call.
    """

    def __init__(self, modules: Iterable[tuple[str, nn.Module]], before: dict[tuple[str, int], Tensor]) -> None:
        self.calls: dict[str, list[Heard | Unknown]] = {}
        self.norms: dict[str, list[Norm | Unknown]] = {}
        self._chains: dict[int, tuple[weakref.ref[Tensor], Chain]] = {}
        self._before = before
        self._handles: list[Any] = []
        self._modules = modules

    def open(self) -> None:
        """Hang the hooks; they come after those that are there, so they see what the user's leave."""
        for name, module in self._modules:
            if is_producer(module):
                hook = self._producer(name)
            elif isinstance(module, NORMS):
                hook = self._norm(name)
            else:
                continue
            self._handles.append(module.register_forward_hook(hook))

    def close(self) -> None:
        """Take the hooks off. Idempotent."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def chain(self, x: Tensor) -> Chain | None:
        """What made this very tensor in this pass, if it came straight from a module that was heard."""
        held = self._chains.get(id(x))
        return held[1] if held is not None and held[0]() is x else None

    def _producer(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            with apart():
                calls = self.calls.setdefault(name, [])
                heard = self._hear(name, len(calls), module, args, out)
                calls.append(heard)
                self._remember(out, Chain(heard))

        return hook

    def _hear(self, name: str, call: int, module: nn.Module, args: tuple[Any, ...], out: Any) -> Heard | Unknown:
        unknown = why_unknown(module)
        if unknown is not None:
            return unknown
        if type(out) is not Tensor:
            return Unknown(f"unknown producer: '{name}' gave out a {type(out).__name__}")
        mean = mean_input(module, args, out)
        if isinstance(mean, Unknown):
            return mean
        weights, before = matrix(module), self._before.get((name, call))
        if before is None or before.shape != mean.shape or before.device != mean.device:
            (now,), crossed = response(weights, mean), None
        else:
            now, crossed = response(weights, mean, before)
        return Heard(name, call, units_of(module), mean, bias(module), now, crossed)

    def _norm(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            with apart():
                if not args or type(args[0]) is not Tensor:
                    return
                norm = norm_of(module, args[0])
                self.norms.setdefault(name, []).append(norm)
                chain = self.chain(args[0])
                if chain is not None and chain.norm is None:
                    self._remember(out, Chain(chain.heard, norm))

        return hook

    def _remember(self, out: Any, chain: Chain) -> None:
        if isinstance(out, Tensor):
            self._chains[id(out)] = (weakref.ref(out), chain)


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Compute apart from autograd and every torch function mode. (Autocast leaves float64 alone.)"""
    with torch._C.DisableTorchFunction(), torch.no_grad():
        yield


def is_producer(module: nn.Module) -> bool:
    """Is it of a kind that is listened to?"""
    return isinstance(module, _PRODUCERS)
