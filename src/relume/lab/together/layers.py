"""How each kind of layer is stacked: one object does for all members what theirs do for each.

Tensors are [members, inputs, …] throughout. What torch computes per channel is done for all members at once by laying
their channels side by side: [inputs, members · channels, …]. The next kind is a class and a line in `_KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relume.errors import RelumeError
from relume.lab.tasks.networks import MeanOverTokens, TokenEmbedding
from relume.lab.together.parameters import Parameters


class CantStackError(RelumeError):
    """These networks can't be trained as one; the message says which layer stands in the way."""


def side_by_side(x: Tensor) -> Tensor:
    """[members, inputs, channels, …] as [inputs, members · channels, …]."""
    return x.transpose(0, 1).flatten(1, 2)


def apart(x: Tensor, members: int) -> Tensor:
    """Inverse of `side_by_side`."""
    return x.unflatten(1, (members, -1)).transpose(0, 1)  # type: ignore[no-any-return]


class Layer:
    """One layer of all members.

    Args:
        layers: the members' own.
        parameters: that take theirs.

    Attributes:
        kept: number and attribute of each parameter, and how to read a member's out of the stacked tensor.
    """

    def __init__(self, layers: Sequence[Any], parameters: Parameters) -> None:
        self.layers, self.parameters = layers, parameters
        self.kept: list[tuple[int, str, Callable[[Tensor], Tensor]]] = []

    def keep(self, name: str, shape: Callable[[Tensor], Tensor] = lambda t: t, back: Any = None) -> int | None:
        """Hand a parameter over, each member's in another shape; None where the layers have none of that name."""
        if getattr(self.layers[0], name, None) is None:
            return None
        own: torch.Size = self.layers[0].get_parameter(name).shape
        number = self.parameters.add(torch.stack([shape(layer.get_parameter(name).detach()) for layer in self.layers]))
        self.kept.append((number, name, back or (lambda t: t.reshape(own))))
        return number

    def __call__(self, x: Tensor, training: bool) -> Tensor:
        raise NotImplementedError

    def give_back(self) -> None:
        """Write the members' parameters and buffers into their own layers."""
        with torch.no_grad():
            for number, name, back in self.kept:
                for layer, value in zip(self.layers, self.parameters[number], strict=True):
                    layer.get_parameter(name).copy_(back(value))


class Linear(Layer):
    """Weights lie transposed, as the product wants them."""

    def __init__(self, layers: Sequence[nn.Linear], parameters: Parameters) -> None:
        super().__init__(layers, parameters)
        self.weight = self.keep("weight", lambda w: w.t().contiguous(), lambda w: w.t())
        self.bias = self.keep("bias", lambda b: b.unsqueeze(0))

    def __call__(self, x: Tensor, training: bool) -> Tensor:
        assert self.weight is not None
        weight = self.parameters[self.weight]
        return torch.bmm(x, weight) if self.bias is None else torch.baddbmm(self.parameters[self.bias], x, weight)


class Conv2d(Layer):
    """A grouped convolution, one group for a member."""

    def __init__(self, layers: Sequence[nn.Conv2d], parameters: Parameters) -> None:
        super().__init__(layers, parameters)
        if layers[0].groups != 1 or layers[0].padding_mode != "zeros":
            raise CantStackError(f"{layers[0]} is grouped or pads with other than zeros")
        self.weight, self.bias = self.keep("weight"), self.keep("bias")

    def __call__(self, x: Tensor, training: bool) -> Tensor:
        assert self.weight is not None
        of = self.layers[0]
        bias = None if self.bias is None else self.parameters[self.bias].flatten()
        weight = self.parameters[self.weight].flatten(0, 1)
        members = len(self.layers)
        return apart(F.conv2d(side_by_side(x), weight, bias, of.stride, of.padding, of.dilation, members), members)


