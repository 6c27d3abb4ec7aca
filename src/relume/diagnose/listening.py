"""`Listening`: hears the calls of producers and normalizations during one forward pass, and what each was given.

Hooks hang on those modules while the pass lasts and never longer. They read: means of inputs and the products of
weights with them, with one pass over the weights per call. What other threads call is not heard.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from relume.diagnose.normalization import NORMS, Norm, norm_of
from relume.diagnose.producer import Unknown, matrix, mean_input, why_unknown
from relume.sites import transforms

_PRODUCERS = (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding, nn.EmbeddingBag)
_PLAIN = (Tensor, nn.Parameter)
_EXACT = (torch.float32, torch.float64)
_AUTOCAST = ("cpu", "cuda", "xpu", "mps")


class Memory:
    """Mean inputs of one call of a producer, in the pass that goes on and in the latest before it that had this call.

    Attributes:
        rows: [groups, 2, k], as precise as the weights, in float32 at least.
        at: which of the two is of the pass that goes on.
        passes: number of the pass that each is of; -1: none.
    """

    __slots__ = ("_slots", "at", "passes", "rows")

    def __init__(self, groups: int, k: int, like: Tensor) -> None:
        self.rows = torch.zeros(groups, 2, k, dtype=like.dtype, device=like.device)
        self._slots = self.rows.unbind(1)
        self.at = 0
        self.passes = [-1, -1]

    def fits(self, groups: int, k: int, like: Tensor) -> bool:
        return self.rows.shape == (groups, 2, k) and self.rows.dtype == like.dtype and self.rows.device == like.device

    def turn(self, number: int) -> Tensor:
        """Where the mean input of the pass of this number goes, [groups, k]."""
        self.at = 1 - self.at
        self.passes[self.at] = number
        return self._slots[self.at]

    @property
    def before(self) -> int:
        """Number of the earlier pass."""
        return self.passes[1 - self.at]


class Heard(NamedTuple):
    """One call of a producer.

    Attributes:
        name: dotted name of the module.
        module: the module.
        units: what it gives out.
        responses: [2, units], the weights as they are now times the mean input of this pass, and of the same call in
            the pass `before`.
        before: number of that pass; -1: there was none, and the second row means nothing.
    """

    name: str
    module: nn.Module
    units: int
    responses: Tensor
    before: int

    @property
    def bias(self) -> Tensor | None:
        """[units]"""
        own = getattr(self.module, "bias", None)
        return own.detach() if isinstance(own, Tensor) else None


class Chain(NamedTuple):
    """What made one tensor: a producer's call, and the normalization after it, if there is one, with its name."""

    heard: Heard | Unknown
    norm: Norm | Unknown | None = None
    norm_name: str = ""


