"""Units that never fired: bad biases, badly signed weights, inputs that no unit can like, too narrow for the depth."""

import torch
from torch import nn

from .bench import Bag, Residual, Transformer, case, cnn, images, mlp, table, text, train


def biases(layer, value, share=1.0):
    with torch.no_grad():
        layer.bias[: max(1, round(share * len(layer.bias)))] = value


@case("biases of the second layer at -3, wine, Adam", "born-dead", "silent-site", sites=["3"])
def _(seed):
    model = mlp(13, 24, 8, 24, 3)
    biases(model[2], -3.0)
    return train(model, table("wine"), seed, torch.optim.Adam(model.parameters(), 1e-3), window=50)


@case("weights drawn around -0.3 on digits", "born-dead", "silent-site", sites=["1"])
def _(seed):
    model = mlp(64, 128, 32, 10)
    nn.init.normal_(model[0].weight, -0.3, 0.1)
    return train(model, table("digits", "unit"), seed, lr=0.01, batch=128, every=5, window=50)


@case("tiny weights under biases of -1, breast cancer, RMSprop", "born-dead", "silent-site", sites=["1"])
def _(seed):
    model = mlp(30, 64, 16, 2)
    nn.init.normal_(model[0].weight, 0, 0.01)
    biases(model[0], -1.0)
    return train(model, table("breast_cancer"), seed, torch.optim.RMSprop(model.parameters(), 1e-4), window=50)


@case("β of group norm at -6 in half the channels", "born-dead", sites=["2"])
def _(seed):
    model = cnn(16, 16, norm=lambda c: nn.GroupNorm(4, c))
    biases(model[1], -6.0, 0.5)
    return train(model, images(), seed, lr=0.02, steps=60, window=20)


@case("all inputs strongly negative, all weights positive", "born-dead", "silent-site", sites=["1"])
def _(seed):
    model = mlp(13, 32, 16, 3)
    with torch.no_grad():
        model[0].weight.abs_()
    return train(model, table("wine", "unit"), seed, inputs=lambda s, x: -5 * x - 1, lr=0.005, window=30)


@case("ReLU6 that starts above 6", "born-dead", sites=["3"])
def _(seed):
    model = mlp(64, 48, 48, 10, act=nn.ReLU6)
    biases(model[2], 40.0, 0.6)
    return train(model, table("digits", "unit"), seed, lr=0.01)


@case("a residual block that starts dead", "born-dead", sites=["blocks.1.2"])
def _(seed):
    model = Residual(30, 24, 3, 2)
    biases(model.blocks[1][1], -9.0, 0.8)
    return train(model, table("breast_cancer"), seed, torch.optim.AdamW(model.parameters(), 1e-3), every=5, window=50)


@case("feed-forward biases of a transformer at -5", "born-dead")
def _(seed):
    model = Transformer(layers=2)
    biases(model.layers[1].linear1, -5.0, 0.7)
    return train(model, text(), seed, torch.optim.Adam(model.parameters(), 1e-3), steps=80, window=20, batch=32)


@case("embeddings drawn around -2", "born-dead", "silent-site")
def _(seed):
    model = Bag()
    nn.init.normal_(model.words.weight, -2.0, 0.5)
    return train(model, text(), seed, lr=0.05, window=50)


@case("a 1-layer net, half of 512 units at -8", "born-dead", sites=["1"])
def _(seed):
    model = mlp(30, 512, 2)
    biases(model[0], -8.0, 0.5)
    with torch.no_grad():
        model[0].weight.mul_(0.5)
    return train(model, table("breast_cancer"), seed, torch.optim.SGD(model.parameters(), 0.02, 0.9, nesterov=True))


def narrow(seed, data, inputs, width, depth, outputs):
    for attempt in range(400):
        torch.manual_seed(50_000 + 997 * seed + attempt)
        model = mlp(inputs, *[width] * depth, outputs)
        for layer in model:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        with torch.no_grad():
            if not model[:-1](data[0]).any():
                return model
    raise AssertionError("none of 400 draws is born dead")


@case("20 layers of 2 units, wine", "deep-narrow", "silent-site")
def _(seed):
    model = narrow(seed, table("wine"), 13, 2, 20, 3)
    return train(model, table("wine"), seed, lr=0.01, steps=60, window=20)


@case("24 layers of 4 units, digits, Adam", "deep-narrow", "silent-site")
def _(seed):
    model = narrow(seed, table("digits"), 64, 4, 24, 10)
    return train(model, table("digits"), seed, torch.optim.Adam(model.parameters(), 1e-3), steps=60, window=20)


@case("12 layers of 2 units, regression", "deep-narrow", "silent-site")
def _(seed):
    x, y = table("diabetes")
    y = (y - y.mean()) / y.std()
    return train(narrow(seed, (x, y), 10, 2, 12, 1), (x, y), seed, lr=0.01, steps=60, window=30)
