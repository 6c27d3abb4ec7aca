"""The layers of a model that can be initialised: their weights as matrices with a fan-in and a fan-out, their biases.

Finding them, refusing what holds no numbers, and writing to them (through a parametrization where there is one).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import chain
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from relume.errors import RelumeError
from relume.watch import arguments, compiled

Kind = Literal["linear", "conv", "transposed", "embedding", "attention", "recurrent"]
# Where a weight's input comes from: what the layer reads, something inside the layer, or its own state a step before.
Source = Literal["input", "inside", "state"]

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_GATES = {nn.RNN: 1, nn.LSTM: 4, nn.GRU: 3, nn.RNNCell: 1, nn.LSTMCell: 4, nn.GRUCell: 3}


@dataclass(frozen=True)
class Weight:
    """A matrix or kernel that is drawn as one: a parameter, or a block of its rows.

    Attributes:
        module, leaf: the parameter is `module.leaf`.
        label: of the block, for readers ("q", "gate 2"); "" when it is the whole parameter.
        fan_in: how many entries of the input each entry of the output sums over, on average.
        fan_out: how many entries of the output each entry of the input goes into, on average.
        source: where the input comes from.
        rows: the block; None is the whole.
        groups: blocks of a grouped convolution, which share no input.
        empty: row that has to stay zero (an embedding's padding).
    """

    module: nn.Module
    leaf: str
    label: str
    fan_in: float
    fan_out: float
    source: Source = "input"
    rows: slice | None = None
    groups: int = 1
    empty: int | None = None

    def read(self) -> Tensor:
        """The weight as the layer uses it, detached."""
        whole: Tensor = getattr(self.module, self.leaf).detach()
        return whole if self.rows is None else whole[self.rows]

    def write(self, value: Tensor) -> None:
        """Give the weight a value; through its parametrization, if it has one.

        Raises:
            RelumeError: the parametrization can't be given a value.
        """
        with torch.no_grad():
            if self.empty is not None:
                value = value.clone()
                value[self.empty] = 0
            if self.leaf in self.module._parameters:
                self.read().copy_(value)
                return
            whole = getattr(self.module, self.leaf).detach().clone()
            (whole if self.rows is None else whole[self.rows]).copy_(value)
            try:
                setattr(self.module, self.leaf, whole)
            except (NotImplementedError, RuntimeError, ValueError) as error:
                raise RelumeError(
                    f"{type(self.module).__name__}.{self.leaf} is parametrized by {_parametrizations(self)}, which "
                    f"can't be given a value ({error}): initialise the model before it is parametrized, or leave the "
                    "layer out with exclude="
                ) from error

    @property
    def parametrized(self) -> str:
        """What its parametrizations are, or ""."""
        return "" if self.leaf in self.module._parameters else _parametrizations(self)


@dataclass(frozen=True)
class Layer:
    """One layer: a module that multiplies its input with weights.

    Attributes:
        name: dotted name; "" is the model itself.
        kind: what it is.
        weights: in the order in which they are drawn. The last one scales the output.
        biases: (module, attribute) of each.
        padding: of an embedding: the row that stays zero.
    """

    name: str
    module: nn.Module
    kind: Kind
    weights: tuple[Weight, ...]
    biases: tuple[tuple[nn.Module, str], ...] = ()

    @property
    def out(self) -> Weight:
        """The weight whose scale is the output's."""
        return self.weights[-1]

    @property
    def shown(self) -> str:
        return self.name or type(self.module).__name__

    def channel_axis(self, output: Tensor) -> int:
        """The axis of an output that its features lie on."""
        if self.kind in ("conv", "transposed"):
            return output.dim() - self.out.read().dim() + 1
        return output.dim() - 1


@dataclass(frozen=True)
class Left:
    """Something with parameters that was left as it is, and why."""

    name: str
    why: str


@dataclass
class Found:
    """The layers of a model, in the order of its modules, and what is left alone."""

    layers: list[Layer] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)


def checked(model: nn.Module, doing: str) -> nn.Module:
    """The model itself (not what torch.compile wrapped around it), if it holds numbers.

    Raises:
        TypeError: it is no module.
        RelumeError: a parameter is lazy, on the meta device, or spread over processes.
    """
    model = compiled.original(arguments.module(model, f"init.{doing}"))
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise RelumeError(f"'{name}' is lazy, its shape still unknown: pass the model a batch before init.{doing}")
        if parameter.is_meta:
            raise RelumeError(
                f"'{name}' is on the meta device, where tensors hold no numbers: move the model to a real one "
                f"(model.to_empty(device=...)) before init.{doing}"
            )
        if any(cls.__name__ == "DTensor" for cls in type(parameter).__mro__):
            raise RelumeError(
                f"'{name}' is a DTensor, of which this process holds a part: call init.{doing} before the model is "
                "sharded"
            )
    return model


