"""A producer as an affine map of its mean input: the mean of what it gives out is `response(mean input) + bias`.

For every layer here the mean over samples of unit u is exactly Σ_k w[u, k] μ[k] + b[u], where μ[k] is the mean over
samples of what weight k is multiplied by: an input feature (Linear), the input under one tap of the kernel, zeros of
the padding included (convolutions), or the share of samples that look up one row (embeddings).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from relume.diagnose.means import wide

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_KINDS: tuple[type[nn.Module], ...] = (nn.Linear, *_CONV, *_TRANSPOSED, nn.Embedding, nn.EmbeddingBag)


@dataclass(frozen=True)
class Unknown:
    """Something that can't be split, and why."""

    reason: str


def why_unknown(module: nn.Module) -> Unknown | None:
    """None if `response` and `mean_input` know the layer, else the reason why they don't."""
    kind = next((k for k in _KINDS if isinstance(module, k)), None)
    name = type(module).__name__
    if kind is None:
        return Unknown(f"unknown producer: {name} is no Linear, convolution or embedding")
    if type(module).forward is not kind.forward:
        return Unknown(f"unknown producer: {name} has a forward of its own")
    if is_parametrized(module):
        # Reading the weight would run the parametrization, which may hold state (spectral norm).
        return Unknown(f"unknown producer: the weight of this {name} is parametrized")
    if isinstance(module, nn.EmbeddingBag) and (module.mode == "max" or module.padding_idx is not None):
        return Unknown("unknown producer: an EmbeddingBag with mode='max' or padding_idx is no affine map")
    return None


def units_of(module: nn.Module) -> int:
    """How many units a known producer gives out."""
    for name in ("out_features", "out_channels", "embedding_dim"):
        if hasattr(module, name):
            return int(getattr(module, name))
    raise TypeError(f"{type(module).__name__} is no known producer; ask why_unknown first")


def matrix(module: nn.Module) -> Tensor:
    """The weights of a known producer, [groups, units per group, inputs per group and tap], of their own precision."""
    weight = wide(_tensor(module.weight))
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return weight.T.unsqueeze(0)
    groups = int(getattr(module, "groups", 1))
    if isinstance(module, _TRANSPOSED):  # [inputs, units per group, *kernel]
        by_group = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        return by_group.transpose(1, 2).flatten(2)
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def bias(module: nn.Module) -> Tensor:
    """float64 [units]; zeros where the producer has none."""
    own = getattr(module, "bias", None)
    if own is None:
        return torch.zeros(units_of(module), dtype=torch.float64, device=_tensor(module.weight).device)
    return _tensor(own).double().clone()


def response(weights: Tensor, *means: Tensor) -> tuple[Tensor, ...]:
    """Σ_k w[u, k] μ[k] for each mean input, in one pass over the weights.

    Args:
        weights: [groups, units per group, k] from `matrix`.
        means: each [groups, k] from `mean_input`.

    Returns:
        For each mean input a tensor [units], float64, of the precision of the weights.
    """
    products = weights @ torch.stack(means, -1).to(weights)  # [groups, units per group, means]
    return products.double().flatten(0, 1).unbind(-1)


def mean_input(module: nn.Module, args: Sequence[Any], out: Tensor) -> Tensor | Unknown:
    """The mean over samples of what each weight of a known producer is multiplied by.

    Args:
        module: a producer that `why_unknown` has nothing against.
        args: the positional arguments of its call.
        out: what the call returned.

    Returns:
        float64 [groups, inputs per group and tap], of the input's precision, or why there is none for this call.
    """
    x = args[0] if args else None
    if type(x) is not Tensor and type(x) is not nn.Parameter:
        return Unknown(f"unknown producer: it was called with a {type(x).__name__} in place of a plain tensor")
    if not x.numel():
        return Unknown("unknown producer: it was given no input")
    with torch.no_grad():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            return _looked_up(module, args, x, out)
        if isinstance(module, nn.Linear):
            return wide(x).reshape(-1, x.shape[-1]).mean(0).double().unsqueeze(0)
        return _under_taps(module, x, out)


def _looked_up(module: nn.Module, args: Sequence[Any], x: Tensor, out: Tensor) -> Tensor | Unknown:
    rows = int(module.num_embeddings)  # type: ignore[arg-type]
    share = torch.bincount(x.reshape(-1), minlength=rows).double()
    if isinstance(module, nn.Embedding):
        return (share / x.numel()).unsqueeze(0)
    if x.dim() != 2 or len(args) > 1:
        return Unknown("unknown producer: an EmbeddingBag called with offsets or sample weights")
    return (share / (x.numel() if module.mode == "mean" else x.shape[0])).unsqueeze(0)


def _under_taps(module: Any, x: Tensor, out: Tensor) -> Tensor:
    spatial = len(module.kernel_size)
    mean = wide(x).mean(0).double() if x.dim() == spatial + 2 else x.double()
    pads = module._reversed_padding_repeated_twice  # left and right of each axis, the last axis first
    for i in range(spatial):
        k, s, d = module.kernel_size[i], module.stride[i], module.dilation[i]
        if module.transposed:
            reach = _reach_back(mean.shape[1], out.shape[i - spatial], k, s, d, module.padding[i])
        else:
            left, right = pads[2 * (spatial - 1 - i) : 2 * (spatial - i)]
            reach = _reach(mean.shape[1], k, s, d, int(left), int(right), module.padding_mode)
        mean = torch.tensordot(mean, reach.to(mean.device), dims=([1], [1]))
    return mean.reshape(module.groups, -1)


@functools.lru_cache(maxsize=256)
def _reach(size: int, kernel: int, stride: int, dilation: int, left: int, right: int, mode: str) -> Tensor:
    """float64 [kernel, size]: at what share of output positions a tap lies on an input position."""
    outputs = (size + left + right - dilation * (kernel - 1) - 1) // stride + 1
    share = torch.zeros(kernel, size, dtype=torch.float64)
    for k in range(kernel):
        at = torch.arange(outputs) * stride + k * dilation - left
        if mode == "zeros":
            at = at[(at >= 0) & (at < size)]
        elif mode == "circular":
            at = at % size
        elif mode == "reflect":
            at = at.abs()
            at = size - 1 - (size - 1 - at).abs()
        else:
            at = at.clamp(0, size - 1)
        share[k] = torch.bincount(at, minlength=size).double() / outputs
    return share


@functools.lru_cache(maxsize=256)
def _reach_back(size: int, outputs: int, kernel: int, stride: int, dilation: int, padding: int) -> Tensor:
    """The same for a transposed convolution, which spreads each input position over the taps."""
    at = torch.arange(size) * stride - padding + torch.arange(kernel).unsqueeze(1) * dilation
    return ((at >= 0) & (at < outputs)).double() / outputs


def _tensor(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"a weight is a tensor, not {type(value).__name__}")
    return value.detach()
