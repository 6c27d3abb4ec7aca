"""Nothing is the matter, though it looks as if: no cause is to be named."""

import torch
from torch import nn

from .bench import Residual, case, cnn, images, mlp, table, train


@case("hard: spikes of the loss, clipped")
def _(seed):
    model = mlp(64, 64, 64, 10)
    clip = lambda s: nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # noqa: E731
    return train(
        model, table("digits", "unit"), seed, lr=0.05, before_step=clip, weigh=lambda s: 1e4 if s % 40 == 20 else 1.0
    )


@case("hard: inputs that move under layer norm")
def _(seed):
    model = mlp(30, 48, 48, 2, norm=nn.LayerNorm)
    return train(model, table("breast_cancer"), seed, lr=0.01, inputs=lambda s, x: 2 * x + 1 if s >= 75 else x)


@case("hard: AdamW with a decay of 0.3")
def _(seed):
    model = mlp(64, 64, 64, 10)
    return train(model, table("digits", "unit"), seed, torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.3))


@case("hard: a CNN with batch norm at 0.3")
def _(seed):
    model = cnn(16, 16, norm=nn.BatchNorm2d)
    return train(model, images(), seed, lr=0.3, steps=80, window=20)


@case("hard: units that fire for one class in ten only")
def _(seed):
    model = mlp(64, 40, 10)
    x, _ = table("digits", "unit")
    with torch.no_grad():
        model[0].bias -= torch.quantile(model[0](x), 0.95, dim=0)
    return train(model, table("digits", "unit"), seed, torch.optim.SGD(model.parameters(), 0.002), window=50)


@case("hard: 3 of 64 units dead from the start and never used")
def _(seed):
    model = mlp(13, 64, 3)
    with torch.no_grad():
        model[0].bias[:3] = -80.0
        model[2].weight[:, :3] = 0.0
    return train(model, table("wine"), seed, lr=0.05)


@case("hard: dropout of 0.8")
def _(seed):
    return train(mlp(64, 256, 128, 10, dropout=0.8), table("digits", "unit"), seed, lr=0.05)


@case("hard: a loss a thousand times as large under Adam")
def _(seed):
    model = mlp(30, 48, 48, 2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    return train(model, table("breast_cancer"), seed, optimizer, weigh=lambda s: 1000.0)


@case("hard: windows too short to say")
def _(seed):
    model = mlp(13, 32, 32, 3)
    return train(model, table("wine"), seed, lr=0.3, batch=16, window=10, steps=100)


@case("hard: a rate that rises to 0.3 and falls")
def _(seed):
    model = mlp(64, 96, 10)
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=201, cycle_momentum=False)
    return train(model, table("digits", "unit"), seed, optimizer, steps=200, after_step=lambda s: schedule.step())


@case("hard: biases that sink, and gradients that bring them up again")
def _(seed):
    model = mlp(30, 48, 2, act=nn.ReLU)
    push = model[0].bias
    return train(model, table("breast_cancer"), seed, lr=0.02, steps=200, penalty=lambda: 0.01 * push.sum())


@case("hard: a frozen stem")
def _(seed):
    model = mlp(64, 64, 64, 10)
    model[0].requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3)
    return train(model, table("digits", "unit"), seed, optimizer)


@case("hard: a deep net without trouble")
def _(seed):
    model = Residual(30, 16, 8, 2)
    return train(model, table("breast_cancer"), seed, torch.optim.AdamW(model.parameters(), 1e-3), every=5, window=50)


@case("hard: an L2 penalty of 1e-3 in the loss")
def _(seed):
    model = mlp(64, 64, 10)
    return train(
        model,
        table("digits", "unit"),
        seed,
        lr=0.1,
        penalty=lambda: 1e-3 * sum(p.square().sum() for p in model.parameters()),
    )


@case("hard: two batches added up for each step")
def _(seed):
    model = mlp(64, 64, 64, 10)
    x, y = table("digits", "unit")

    def extra(step):
        rows = slice(8 * step, 8 * step + 64)
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()

    return train(model, (x, y), seed, torch.optim.SGD(model.parameters(), 0.02, 0.9), before_step=extra, steps=120)
