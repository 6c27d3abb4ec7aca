"""Not the layer's own doing: the data moved, or the layer below did."""

import torch
from torch import nn

from .bench import Bag, case, cnn, images, mlp, table, text, train


def friendly(layer, scale=0.5):
    """Weights that like inputs above zero."""
    with torch.no_grad():
        layer.weight.abs_().mul_(scale)


@case("standardization left out from step 100 on: inputs moved by -6", "input-shift", sites=["1"])
def _(seed):
    model = mlp(30, 48, 24, 2)
    friendly(model[0])
    at = 100 + seed % 10
    return train(model, table("breast_cancer"), seed, lr=0.003, inputs=lambda s, x: x - 6 if s >= at else x)


@case("images inverted and scaled, CNN", "input-shift", sites=["1"])
def _(seed):
    model = cnn(12, 12)
    friendly(model[0])
    return train(model, images(), seed, lr=0.005, inputs=lambda s, x: -4 * x - 1 if s >= 60 else x, steps=120)


@case("the sign of the inputs turned, seen at every 5th step", "input-shift", sites=["1"])
def _(seed):
    model = mlp(13, 64, 3)
    friendly(model[0])
    data = table("wine", "unit")
    return train(
        model, data, seed, lr=0.003, inputs=lambda s, x: -3 * x if s >= 150 else x, steps=300, every=5, window=50
    )


@case("inputs that move off slowly", "input-shift", sites=["1"])
def _(seed):
    model = mlp(64, 48, 10)
    friendly(model[0], 0.7)
    return train(
        model,
        table("digits", "unit"),
        seed,
        lr=0.001,
        inputs=lambda s, x: x - 0.02 * max(0, s - 60),
        steps=240,
        window=30,
    )


@case("words of another language: every index is a new one", "input-shift")
def _(seed):
    model = Bag(words=400)
    with torch.no_grad():
        model.words.weight[:200].abs_()
        model.words.weight[200:].abs_().neg_()
    return train(model, text(), seed, lr=0.02, inputs=lambda s, x: x + 200 if s >= 75 else x)


@case(
    "the lower layer thrown by its own rate, the upper one starved",
    "killed-by-step",
    "silent-site",
    sites=["1"],
    at={"3": ["upstream-cascade"]},
)
def _(seed):
    model = mlp(64, 48, 48, 10)
    with torch.no_grad():
        model[2].bias.uniform_(-0.06, -0.03)
    groups = [
        {"params": [*model[0].parameters()], "lr": 0.02},
        {"params": [*model[2].parameters(), *model[4].parameters()], "lr": 0.002},
    ]
    optimizer = torch.optim.SGD(groups)

    def throw(step):
        if step == 70 + seed % 9:
            model[0].bias.grad.fill_(3000.0)

    return train(model, table("digits", "unit"), seed, optimizer, before_step=throw)


@case(
    "biases of the lower layer pushed down until the upper one starves",
    "bias-drift",
    "silent-site",
    sites=["1"],
    at={"3": ["upstream-cascade"]},
)
def _(seed):
    model = mlp(13, 32, 32, 3)
    with torch.no_grad():
        model[2].bias.uniform_(-0.15, -0.05)
    push = model[0].bias
    groups = [{"params": model[0].parameters(), "lr": 0.02}, {"params": model[2:].parameters(), "lr": 0.0005}]
    return train(
        model, table("wine"), seed, torch.optim.SGD(groups), steps=400, window=40, penalty=lambda: 1.5 * push.sum()
    )


@case(
    "a frozen upper layer over a lower one that decays away",
    "weight-decay",
    "silent-site",
    sites=["1"],
    at={"3": ["upstream-cascade"]},
)
def _(seed):
    model = mlp(30, 40, 40, 2)
    with torch.no_grad():
        model[0].bias.uniform_(-0.3, -0.1)
        model[2].bias.uniform_(-0.2, -0.1)
    model[2].requires_grad_(False)
    groups = [
        {"params": [model[0].weight], "weight_decay": 2.0},
        {"params": [model[0].bias, *model[4].parameters()], "weight_decay": 0.0},
    ]
    return train(model, table("breast_cancer"), seed, torch.optim.SGD(groups, 0.02), steps=300, window=30)


@case("inputs turned off under a stem that is frozen", "input-shift", sites=["1"])
def _(seed):
    model = mlp(64, 48, 32, 10)
    friendly(model[0])
    model[0].requires_grad_(False)
    with torch.no_grad():
        model[0].bias.fill_(-0.1)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3)
    return train(model, table("digits", "unit"), seed, optimizer, inputs=lambda s, x: x - 3 if s >= 80 else x)


@case("inputs scaled 100 times downwards under negative biases", "input-shift", sites=["1"])
def _(seed):
    model = nn.Sequential(nn.Linear(13, 48), nn.LeakyReLU(0.0), nn.Linear(48, 3))
    model[1] = nn.ReLU()
    with torch.no_grad():
        model[0].bias.uniform_(-0.3, -0.2)
    return train(model, table("wine"), seed, lr=0.005, inputs=lambda s, x: x / 100 if s >= 75 else x)
