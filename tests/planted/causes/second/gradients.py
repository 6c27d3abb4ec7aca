"""Not by death: saturation, gradients that vanish or explode through depth."""

import torch
from torch import nn

from .bench import case, cnn, images, mlp, table, train


def linears(model):
    return [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]


def scale(model, by):
    with torch.no_grad():
        for layer in linears(model)[:-1]:
            layer.weight.mul_(by)


@case("sigmoid with weights 100 times too large", "saturation", sites=["1"])
def _(seed):
    model = mlp(30, 48, 2, act=nn.Sigmoid)
    with torch.no_grad():
        model[0].weight.normal_(0, 100)
        model[0].bias.normal_(0, 1000)
    return train(model, table("breast_cancer"), seed, lr=0.01, window=30)


@case("tanh on raw columns up to 1,680", "saturation", sites=["1"])
def _(seed):
    model = mlp(13, 32, 3, act=nn.Tanh)
    return train(model, table("wine", "raw"), seed, lr=0.001, window=30)


@case("tanh pushed into its flat part by a rate of 30", "saturation")
def _(seed):
    model = mlp(64, 32, 32, 10, act=nn.Tanh)
    return train(model, table("digits", "unit"), seed, lr=30.0, window=30)


@case("sigmoid whose biases start at -12", "saturation", sites=["3"])
def _(seed):
    model = mlp(13, 24, 24, 3, act=nn.Sigmoid)
    with torch.no_grad():
        model[2].bias.fill_(-12.0)
    return train(model, table("wine"), seed, lr=0.05, window=30)


@case("hard to learn: ten sigmoids of width 64", "vanishing-gradient")
def _(seed):
    return train(mlp(64, *[64] * 10, 10, act=nn.Sigmoid), table("digits", "unit"), seed, steps=80, window=20)


@case("tanh through eight layers of weights five times too small", "vanishing-gradient")
def _(seed):
    model = mlp(30, *[32] * 8, 2, act=nn.Tanh)
    scale(model, 0.2)
    return train(model, table("breast_cancer"), seed, lr=0.01, steps=80, window=20)


@case("rectifiers through ten layers of weights eight times too small", "vanishing-gradient")
def _(seed):
    model = mlp(13, *[48] * 10, 3)
    with torch.no_grad():
        for layer in linears(model):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            layer.weight.div_(8)
            layer.bias.zero_()
    return train(model, table("wine"), seed, lr=0.01, steps=80, window=20)


@case("a sigmoid CNN of seven layers", "vanishing-gradient")
def _(seed):
    return train(cnn(*[8] * 7, act=nn.Sigmoid), images(), seed, lr=0.02, steps=60, window=20)


@case("rectifiers through twelve layers of weights six times too large, tiny rate", "exploding-gradient")
def _(seed):
    model = mlp(30, *[48] * 12, 2)
    scale(model, 6)
    return train(model, table("breast_cancer"), seed, lr=1e-12, steps=60, window=20)


@case("a module used sixteen times, weights too large", "exploding-gradient", "killed-by-step")
def _(seed):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.cell, self.head = nn.Linear(13, 32), nn.Linear(32, 32), nn.Linear(32, 3)

        def forward(self, x):
            x = self.stem(x).relu()
            for _ in range(16):
                x = self.cell(x).relu()
            return self.head(x)

    model = Net()
    with torch.no_grad():
        model.cell.weight.mul_(6)
    return train(model, table("wine"), seed, lr=1e-12, steps=60, window=20)


@case("GELU through ten layers of weights seven times too large", "exploding-gradient")
def _(seed):
    model = mlp(64, *[64] * 10, 10, act=nn.GELU)
    scale(model, 7)
    return train(model, table("digits", "unit"), seed, lr=1e-12, steps=60, window=20)


@case("a training that diverges to nan", "exploding-gradient", "killed-by-step")
def _(seed):
    model = mlp(10, 48, 48, 48, 1, act=lambda: nn.LeakyReLU(0.1))
    return train(model, table("diabetes"), seed, lr=1.0, steps=60, window=20)
