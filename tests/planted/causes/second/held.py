"""Held back while the rules are mended: measured once, for a figure at the end."""

import torch
from torch import nn

from .bench import Residual, Transformer, case, cnn, images, mlp, table, text, train


@case("held: a first layer drawn ten times too large and negative", "born-dead", "silent-site", held=True)
def _(seed):
    model = mlp(30, 40, 20, 2)
    nn.init.uniform_(model[0].weight, -2.0, 0.0)
    return train(model, table("breast_cancer", "unit"), seed, lr=0.01, window=50)


@case("held: half the filters of a deep CNN at -10", "born-dead", sites=["3"], held=True)
def _(seed):
    model = cnn(12, 24, 12)
    with torch.no_grad():
        model[2].bias[:12] = -10.0
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    return train(model, images(), seed, optimizer, steps=60, every=5, window=20)


@case("held: Adamax at 1", "killed-by-step", held=True)
def _(seed):
    model = mlp(64, 80, 80, 10)
    return train(model, table("digits", "unit"), seed, torch.optim.Adamax(model.parameters(), 1.0), batch=32, window=30)


@case("held: residual blocks without normalization, AdamW at 0.1", "killed-by-step", held=True)
def _(seed):
    model = Residual(64, 32, 2, 10, norm=nn.Identity)
    return train(model, table("digits", "unit"), seed, torch.optim.AdamW(model.parameters(), 0.1))


@case("held: a step after the rate was multiplied by a thousand by mistake", "killed-by-step", held=True)
def _(seed):
    model = mlp(64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), 0.03)

    def mistake(step):
        optimizer.param_groups[0]["lr"] = 100.0 if step == 20 else 0.03

    return train(model, table("digits", "unit"), seed, optimizer, before_step=mistake, steps=200)


@case("held: biases of the third layer under a steady gradient, nesterov", "bias-drift", sites=["5"], held=True)
def _(seed):
    model = mlp(64, 32, 32, 32, 10)
    push = model[4].bias
    optimizer = torch.optim.SGD(model.parameters(), 0.003, 0.9, nesterov=True)
    return train(model, table("digits", "unit"), seed, optimizer, steps=250, penalty=lambda: 0.5 * push.sum())


@case("held: weights sink on counts of words", "weight-drift", sites=["1"], held=True)
def _(seed):
    rows, y = text()
    x = torch.zeros(len(rows), 200).scatter_add_(1, rows, torch.ones(rows.shape))
    model = mlp(200, 32, 4, bias=False)
    mean = x.mean(0)
    return train(model, (x, y), seed, lr=0.002, steps=250, penalty=lambda: 0.3 * (model[0].weight @ mean).sum())


@case("held: AdamW with a decay of 50 on weights over negative biases", "weight-decay", sites=["1"], held=True)
def _(seed):
    model = mlp(64, 100, 10)
    with torch.no_grad():
        model[0].bias.uniform_(-0.2, -0.1)
    groups = [{"params": [model[0].weight], "weight_decay": 50.0}, {"params": [model[0].bias, *model[2].parameters()]}]
    optimizer = torch.optim.AdamW(groups, 0.001, weight_decay=0.0)
    return train(model, table("digits", "unit"), seed, optimizer, steps=200, window=40)


@case("held: β of batch norm sinks in the second block of a CNN", "norm-collapse", sites=["5"], held=True)
def _(seed):
    model = cnn(8, 16, norm=nn.BatchNorm2d)
    push = model[4].bias
    return train(model, images(), seed, lr=0.05, steps=120, window=20, penalty=lambda: 2.0 * push.sum())


@case("held: the camera turned dark", "input-shift", sites=["1"], held=True)
def _(seed):
    model = cnn(16, 8)
    with torch.no_grad():
        model[0].weight.abs_()
        model[0].bias.fill_(-0.2)
    return train(model, images(), seed, lr=0.003, inputs=lambda s, x: x * 0.01 if s >= 70 else x, steps=140)


@case("held: 16 layers of 3 units", "deep-narrow", "silent-site", held=True)
def _(seed):
    from .birth import narrow

    return train(narrow(seed, table("wine"), 13, 3, 16, 3), table("wine"), seed, lr=0.02, steps=60, window=20)


@case("held: tanh with weights fifty times too large", "saturation", sites=["1"], held=True)
def _(seed):
    model = mlp(30, 24, 2, act=nn.Tanh)
    with torch.no_grad():
        model[0].weight.mul_(50)
        model[0].bias.normal_(0, 200)
    return train(model, table("breast_cancer"), seed, lr=0.01, window=30)


@case("held: twelve sigmoids of width 16", "vanishing-gradient", held=True)
def _(seed):
    return train(mlp(30, *[16] * 12, 2, act=nn.Sigmoid), table("breast_cancer"), seed, steps=60, window=20)


@case("held: fourteen layers drawn four times too large", "exploding-gradient", held=True)
def _(seed):
    model = mlp(13, *[64] * 14, 3)
    with torch.no_grad():
        for layer in model[:-1]:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                layer.weight.mul_(4)
    return train(model, table("wine"), seed, lr=1e-12, steps=60, window=20)


@case("held: healthy: CNN of three layers, SGD with momentum", held=True)
def _(seed):
    model = cnn(16, 32, 32)
    return train(model, images(), seed, torch.optim.SGD(model.parameters(), 0.02, 0.9), steps=60, window=20)


@case("held: healthy: a transformer, AdamW", held=True)
def _(seed):
    model = Transformer()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    return train(model, text(), seed, optimizer, steps=100, every=5, window=50, batch=64)


@case("held: hard: wine at 0.3 with batch norm", held=True)
def _(seed):
    return train(mlp(13, 48, 48, 3, norm=nn.BatchNorm1d), table("wine"), seed, lr=0.3, batch=128)


@case("held: hard: brighter images, nobody dies", held=True)
def _(seed):
    model = cnn(16, 16)
    return train(model, images(), seed, lr=0.02, inputs=lambda s, x: 1.3 * x + 0.1 if s >= 50 else x, steps=100)
