"""Trainings as they should be."""

import torch
import torch.nn.functional as F
from torch import nn

from .bench import Bag, Residual, Transformer, case, cnn, images, mlp, table, text, train


@case("healthy: one layer of 512, Adam")
def _(seed):
    model = mlp(64, 512, 10)
    return train(model, table("digits", "unit"), seed, torch.optim.Adam(model.parameters(), 1e-3), window=50)


@case("healthy: six layers of 64 by He, SGD")
def _(seed):
    model = mlp(64, *[64] * 6, 10)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return train(model, table("digits", "unit"), seed, lr=0.01, batch=128, every=5, window=50)


@case("healthy: CNN with group norm, AdamW")
def _(seed):
    model = cnn(16, 16, 16, norm=lambda c: nn.GroupNorm(4, c))
    return train(model, images(), seed, torch.optim.AdamW(model.parameters(), 2e-3), steps=60, window=20)


@case("healthy: residual blocks with layer norm")
def _(seed):
    model = Residual(64, 32, 3, 10)
    return train(model, table("digits", "unit"), seed, torch.optim.AdamW(model.parameters(), 1e-3), window=25)


@case("healthy: a transformer on text")
def _(seed):
    model = Transformer(layers=2)
    return train(model, text(), seed, torch.optim.Adam(model.parameters(), 1e-3), steps=100, window=20, batch=32)


@case("healthy: a bag of words")
def _(seed):
    model = Bag()
    return train(model, text(), seed, torch.optim.Adam(model.parameters(), 1e-2), steps=150, window=50)


@case("healthy: regression with scaled targets")
def _(seed):
    x, y = table("diabetes")
    model = mlp(10, 64, 32, 1)
    return train(model, (x, (y - y.mean()) / y.std()), seed, torch.optim.SGD(model.parameters(), 0.01, 0.9), window=30)


@case("healthy: GELU, four layers")
def _(seed):
    model = mlp(64, *[48] * 4, 10, act=nn.GELU)
    return train(model, table("digits", "unit"), seed, torch.optim.AdamW(model.parameters(), 2e-3))


@case("healthy: SiLU, width 128, RMSprop")
def _(seed):
    model = mlp(30, 128, 128, 2, act=nn.SiLU)
    return train(model, table("breast_cancer"), seed, torch.optim.RMSprop(model.parameters(), 5e-4))


@case("healthy: leaky rectifiers, Adagrad")
def _(seed):
    model = mlp(13, 64, 64, 3, act=nn.LeakyReLU)
    return train(model, table("wine"), seed, torch.optim.Adagrad(model.parameters(), 0.01))


@case("healthy: one sigmoid layer")
def _(seed):
    return train(mlp(13, 32, 3, act=nn.Sigmoid), table("wine"), seed, lr=0.1)


@case("healthy: dropout of one half")
def _(seed):
    model = mlp(64, 128, 128, 10, dropout=0.5)
    return train(model, table("digits", "unit"), seed, torch.optim.SGD(model.parameters(), 0.05, 0.9))


@case("healthy: warm-up and cosine")
def _(seed):
    model = mlp(64, 96, 96, 10)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=201)
    return train(model, table("digits", "unit"), seed, optimizer, steps=200, after_step=lambda s: schedule.step())


@case("healthy: ReLU6, nesterov")
def _(seed):
    model = mlp(30, 64, 32, 2, act=nn.ReLU6)
    return train(model, table("breast_cancer"), seed, torch.optim.SGD(model.parameters(), 0.02, 0.9, nesterov=True))


@case("healthy: RMS norm, every 10th step seen")
def _(seed):
    model = mlp(64, 64, 64, 10, norm=nn.RMSNorm)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    return train(model, table("digits", "unit"), seed, optimizer, steps=400, every=10, window=100)


@case("healthy: functional calls, batches of 16")
def _(seed):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(30, 32), nn.Linear(32, 32), nn.Linear(32, 2)

        def forward(self, x):
            return self.c(torch.relu(self.b(F.relu(self.a(x)))))

    model = Net()
    return train(model, table("breast_cancer"), seed, lr=0.02, batch=16, steps=400, window=80)


@case("healthy: deep tanh by Xavier")
def _(seed):
    model = mlp(30, *[32] * 5, 2, act=nn.Tanh)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight, nn.init.calculate_gain("tanh"))
    return train(model, table("breast_cancer"), seed, lr=0.02)
