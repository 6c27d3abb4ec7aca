"""What a planted training is, and one ordinary loop with places where a case may interfere."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from sklearn import datasets
from torch import Tensor, nn

import relume


@dataclass(frozen=True)
class Case:
    """One planted training.

    Attributes:
        name: what was done, in words.
        causes: codes of which the first grave finding must have one; empty where nothing is the matter.
        planted: the one of them that the case was made for; None where nothing is the matter.
        run: trains with a seed and gives the watch back.
        sites: those of which the first grave finding must name one; empty where any will do.
        at_sites: what the largest finding at further sites must be called.
    """

    name: str
    planted: str | None
    causes: frozenset[str]
    run: Callable[[int], relume.Watch]
    sites: frozenset[str] = frozenset()
    at_sites: dict[str, frozenset[str]] = field(default_factory=dict)


CASES: list[Case] = []
HELD_BACK: list[Case] = []


def case(name: str, *causes: str, sites: Sequence[str] = (), at: dict[str, Sequence[str]] | None = None, held=False):
    """Register a training under the causes that are right for it; the first is the one that was planted."""

    def register(run):
        @functools.wraps(run)
        def seeded(seed: int) -> relume.Watch:
            torch.manual_seed(7_000 + 13 * seed)
            return run(seed)

        at_sites = {site: frozenset(codes) for site, codes in (at or {}).items()}
        planted = causes[0] if causes else None
        (HELD_BACK if held else CASES).append(
            Case(name, planted, frozenset(causes), seeded, frozenset(sites), at_sites)
        )
        return run

    return register


# Data: real and small


@functools.cache
def table(name: str, scale: str = "standard") -> tuple[Tensor, Tensor]:
    """A data set of sklearn: "raw", "unit" (each column in 0..1) or "standard" (mean 0, deviation 1)."""
    data = getattr(datasets, f"load_{name}")()
    x = torch.tensor(data.data, dtype=torch.float32)
    if scale == "unit":
        low, high = x.amin(0), x.amax(0)
        x = (x - low) / (high - low).clamp(min=1e-6)
    elif scale == "standard":
        x = (x - x.mean(0)) / x.std(0).clamp(min=1e-6)
    y = torch.tensor(data.target)
    return x, y if y.dtype == torch.int64 else y.float().unsqueeze(-1)


def images() -> tuple[Tensor, Tensor]:
    x, y = table("digits", "unit")
    return x.reshape(-1, 1, 8, 8), y


@functools.cache
def text(length: int = 12, words: int = 200) -> tuple[Tensor, Tensor]:
    """Lines of the descriptions of sklearn's data sets as word indices [lines, length]; the class is the data set."""
    lines, labels = [], []
    for label, name in enumerate(("wine", "breast_cancer", "iris", "diabetes")):
        for line in getattr(datasets, f"load_{name}")().DESCR.lower().splitlines():
            if len(line.split()) >= 3:
                lines.append(line.split()[:length])
                labels.append(label)
    count: dict[str, int] = {}
    for line in lines:
        for word in line:
            count[word] = count.get(word, 0) + 1
    known = {w: i + 1 for i, w in enumerate(sorted(count, key=lambda w: -count[w])[: words - 1])}
    rows = [[known.get(w, 0) for w in line] + [0] * (length - len(line)) for line in lines]
    return torch.tensor(rows), torch.tensor(labels)


# Models


def mlp(
    *widths: int, act: Callable[[], nn.Module] = nn.ReLU, norm: Any = None, bias: bool = True, dropout: float = 0.0
):
    """widths: inputs, hidden layers, outputs."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(a, b, bias=bias), *([norm(b)] if norm else []), act()]
        layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def cnn(*channels: int, norm: Any = None, act: Callable[[], nn.Module] = nn.ReLU, outputs: int = 10) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in zip((1, *channels), channels, strict=False):
        layers += [nn.Conv2d(a, b, 3, padding=1), *([norm(b)] if norm else []), act()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels[-1], outputs))


class Residual(nn.Module):
    """x + w2 relu(w1 norm(x)), several times."""

    def __init__(self, inputs: int, width: int, blocks: int, outputs: int, norm: Any = nn.LayerNorm) -> None:
        super().__init__()
        self.stem = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(norm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
            for _ in range(blocks)
        )
        self.head = nn.Linear(width, outputs)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class Transformer(nn.Module):
    """Token and position embeddings, encoder layers with ReLU inside, the mean over tokens."""

    def __init__(self, words: int = 200, length: int = 12, width: int = 32, layers: int = 1, outputs: int = 4) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True) for _ in range(layers)
        )
        self.head = nn.Linear(width, outputs)

    def forward(self, x):
        h = self.words(x) + self.places(torch.arange(x.shape[1]))
        for layer in self.layers:
            h = layer(h)
        return self.head(h.mean(1))


class Bag(nn.Module):
    """A bag of words straight into a rectifier."""

    def __init__(self, words: int = 200, width: int = 32, outputs: int = 4) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(words, width, mode="mean")
        self.act = nn.ReLU()
        self.head = nn.Linear(width, outputs)

    def forward(self, x):
        return self.head(self.act(self.words(x)))


# Training


def train(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    seed: int,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    lr: float = 0.05,
    steps: int = 150,
    batch: int = 64,
    every: int = 1,
    window: int = 25,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    penalty: Callable[[], Tensor | float] = lambda: 0.0,
    inputs: Callable[[int, Tensor], Tensor] = lambda step, x: x,
    weigh: Callable[[int], float] = lambda step: 1.0,
    before_step: Callable[[int], None] = lambda step: None,
    after_step: Callable[[int], None] = lambda step: None,
    **options: Any,
) -> relume.Watch:
    """Train as people do. Batches that hold fewer than 256 inputs a window are for cases that mean it."""
    x, y = data
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=lr)
    loss = loss or (F.cross_entropy if y.dtype == torch.int64 else F.mse_loss)
    drawn = torch.Generator().manual_seed(31 * seed + 5)
    with relume.watch(model, optimizer, every=every, window=window, **options) as watch:
        for step in range(steps):
            rows = torch.randint(len(x), (batch,), generator=drawn)
            value = loss(model(inputs(step, x[rows])), y[rows]) * weigh(step) + penalty()
            optimizer.zero_grad()
            value.backward()
            before_step(step)
            optimizer.step()
            after_step(step)
    return watch
