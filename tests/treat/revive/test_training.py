"""Revived units in training: the demo's doomed digits net, once its learning rate is sane."""

import pytest
import torch
import torch.nn.functional as F

import relume
from relume.demo import BATCH, DOOMED_LR, SANE_LR, Digits, DigitsNet


def train(model, optimizer, data, epochs, shuffle):
    for _ in range(epochs):
        for batch in torch.randperm(len(data.x), generator=shuffle).split(BATCH):
            loss = F.cross_entropy(model(data.x[batch]), data.y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def accuracy(model, data):
    with torch.no_grad():
        return float((model(data.x_test).argmax(1) == data.y_test).double().mean())


@pytest.fixture(scope="module")
def doomed():
    data = Digits.load()
    torch.manual_seed(0)
    model, shuffle = DigitsNet(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), DOOMED_LR, momentum=0.9)
    train(model, optimizer, data, 8, shuffle)
    return model, optimizer, data, shuffle


def test_a_doomed_net_learns_once_its_units_are_revived_and_its_rate_is_sane(doomed):
    model, optimizer, data, shuffle = doomed
    census = relume.census(model, [data.x])
    assert census.dead > 90  # of 112
    assert accuracy(model, data) < 0.2
    revival = relume.revive(model, census, optimizer, batches=[data.x[:256]])
    assert revival.change == 0
    assert len(revival) == census.dead
    optimizer.param_groups[0]["lr"] = SANE_LR
    train(model, optimizer, data, 10, shuffle)  # 220 steps
    now = relume.census(model, [data.x])
    alive = [bool(now[s].fired[u] > 0) for s, numbers in revival.units.items() for u in numbers]
    assert sum(alive) >= 0.8 * len(alive)
    assert accuracy(model, data) > 0.8