def find(
    model: nn.Module, *, include: str | Iterable[str] = (), exclude: str | Iterable[str] = (), frozen: bool = False
) -> Found:
    """The layers of a model, each parameter once.

    Args:
        include, exclude: shell patterns on layer names; no include means all.
        frozen: take layers too whose weights all have `requires_grad=False`.

    Raises:
        RelumeError: the model has no layer that could be initialised, or a weight that is no parameter.
    """
    wanted, unwanted = arguments.patterns("include", include), arguments.patterns("exclude", exclude)
    found = Found()
    seen: dict[int, str] = {}
    inside: set[int] = set()  # modules that belong to a layer already taken
    for name, module in model.named_modules():
        if id(module) in inside or isinstance(module, parametrize.ParametrizationList):
            inside.update(id(m) for m in module.modules())
            continue
        layer = layer_of(name, module)
        if layer is None:
            _leave_alone(found, name, module)
            continue
        inside.update(id(m) for m in module.modules())
        shown = layer.shown
        if unwanted and any(fnmatchcase(name, p) for p in unwanted):
            found.left.append(Left(shown, "excluded"))
        elif wanted and not any(fnmatchcase(name, p) for p in wanted):
            found.left.append(Left(shown, "not included"))
        elif (
            _check_weights(layer) and not frozen and not any(p.requires_grad for w in layer.weights for p in _behind(w))
        ):
            found.left.append(Left(shown, "frozen (requires_grad=False); frozen=True initialises it"))
        else:
            tied = {seen[id(p)] for w in layer.weights for p in _behind(w) if id(p) in seen}
            if tied:
                found.left.append(Left(shown, f"tied to '{tied.pop()}'"))
                continue
            seen.update((id(p), shown) for w in layer.weights for p in _behind(w))
            found.layers.append(layer)
    if not found.layers:
        kinds = sorted({type(m).__name__ for m in model.modules() if not list(m.children())})
        reasons = "; ".join(f"{e.name}: {e.why}" for e in found.left[:6])
        raise RelumeError(
            f"{type(model).__name__} has no layer to initialise (it is made of: {', '.join(kinds[:12])}"
            f"{f'. Left alone: {reasons}' if reasons else ''}). Layers are linear, convolution, embedding, attention "
            "and recurrent modules of torch.nn and subclasses of them"
        )
    return found


@contextlib.contextmanager
def all_or_nothing(model: nn.Module) -> Iterator[None]:
    """Put back every parameter and buffer if the body raises. Holds a copy of them meanwhile."""
    before = [(t, t.detach().clone()) for t in chain(model.parameters(), model.buffers())]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for tensor, value in before:
                tensor.copy_(value)
        raise


def _leave_alone(found: Found, name: str, module: nn.Module) -> None:
    own = [leaf for leaf, p in module._parameters.items() if p is not None]
    if not own:
        return
    kind = type(module).__name__
    if isinstance(module, NORMS):
        why = f"{kind}: normalization keeps its scale and shift"
    elif isinstance(module, nn.PReLU):
        why = "PReLU: its slopes are the activation's own"
    else:
        why = f"{kind} is no layer that relume knows; its parameters: {', '.join(own[:4])}"
    found.left.append(Left(name or kind, why))


def layer_of(name: str, module: nn.Module) -> Layer | None:
    """The module as a layer, or None when it is none."""
    if isinstance(module, nn.Linear):
        return Layer(name, module, "linear", (_linear(module),), _biases(module, "bias"))
    if isinstance(module, _CONVS):
        return Layer(name, module, "conv", (_conv(module),), _biases(module, "bias"))
    if isinstance(module, _TRANSPOSED):
        return Layer(name, module, "transposed", (_transposed(module),), _biases(module, "bias"))
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        # Each index picks one row: a product with a vector that has a single one in it.
        weight = Weight(module, "weight", "", 1, module.embedding_dim, empty=module.padding_idx)
        return Layer(name, module, "embedding", (weight,))
    if isinstance(module, nn.MultiheadAttention):
        return _attention(name, module)
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return _recurrent(name, module)
    return None


