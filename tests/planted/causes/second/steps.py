"""Units thrown over by one or a few steps: learning rates, spikes of the loss or of the gradient, unscaled data."""

import torch
from torch import nn

from .bench import Bag, Residual, Transformer, case, cnn, images, mlp, table, text, train

KILLED = "killed-by-step"


# Where a training may end in numbers that are not finite, "exploding-gradient" is right as well: it is said first.
@case("plain SGD at 8, wine", KILLED, "exploding-gradient")
def _(seed):
    model = mlp(13, 32, 32, 3)
    return train(model, table("wine"), seed, lr=8.0)


@case("nesterov at 1, digits, every 10th step seen", KILLED)
def _(seed):
    model = mlp(64, 96, 96, 10)
    optimizer = torch.optim.SGD(model.parameters(), 1.0, momentum=0.9, nesterov=True)
    return train(model, table("digits", "unit"), seed, optimizer, every=10, window=100, steps=300, batch=128)


@case("Adam at 0.3, breast cancer", KILLED)
def _(seed):
    model = mlp(30, 64, 32, 2)
    return train(model, table("breast_cancer"), seed, torch.optim.Adam(model.parameters(), 0.3), window=50)


@case("RMSprop at 0.1, digits", KILLED)
def _(seed):
    model = mlp(64, 64, 64, 10)
    return train(model, table("digits", "unit"), seed, torch.optim.RMSprop(model.parameters(), 0.1), window=20)


@case("Adagrad at 2, digits", KILLED)
def _(seed):
    model = mlp(64, 64, 64, 10)
    return train(model, table("digits", "unit"), seed, torch.optim.Adagrad(model.parameters(), 2.0), window=20)


@case("a CNN at 1.5", KILLED)
def _(seed):
    model = cnn(12, 24, 24)
    return train(model, images(), seed, torch.optim.SGD(model.parameters(), 1.5, 0.9), steps=80, window=20)


@case("a cosine schedule with restarts at 300 times the rate", KILLED)
def _(seed):
    model = mlp(64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), 0.03, 0.9)
    rate = lambda s: 300.0 if 70 <= s < 75 else 1.0  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    return train(model, table("digits", "unit"), seed, optimizer, after_step=lambda s: schedule.step())


@case("a loss 10,000 times as large in one batch, no clipping", KILLED, "exploding-gradient")
def _(seed):
    model = mlp(13, 48, 48, 3)
    return train(model, table("wine"), seed, lr=0.05, weigh=lambda s: 1e4 if s == 60 + seed % 7 else 1.0)


@case("one corrupted batch, inputs 3,000 times as large", KILLED, "input-shift")
def _(seed):
    model = mlp(64, 48, 10)
    bad = 40 + seed % 9
    return train(model, table("digits", "unit"), seed, lr=0.05, inputs=lambda s, x: x * 3000 if s == bad else x)


@case("a gradient spike in one layer", KILLED, sites=["3"])
def _(seed):
    model = mlp(30, 48, 48, 48, 2)

    def spike(step):
        if step == 80 + seed % 5:
            model[2].weight.grad.add_(30.0)
            model[2].bias.grad.add_(300.0)

    return train(model, table("breast_cancer"), seed, lr=0.03, before_step=spike)


@case("targets of regression left at 25 to 346", KILLED, "exploding-gradient")
def _(seed):
    model = mlp(10, 48, 48, 1)
    return train(model, table("diabetes"), seed, lr=0.005)


@case("raw columns up to 1,680 with a rate of 0.05, wine", KILLED, "weight-drift", "silent-site")
def _(seed):
    return train(mlp(13, 48, 24, 3), table("wine", "raw"), seed, lr=0.05)


@case("raw columns up to 4,254 with momentum, breast cancer", KILLED, "weight-drift", "silent-site")
def _(seed):
    model = mlp(30, 64, 2)
    return train(model, table("breast_cancer", "raw"), seed, torch.optim.SGD(model.parameters(), 0.01, 0.9))


@case("residual blocks, Adam at 0.1", KILLED)
def _(seed):
    model = Residual(64, 32, 3, 10)
    return train(model, table("digits", "unit"), seed, torch.optim.Adam(model.parameters(), 0.1), steps=80)


@case("a spike in the feed-forward layer of a transformer", KILLED)
def _(seed):
    model = Transformer()

    def spike(step):
        if step == 50:
            model.layers[0].linear1.bias.grad.add_(200.0)

    return train(model, text(), seed, lr=0.05, steps=100, window=20, batch=32, before_step=spike)


@case("a bag of words, Adam at 3", KILLED)
def _(seed):
    model = Bag()
    return train(model, text(), seed, torch.optim.Adam(model.parameters(), 3.0), steps=100, window=25)


@case("leaving out the warm-up of a 6-layer net at 0.4", KILLED, "exploding-gradient")
def _(seed):
    model = mlp(64, *[64] * 6, 10)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return train(model, table("digits", "unit"), seed, torch.optim.SGD(model.parameters(), 0.4, 0.9), window=50)


@case("one group's rate a hundred times the other's", KILLED, sites=["3"])
def _(seed):
    model = mlp(64, 48, 48, 10)
    groups = [
        {"params": [*model[0].parameters(), *model[4].parameters()], "lr": 0.02},
        {"params": [*model[2].parameters()], "lr": 30.0},
    ]
    return train(model, table("digits", "unit"), seed, torch.optim.SGD(groups, momentum=0.5), batch=128)
