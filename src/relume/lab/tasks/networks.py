"""The networks of the tasks: chains of named layers (which members trained together can be stacked from), and one
small transformer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relume.treat.convert.targets import Target, Wanted

NORMS = ("none", "batch", "layer")


@dataclass(frozen=True)
class Choice:
    """Which activation and normalization a network applies.

    Attributes:
        activation: by name, as `relume.convert` takes it.
        norm: "none", "batch" or "layer".
    """

    activation: str = "relu"
    norm: str = "none"

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm is one of {', '.join(NORMS)}, not {self.norm!r}")

    def act(self, units: int, *, axis: int = 1, dims: int = 2) -> nn.Module:
        """A module for a site of so many units on an axis of a tensor with `dims` axes."""
        return Target(self.activation).make(Wanted(channels=units, axis=axis, dims=dims))

    def after(self, number: int, units: int, *, dims: int = 2) -> list[tuple[str, nn.Module]]:
        """What follows layer `number`, by name: its normalization, if any, and its activation."""
        layers: list[tuple[str, nn.Module]] = [(f"act{number}", self.act(units, dims=dims))]
        if self.norm == "batch":
            layers.insert(0, (f"norm{number}", nn.BatchNorm1d(units) if dims == 2 else nn.BatchNorm2d(units)))
        elif self.norm == "layer":
            layers.insert(0, (f"norm{number}", nn.LayerNorm(units) if dims == 2 else nn.GroupNorm(1, units)))
        return layers


class MeanOverTokens(nn.Module):
    """[inputs, tokens, features] → [inputs, features]: the mean over tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class TokenEmbedding(nn.Embedding):
    """Tokens by their numbers; token 0 fills up a text, and has the embedding zero for good."""

    def __init__(self, vocabulary: int, features: int) -> None:
        super().__init__(vocabulary, features, padding_idx=0)


def _chain(layers: Sequence[tuple[str, nn.Module]]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def _hidden(choice: Choice, inputs: int, width: int, depth: int, first: int = 1) -> list[tuple[str, nn.Module]]:
    layers: list[tuple[str, nn.Module]] = []
    for number in range(first, first + depth):
        layers += [(f"hidden{number}", nn.Linear(inputs, width)), *choice.after(number, width)]
        inputs = width
    return layers


def mlp(choice: Choice, inputs: int, outputs: int, width: int, depth: int) -> nn.Sequential:
    """[inputs] → [outputs] through `depth` hidden layers of `width` units."""
    return _chain([*_hidden(choice, inputs, width, depth), ("out", nn.Linear(width, outputs))])


def cnn(choice: Choice, size: tuple[int, int, int], outputs: int, width: int, depth: int) -> nn.Sequential:
    """[channels, height, width] → [outputs]: `depth` 3 × 3 convolutions of `width` channels, the first two of them
    followed by pooling of 2 × 2, then one linear layer."""
    channels, *extent = size
    layers: list[tuple[str, nn.Module]] = []
    for number in range(1, depth + 1):
        layers += [(f"conv{number}", nn.Conv2d(channels, width, 3, padding=1)), *choice.after(number, width, dims=4)]
        if number <= 2 and min(extent) >= 2:
            layers.append((f"pool{number}", nn.MaxPool2d(2)))
            extent = [e // 2 for e in extent]
        channels = width
    return _chain([*layers, ("flatten", nn.Flatten()), ("out", nn.Linear(width * extent[0] * extent[1], outputs))])


def text_mlp(choice: Choice, vocabulary: int, outputs: int, width: int, depth: int) -> nn.Sequential:
    """Tokens [length] → [outputs]: their mean embedding of `width` features, then as `mlp`."""
    return _chain(
        [
            ("embedding", TokenEmbedding(vocabulary, width)),
            ("mean", MeanOverTokens()),
            *_hidden(choice, width, width, depth),
            ("out", nn.Linear(width, outputs)),
        ]
    )


class _Block(nn.Module):
    """One layer of a transformer (Vaswani et al. 2017), normalized before (pre-LN) unless the norm is "none"."""

    def __init__(self, choice: Choice, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.Identity() if choice.norm == "none" else nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.act = choice.act(4 * width, axis=-1, dims=3)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, None, :])
        x = x + self.mix(mixed.transpose(1, 2).reshape(n, length, width))
        return x + self.down(self.act(self.up(self.norm2(x))))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Tokens [length] → [outputs]: embedding and learnt positions, `depth` layers, the mean over real tokens, one
    linear layer. The activation stands in the feed-forward part, whose width is four times the model's."""

    def __init__(self, choice: Choice, vocabulary: int, length: int, outputs: int, width: int, depth: int) -> None:
        super().__init__()
        if choice.norm == "batch":
            raise ValueError("norm is none or layer in a transformer, not 'batch'")
        heads = next(h for h in (4, 2, 1) if width % h == 0)
        self.embedding = TokenEmbedding(vocabulary, width)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList(_Block(choice, width, heads) for _ in range(depth))
        self.out = nn.Linear(width, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        real = tokens != 0
        x = self.embedding(tokens) + self.position
        for block in self.blocks:
            x = block(x, real)
        share = real / real.sum(1, keepdim=True).clamp(min=1)
        return self.out((x * share.unsqueeze(2)).sum(1))  # type: ignore[no-any-return]
