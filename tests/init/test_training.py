"""What the gain decides in training, and what it does not: digits, SGD with momentum 0.9."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import relume


def train(model: nn.Module, x: Tensor, y: Tensor, lr: float, steps: int = 150) -> float:
    """Accuracy on the inputs held out, NaN when the loss was."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        pick = torch.randint(1400, (64,), generator=generator)
        loss = F.cross_entropy(model(x[pick]), y[pick])
        if not torch.isfinite(loss):
            return math.nan
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return float((model(x[1400:]).argmax(1) == y[1400:]).double().mean())


@pytest.mark.parametrize(
    ("kind", "depth", "lr"),
    [(relume.nn.DReLU, 10, 0.02), (lambda: nn.LeakyReLU(0.5), 20, 0.01)],
    ids=["drelu", "leaky"],
)
def test_deep_networks_diverge_with_relus_gain_and_train_with_their_own(
    kind, depth: int, lr: float, make_mlp, digits, labels
) -> None:
    for seed in range(2):
        torch.manual_seed(seed)
        model = make_mlp(64, *[128] * depth, 10, activation=kind)
        relume.init.he_(model, activation={"0": "linear", "*": "relu"})
        assert not train(model, digits, labels, lr) > 0.5
        model = make_mlp(64, *[128] * depth, 10, activation=kind)  # a DReLU remembers what it has seen
        relume.init.he_(model)
        assert train(model, digits, labels, lr) > 0.8


def test_at_a_learning_rate_where_relu_dies_what_can_not_die_explodes_whatever_its_gain(
    make_mlp, digits, labels
) -> None:
    """Three layers of 64 at 0.2: no gain makes such a step small enough."""
    torch.manual_seed(0)
    relu = make_mlp(64, 64, 64, 64, 10)
    relume.init.he_(relu)
    assert train(relu, digits, labels, 0.2) < 0.15
    assert relume.census(relu, [digits]).silent_sites
    for kind in (relume.nn.DReLU, lambda: nn.LeakyReLU(0.2)):
        for gain in ({"0": "linear", "*": "relu"}, None):
            model = make_mlp(64, 64, 64, 64, 10, activation=kind)
            relume.init.he_(model, activation=gain)
            assert math.isnan(train(model, digits, labels, 0.2))
