"""Normalization between producer and activation: what dies is decided after the norm."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn


def test_batch_norm_revives_what_the_bias_would_have_buried(planted):
    """The linear layer's bias is hopeless, but batch norm takes it away; the norm's own bias buries another unit."""
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, momentum=1.0), nn.ReLU(), nn.Linear(8, 1))
    planted.bury(model[0], 0, 1)
    planted.bury(model[1], 5)
    batches = planted.batches(6)
    model.train()(torch.cat(batches))  # running statistics of the data
    census = planted(model, batches, lambda x: {"2": model[1](model[0](x))}, {"2": {5}})
    assert census["2"].site.producers == ("0",)
    assert census["2"].site.between == ("1",)


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (lambda: nn.LayerNorm(8), (6,)),
        (lambda: nn.LayerNorm(8), (5, 6)),
        (lambda: nn.GroupNorm(2, 8), (6,)),
        (lambda: nn.BatchNorm1d(8), (6,)),
    ],
    ids=["layer", "layer, tokens", "group", "batch"],
)
def test_norms_after_linear(planted, norm, shape):
    model = nn.Sequential(nn.Linear(6, 8), norm(), nn.ReLU(), nn.Linear(8, 1))
    planted.bury(model[0], 0, depth=1e-3)
    planted.bury(model[1], 2, 3)

    def oracle(x):
        z = model[1](model[0](x))
        return {"2": z.movedim(-1, 1)}

    planted(model, planted.batches(*shape), oracle, {"2": {2, 3}})


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm])
def test_norms_after_convolution(planted, norm):
    layer = {
        nn.BatchNorm2d: lambda: nn.BatchNorm2d(6),
        nn.InstanceNorm2d: lambda: nn.InstanceNorm2d(6, affine=True),
        nn.GroupNorm: lambda: nn.GroupNorm(3, 6),
        nn.LayerNorm: lambda: nn.LayerNorm([6, 4, 4]),
        nn.LocalResponseNorm: lambda: nn.LocalResponseNorm(2),
    }[norm]()
    model = nn.Sequential(nn.Conv2d(3, 6, 3), layer, nn.ReLU())
    planted.bury(model[0] if norm is nn.LocalResponseNorm else layer, 1)
    planted(model, planted.batches(3, 6, 6, inputs=256), lambda x: {"2": layer(model[0](x))}, {"2": {1}})


def test_batch_norm_with_gamma_zero(planted):
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
    with torch.no_grad():
        model[1].weight[:3] = 0
        model[1].bias.copy_(torch.tensor([0.0, -1.0, 1.0, 0.0, 0.0, 0.0]))
    census = planted(model, planted.batches(3, 6, 6), lambda x: {"2": model[1](model[0](x))}, {"2": {0, 1}})
    assert census["2"].state[2] == "linear"


@pytest.mark.parametrize("written", ["rms", "layer", "batch", "scale and shift"])
def test_norms_written_by_hand(planted, written):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 8)
            self.gain, self.bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))

        def norm(self, x):
            if written == "rms":
                x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
            if written == "layer":
                x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-5).sqrt()
            if written == "batch":
                x = (x - x.mean(0)) / (x.std(0) + 1e-5)
            return x * self.gain + self.bias

        def forward(self, x):
            return F.relu(self.norm(self.fc(x)))

    model = planted.bury(Model(), 3)
    census = planted(model, planted.batches(6), lambda x: {":relu": model.norm(model.fc(x))}, {":relu": {3}})
    assert census[":relu"].site.producers == ("fc",)


def test_another_activation_between(planted):
    """tanh, then ReLU: units of both are the linear layer's; one that tanh leaves negative is dead at the ReLU only."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.ReLU(), nn.Linear(8, 1))
    planted.bury(model[0], 2)

    def oracle(x):
        z = model[0](x)
        return {"1": ("tanh", z), "2": z.tanh()}

    census = planted(model, planted.batches(6), oracle, {"2": {2}})
    assert census["1"].state[2] == "saturated"


def test_normalization_without_a_producer_has_its_own_units(planted):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU())
    planted.bury(model[0], 1)
    planted.bury(model[2], 0)

    def oracle(x):
        h = model[0](x)
        return {"1": h, "3": model[2](h.clamp(min=0))}

    planted(model, planted.batches(3, 6, 6, inputs=256), oracle, {"1": {1}, "3": {0}})


def test_spectral_norm(planted):
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 6, 3)), nn.ReLU())
    planted.bury(model[0], 1)
    census = planted(model, planted.batches(3, 6, 6, inputs=256), lambda x: {"1": model[0](x)}, {"1": {1}}, train=False)
    assert census["1"].site.producers == ("0",)
