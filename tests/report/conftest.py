"""Recordings whose story is known: units killed by hand at known steps."""

import pytest
import torch
from torch import nn

import relume


class TwoLayers(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU6())
        self.head = nn.Linear(width, 1)

    def forward(self, x):
        return self.head(self.body(x))


def killed_by_hand(
    *, save=None, kill=(), windows=4, per_window=5, width=8, rows=64, min_inputs=256, loss=True, **options
):
    """Train with learning rate 0, so that only `kill` moves anything: (step, site's Linear, units, bias)."""
    torch.manual_seed(0)
    model = TwoLayers(width)
    with torch.no_grad():
        model.body[0].bias.fill_(1.0)
        model.body[2].bias.fill_(1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with relume.watch(
        model, optimizer, every=1, window=per_window, save=save, min_inputs=min_inputs, **options
    ) as watch:
        for step in range(windows * per_window):
            for at, layer, units, bias in kill:
                if at == step:
                    with torch.no_grad():
                        model.body[layer].bias[list(units)] = bias
            value = model(torch.randn(rows, 4)).square().mean()
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            if loss:
                watch.log(loss=float(value.detach()))
    return watch


@pytest.fixture
def make_run():
    return killed_by_hand