def _linear(module: nn.Linear, label: str = "", source: Source = "input") -> Weight:
    return Weight(module, "weight", label, module.in_features, module.out_features, source)


def _conv(module: Any) -> Weight:
    """An output sums over the kernel; an input goes into as many positions as the kernel covers at that stride."""
    positions = prod(module.kernel_size)
    fan_out = module.out_channels // module.groups * positions / prod(module.stride)
    return Weight(module, "weight", "", module.in_channels // module.groups * positions, fan_out, groups=module.groups)


def _transposed(module: Any) -> Weight:
    positions = prod(module.kernel_size)
    fan_in = module.in_channels // module.groups * positions / prod(module.stride)
    return Weight(module, "weight", "", fan_in, module.out_channels // module.groups * positions, groups=module.groups)


def _attention(name: str, module: nn.MultiheadAttention) -> Layer:
    """Queries, keys and values are three layers of their own, though their weights may be stacked in one parameter."""
    size, weights = module.embed_dim, []
    for i, label in enumerate(("q", "k", "v")):
        if module._qkv_same_embed_dim:
            weights.append(Weight(module, "in_proj_weight", label, size, size, rows=slice(i * size, (i + 1) * size)))
        else:
            leaf = f"{label}_proj_weight"
            weights.append(Weight(module, leaf, label, getattr(module, leaf).shape[1], size))
    weights.append(_linear(module.out_proj, "out", "inside"))
    biases = _biases(module, "in_proj_bias", "bias_k", "bias_v") + _biases(module.out_proj, "bias")
    return Layer(name, module, "attention", tuple(weights), biases)


def _recurrent(name: str, module: nn.Module) -> Layer:
    gates = next(n for cls, n in _GATES.items() if isinstance(module, cls))
    weights = []
    for leaf, parameter in module.named_parameters():
        if not leaf.startswith("weight"):
            continue
        blocks = 1 if "_hr" in leaf else gates
        size, fan_in = parameter.shape[0] // blocks, parameter.shape[1]
        first = leaf in ("weight_ih", "weight_ih_l0", "weight_ih_l0_reverse")
        source: Source = "input" if first else "state" if "_hh" in leaf else "inside"
        for i in range(blocks):
            label = leaf.removeprefix("weight_") + (f" gate {i}" if blocks > 1 else "")
            weights.append(
                Weight(
                    module, leaf, label, fan_in, size, source, slice(i * size, (i + 1) * size) if blocks > 1 else None
                )
            )
    names = [leaf for leaf, _ in module.named_parameters() if leaf.startswith("bias")]
    return Layer(name, module, "recurrent", tuple(weights), _biases(module, *names))


def _biases(module: nn.Module, *leaves: str) -> tuple[tuple[nn.Module, str], ...]:
    return tuple((module, leaf) for leaf in leaves if getattr(module, leaf, None) is not None)


def _behind(weight: Weight) -> list[nn.Parameter]:
    """The parameters that a weight is made of."""
    own = weight.module._parameters.get(weight.leaf)
    if own is not None:
        return [own]
    if parametrize.is_parametrized(weight.module, weight.leaf):
        return list(weight.module.parametrizations[weight.leaf].parameters())  # type: ignore[union-attr, index]
    return []


def _check_weights(layer: Layer) -> bool:
    """True, or an error that says why these weights can't be written to."""
    for weight in layer.weights:
        behind = _behind(weight)
        where = f"'{layer.shown}.{weight.leaf}'" if layer.name else f"'{weight.leaf}'"
        if not behind:
            held = [n for n in weight.module._parameters if n.startswith(f"{weight.leaf}_")]
            raise RelumeError(
                f"{where} is no parameter: it is computed from {', '.join(held) or 'elsewhere'} before each pass "
                "(torch.nn.utils.weight_norm, spectral_norm or prune of old, or a sharded model). Initialise before "
                "that is applied, use torch.nn.utils.parametrizations instead, or leave the layer out with exclude="
            )
        if not all(p.is_floating_point() for p in behind):
            raise RelumeError(
                f"{where} holds {behind[0].dtype}, no floating-point numbers: leave it out with exclude={layer.name!r}"
            )
    return True


def _parametrizations(weight: Weight) -> str:
    kinds = weight.module.parametrizations[weight.leaf]  # type: ignore[index]
    return ", ".join(type(m).__name__.lstrip("_") for m in kinds if isinstance(m, nn.Module))
