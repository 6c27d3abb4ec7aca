"""Handwritten digits: 1797 real 8 × 8 images that come with scikit-learn, at once or, for continual learning, with
their pixels permuted anew every so many steps."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from relume.errors import missing_extra
from relume.lab.tasks.networks import Choice, cnn, mlp
from relume.lab.tasks.task import Kind, Split, Task

_ABOUT = "1797 real 8 × 8 images of handwritten digits (Alpaydin & Kaynak 1998), as they come with scikit-learn"


@functools.cache
def _images() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise missing_extra("scikit-learn", "demo", "the digits") from error
    data = load_digits()
    # Of grey levels 0 … 16, the mean is 4.88 and the standard deviation 6.02; the same for all splits.
    return (torch.tensor(data.images, dtype=torch.float32) - 4.88) / 6.02, torch.tensor(data.target)


@dataclass(frozen=True)
class DigitsMlp(Task):
    """Digits as rows of 64 numbers."""

    name: str = "digits"
    kind: Kind = "classification"
    metric: str = "accuracy"
    higher_is_better: bool = True
    outputs: int = 10
    about: str = _ABOUT + "; a network of linear layers"

    def data(self, seed: int = 0) -> Split:
        images, y = _images()
        return Split.of(images.flatten(1), y, seed)

    def network(self, choice: Choice, width: int, depth: int) -> nn.Module:
        return mlp(choice, 64, self.outputs, width, depth)


@dataclass(frozen=True)
class DigitsCnn(DigitsMlp):
    """Digits as images of one channel."""

    name: str = "digits-cnn"
    about: str = _ABOUT + "; a convolutional network"

    def data(self, seed: int = 0) -> Split:
        images, y = _images()
        return Split.of(images.unsqueeze(1), y, seed)

    def network(self, choice: Choice, width: int, depth: int) -> nn.Module:
        return cnn(choice, (1, 8, 8), self.outputs, width, depth)


@dataclass(frozen=True)
class PermutedDigits(DigitsMlp):
    """A new permutation of the pixels every `period` steps: the same problem again and again, for a network that has
    learnt others before. Scores are of the last permutation.

    Attributes:
        period: steps for which a permutation holds. The first is the images as they are.

    Source: in small, the permuted MNIST by which Dohare et al. 2024 measure the loss of plasticity.
    """

    name: str = "permuted-digits"
    about: str = _ABOUT + ", whose pixels are permuted anew every 200 steps (continual learning)"
    period: int = 200

    def at(self, x: Tensor, step: int) -> Tensor:
        return x.index_select(-1, _permutation(step // self.period))


@functools.lru_cache(maxsize=1024)
def _permutation(number: int) -> Tensor:
    return torch.arange(64) if number == 0 else torch.randperm(64, generator=torch.Generator().manual_seed(number))


TASKS = (DigitsMlp(), DigitsCnn(), PermutedDigits())
