"""DReLU trains where ReLU stays dead: real digits, biases started at −3."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from relume.nn import DReLU

sklearn = pytest.importorskip("sklearn.datasets")


def accuracy(activation):
    torch.manual_seed(0)
    digits = sklearn.load_digits()
    x = torch.tensor(digits.data / 16, dtype=torch.float32)
    y = torch.tensor(digits.target)
    order = torch.randperm(len(x))
    train, test = order[:1400], order[1400:]
    model = nn.Sequential(nn.Linear(64, 64), activation(64), nn.Linear(64, 64), activation(64), nn.Linear(64, 10))
    for layer in (model[0], model[2]):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.constant_(layer.bias, -3.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(30):
        for batch in train[torch.randperm(len(train))].split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        return (model(x[test]).argmax(1) == y[test]).float().mean().item()


def test_buried_units_train_with_drelu_and_stay_dead_with_relu():
    assert accuracy(DReLU) >= 0.85
    assert accuracy(lambda n: nn.ReLU()) <= 0.2