class BatchNorm(Layer):
    """Statistics are per channel, hence per member once channels lie side by side."""

    def __init__(self, layers: Sequence[nn.BatchNorm1d | nn.BatchNorm2d], parameters: Parameters) -> None:
        super().__init__(layers, parameters)
        if layers[0].momentum is None or layers[0].running_mean is None:
            raise CantStackError(f"{layers[0]} keeps no running mean with a fixed momentum")
        self.weight, self.bias = self.keep("weight"), self.keep("bias")
        self.mean = torch.cat([layer.get_buffer("running_mean") for layer in layers])
        self.variance = torch.cat([layer.get_buffer("running_var") for layer in layers])
        self.batches = 0

    def __call__(self, x: Tensor, training: bool) -> Tensor:
        weight, bias = (None if n is None else self.parameters[n].flatten() for n in (self.weight, self.bias))
        of = self.layers[0]
        self.batches += training
        wide = F.batch_norm(side_by_side(x), self.mean, self.variance, weight, bias, training, of.momentum, of.eps)
        return apart(wide, len(self.layers))

    def give_back(self) -> None:
        super().give_back()
        for i, layer in enumerate(self.layers):
            layer.running_mean.copy_(self.mean.view(len(self.layers), -1)[i])
            layer.running_var.copy_(self.variance.view(len(self.layers), -1)[i])
            layer.num_batches_tracked += self.batches


class LayerNorm(Layer):
    def __init__(self, layers: Sequence[nn.LayerNorm], parameters: Parameters) -> None:
        super().__init__(layers, parameters)
        self.weight = self.keep("weight", lambda w: w.unsqueeze(0))
        self.bias = self.keep("bias", lambda b: b.unsqueeze(0))

    def __call__(self, x: Tensor, training: bool) -> Tensor:
        of = self.layers[0]
        return _scaled(self, F.layer_norm(x, of.normalized_shape, eps=of.eps))


class GroupNorm(Layer):
    def __init__(self, layers: Sequence[nn.GroupNorm], parameters: Parameters) -> None:
        super().__init__(layers, parameters)
        self.weight = self.keep("weight", lambda w: w.view(1, -1, 1, 1))
        self.bias = self.keep("bias", lambda b: b.view(1, -1, 1, 1))

    def __call__(self, x: Tensor, training: bool) -> Tensor:
        of = self.layers[0]
        return _scaled(self, F.group_norm(x.flatten(0, 1), of.num_groups, eps=of.eps).unflatten(0, x.shape[:2]))


def _scaled(norm: Any, x: Tensor) -> Tensor:
    if norm.weight is None:
        return x
    weight = norm.parameters[norm.weight]
    return x * weight if norm.bias is None else torch.addcmul(norm.parameters[norm.bias], x, weight)


class Embedding(Layer):
    """One table of all members' rows. Token 0 is the zero row of the first member for all, so that none moves."""

    def __init__(self, layers: Sequence[TokenEmbedding], parameters: Parameters) -> None:
        super().__init__(layers, parameters)
        self.weight = self.keep("weight")
        self.first = torch.arange(len(layers)).view(-1, 1, 1) * layers[0].num_embeddings

    def __call__(self, x: Tensor, training: bool) -> Tensor:
        assert self.weight is not None
        rows = torch.where(x == 0, 0, x + self.first)
        return F.embedding(rows, self.parameters[self.weight].flatten(0, 1), padding_idx=0)


class Mean(Layer):
    def __call__(self, x: Tensor, training: bool) -> Tensor:
        return x.mean(2)


class Flatten(Layer):
    def __call__(self, x: Tensor, training: bool) -> Tensor:
        return x.flatten(2)


class Pool(Layer):
    """Has no parameters and minds no channels: all members' inputs are inputs to it."""

    def __call__(self, x: Tensor, training: bool) -> Tensor:
        return self.layers[0](x.flatten(0, 1)).unflatten(0, x.shape[:2])  # type: ignore[no-any-return]


_KINDS: dict[type[nn.Module], type[Layer]] = {
    nn.Linear: Linear,
    nn.Conv2d: Conv2d,
    nn.BatchNorm1d: BatchNorm,
    nn.BatchNorm2d: BatchNorm,
    nn.LayerNorm: LayerNorm,
    nn.GroupNorm: GroupNorm,
    TokenEmbedding: Embedding,
    MeanOverTokens: Mean,
    nn.Flatten: Flatten,
    nn.MaxPool2d: Pool,
}


def stacked(name: str, layers: Sequence[nn.Module], parameters: Parameters) -> Layer:
    """The members' layers as one.

    Raises:
        CantStackError: it is not known how to.
    """
    kind = _KINDS.get(type(layers[0]))
    if kind is None:
        raise CantStackError(f"it is not known how to stack '{name}', a {type(layers[0]).__name__}")
    return kind(layers, parameters)