class Listening:
    """One pass of a model, from `open` to `close`.

    Args:
        modules: by dotted name; those that are neither producers nor normalizations are left alone.
        number: of the pass.
        memories: mean inputs of passes before, by name of the producer and number of its call; they are kept there.
        failed: called with an error of relume's own, which must not end the model's pass.
    """

    def __init__(
        self,
        modules: Iterable[tuple[str, nn.Module]],
        number: int,
        memories: dict[tuple[str, int], Memory],
        failed: Callable[[Exception], None],
    ) -> None:
        self.calls: dict[str, list[Heard | Unknown]] = {}
        self.norms: dict[str, list[Norm | Unknown]] = {}
        self._chains: dict[int, tuple[weakref.ref[Tensor], Chain]] = {}
        self._number = number
        self._memories = memories
        self._failed = failed
        self._handles: list[Any] = []
        self.modules = modules
        self._thread = threading.get_ident()

    def open(self) -> None:
        """Hang the hooks; they come after those that are there, so they see what the user's leave."""
        for name, module in self.modules:
            if is_producer(module):
                self._handles.append(module.register_forward_hook(self._hook(self._produced, name)))
            elif isinstance(module, NORMS):
                self._handles.append(module.register_forward_hook(self._hook(self._normed, name)))

    def close(self) -> None:
        """Take the hooks off. Idempotent."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def chain(self, x: Tensor) -> Chain | None:
        """What made this very tensor in this pass, if it came straight from a module that was heard."""
        held = self._chains.get(id(x))
        return held[1] if held is not None and held[0]() is x else None

    def _hook(self, hear: Callable[[str, nn.Module, tuple[Any, ...], Any], None], name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            if threading.get_ident() != self._thread or not self._handles:
                return
            try:
                with apart():
                    hear(name, module, args, out)
            except Exception as error:
                self._failed(error)

        return hook

    def _produced(self, name: str, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        calls = self.calls.setdefault(name, [])
        heard = self._hear(name, len(calls), module, args, out)
        calls.append(heard)
        self._remember(out, Chain(heard))

    def _hear(self, name: str, call: int, module: nn.Module, args: tuple[Any, ...], out: Any) -> Heard | Unknown:
        plain = type(module) is nn.Linear and "parametrizations" not in module._modules
        unknown = None if plain else why_unknown(module)
        if unknown is not None:
            return unknown
        weight: Any = module.weight
        if type(weight) not in _PLAIN:
            return Unknown(f"unknown producer: the weight of '{name}' is a {type(weight).__name__}")
        if type(out) is not Tensor:
            return Unknown(f"unknown producer: '{name}' gave out a {type(out).__name__}")
        x: Any = args[0] if args else None
        if transforms.wraps(weight) or (isinstance(x, Tensor) and transforms.wraps(x)):
            return Unknown(f"unknown producer: '{name}' runs inside a transform of torch.func")
        if plain and type(x) in _PLAIN and x.numel() and x.dtype is weight.dtype and x.dtype in _EXACT:
            # As `mean_input` has it, written to where it is kept.
            memory = self._memory(name, call, 1, weight.shape[1], weight)
            rows = x.detach() if x.dim() == 2 else x.detach().reshape(-1, x.shape[-1])
            torch.sum(rows, 0, keepdim=True, out=memory.turn(self._number)).mul_(1 / rows.shape[0])
            found = torch.mm(memory.rows[0], weight.detach().t())
        else:
            mean = mean_input(module, args, out)
            if isinstance(mean, Unknown):
                return mean
            weights = matrix(module)
            memory = self._memory(name, call, weights.shape[0], weights.shape[2], weights)
            memory.turn(self._number).copy_(mean)
            found = torch.bmm(memory.rows, weights.mT).transpose(0, 1).flatten(1)
        return Heard(name, module, found.shape[1], found.flip(0) if memory.at else found, memory.before)

    def _memory(self, name: str, call: int, groups: int, k: int, like: Tensor) -> Memory:
        memory = self._memories.get((name, call))
        if memory is None or not memory.fits(groups, k, like):
            memory = self._memories[name, call] = Memory(groups, k, like)
        return memory

    def _normed(self, name: str, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        if not args or type(args[0]) is not Tensor:
            return
        if transforms.wraps(args[0]):
            return
        norm = norm_of(module, args[0], out if type(out) is Tensor else None)
        self.norms.setdefault(name, []).append(norm)
        chain = self.chain(args[0])
        if chain is not None and chain.norm is None:
            self._remember(out, Chain(chain.heard, norm, name))

    def _remember(self, out: Any, chain: Chain) -> None:
        if isinstance(out, Tensor):
            self._chains[id(out)] = (weakref.ref(out), chain)


class apart:  # noqa: N801
    """Compute apart from autograd, autocast, torch.func's transforms and every torch function mode."""

    __slots__ = ("_grad", "_held", "_without")

    def __enter__(self) -> None:
        self._grad = torch.is_grad_enabled()
        self._without = torch._C.DisableTorchFunction()
        self._without.__enter__()
        torch._C._set_grad_enabled(False)
        held: list[Any] = [torch.autocast(k, enabled=False) for k in _AUTOCAST if torch.is_autocast_enabled(k)]
        if transforms.transformed():
            held.append(transforms.outside())
        self._held = held
        for context in held:
            context.__enter__()

    def __exit__(self, *error: object) -> None:
        for context in reversed(self._held):
            context.__exit__(None, None, None)
        torch._C._set_grad_enabled(self._grad)
        self._without.__exit__(None, None, None)


def is_producer(module: nn.Module) -> bool:
    """Is it of a kind that is listened to?"""
    return isinstance(module, _PRODUCERS)
