"""Models and helpers for the tests of treatments."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """A residual block as torchvision writes it: one ReLU used twice, and a functional one."""

    def __init__(self, width=8, middle=6):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, middle, 3, padding=1), nn.BatchNorm2d(middle)
        self.conv2, self.bn2 = nn.Conv2d(middle, width, 3, padding=1), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + x)


class Net(nn.Module):
    """Convolutions, two blocks, functional and method calls, a loop, and a gate that must stay."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.Sequential(Block(), Block())
        self.heads = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
        self.gate = nn.Linear(8, 8)
        self.out = nn.Linear(8, 10)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = self.blocks(x).mean((2, 3))
        x = x * torch.sigmoid(self.gate(x))
        for head in self.heads:
            x = head(x).relu()
        return self.out(torch.clamp(x, min=0))


@pytest.fixture
def net():
    return Net()


@pytest.fixture
def images():
    return torch.randn(16, 1, 6, 6)


@pytest.fixture
def snapshot():
    """All of a model that a conversion could change: classes, order of children, hooks, attributes, values."""

    def take(model):
        seen = {}
        for name, module in model.named_modules():
            hooks = {k: dict(v) if isinstance(v, dict) else v for k, v in vars(module).items() if "hook" in k}
            plain = {k: v for k, v in vars(module).items() if not k.startswith("_")}
            seen[name] = (id(module), type(module), list(module._modules), list(module._buffers), hooks, plain)
        return seen, copy.deepcopy(list(model.state_dict().items()))

    def same(a, b):
        assert a[0] == b[0]
        assert [k for k, _ in a[1]] == [k for k, _ in b[1]]
        assert all(torch.equal(x, y) for (_, x), (_, y) in zip(a[1], b[1], strict=True))

    take.same = same
    return take
