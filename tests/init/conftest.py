"""Digits as standardized vectors and images, and the networks that initializers are tried on."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn


class Residual(nn.Module):
    """Convolutions with batch norm, a shortcut, and a strided layer, written with functions."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.c1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.c2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.down = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
        self.fc = nn.Linear(2 * channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(x + self.c2(F.relu(self.c1(x))))
        x = F.leaky_relu(self.down(x), 0.2)
        return self.fc(x.mean((2, 3)))


def mlp(*widths: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers, nn.Linear(*widths[-2:]))


def cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.GELU(), nn.Conv2d(8, 16, 3, groups=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(64, 32), nn.Tanh(), nn.Dropout(0.1), nn.Linear(32, 10),
    )  # fmt: skip


def normalized() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), nn.LayerNorm(32), nn.SiLU(),
        nn.Linear(32, 10),
    )  # fmt: skip


@pytest.fixture(scope="session")
def digits() -> Tensor:
    """[1797, 64], each pixel standardized; constant pixels are zero."""
    x = torch.tensor(load_digits().data, dtype=torch.float32)
    return (x - x.mean(0)) / x.std(0).clamp(min=1e-3)


@pytest.fixture(scope="session")
def labels() -> Tensor:
    return torch.tensor(load_digits().target)


@pytest.fixture(scope="session")
def images(digits: Tensor) -> Tensor:
    return digits.view(-1, 1, 8, 8)


@pytest.fixture
def nets() -> dict:
    """Makers of networks, by name."""
    return {"mlp": lambda: mlp(64, 64, 64, 10), "cnn": cnn, "residual": Residual, "normalized": normalized}


@pytest.fixture
def make_mlp():
    return mlp


@pytest.fixture
def residual() -> nn.Module:
    return Residual()
