"""Units of least use replaced through training, with what is kept from call to call."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import relume
from relume.treat.revive import Continual


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(64, 4)


def test_the_utility_is_what_the_paper_says(net):
    model, x = net
    continual = Continual(rate=1e-4, maturity=100, decay=0.9)
    want = torch.zeros(8, dtype=torch.float64)
    for _ in range(5):
        continual.step(model, x)
        h = F.relu(model[0](x)).detach().double().mean(0)
        want = 0.9 * want + 0.1 * h * model[2].weight.detach().double().abs().sum(0)
        with torch.no_grad():
            model[2].weight.mul_(1.1)
            model[0].weight.mul_(0.9)
    torch.testing.assert_close(continual.utility("1"), want / (1 - 0.9**5), rtol=1e-5, atol=1e-8)


def test_columns_behind_a_flatten_count_for_their_unit():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 2))
    x = torch.randn(32, 1, 5, 5)
    continual = Continual(decay=0.5)
    continual.step(model, x)
    h = F.relu(model[0](x)).detach().double().mean((0, 2, 3))
    weights = model[3].weight.detach().double().abs().view(2, 4, 9).sum((0, 2))
    torch.testing.assert_close(continual.utility("1"), h * weights, rtol=1e-5, atol=1e-8)


def test_the_least_useful_is_replaced_and_its_mean_kept(net):
    model, x = net
    with torch.no_grad():
        model[2].weight[:, 3] *= 1e-3
    optimizer = torch.optim.Adam(model.parameters())
    model(x).sum().backward()
    optimizer.step()
    continual = Continual(rate=0.13, maturity=1, decay=0.9)
    assert len(continual.step(model, x, optimizer)) == 0  # not mature
    before, incoming = model(x).detach(), model[0].weight.detach().clone()
    revival = continual.step(model, x, optimizer)
    assert revival.units == {"1": [3]}
    changed = (model[0].weight.detach() != incoming).any(1)
    assert changed.nonzero().flatten().tolist() == [3]
    assert float(model[2].weight.detach()[:, 3].abs().max()) == 0
    assert float((model(x).detach() - before).mean(0).abs().max()) < 1e-6
    assert float(optimizer.state[model[0].weight]["exp_avg"][3].abs().max()) == 0
    assert torch.isnan(continual.utility("1")[3])


def test_the_rate_is_kept_on_average(net):
    model, x = net
    continual = Continual(rate=0.05, maturity=3)
    replaced = [len(continual.step(model, x)) for _ in range(40)]
    # 8 units, 5 % of the mature ones in each step; those replaced are immature for 3 steps.
    assert replaced[:3] == [0, 0, 0]
    assert 10 <= sum(replaced) <= 0.05 * 8 * 37


def test_it_goes_on_where_it_was_saved(net):
    model, x = net
    one, two = Continual(rate=0.05, maturity=2), Continual(rate=0.05, maturity=2)
    for _ in range(4):
        one.step(model, x)
    two.load_state_dict(one.state_dict())
    weights = model.state_dict()
    twin = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    twin.load_state_dict(weights)
    for _ in range(6):
        assert one.step(model, x).units == two.step(twin, x).units
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_as_a_method_of_revive(net):
    model, x = net
    continual = Continual(rate=0.2, maturity=1)
    with pytest.raises(ValueError, match="pass preserve=False"):
        relume.revive(model, None, method=continual, batches=[x])
    revivals = [relume.revive(model, None, method=continual, preserve=False, batches=[x]) for _ in range(3)]
    assert sum(map(len, revivals)) > 0


def test_the_output_layer_is_never_replaced():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2), nn.Sigmoid())
    continual = Continual(rate=0.9, maturity=1)
    for _ in range(4):
        assert set(continual.step(model, torch.randn(64, 4)).units) <= {"1"}
