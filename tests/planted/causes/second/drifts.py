"""Units pushed down little by little: biases, weights on inputs that are never negative, penalties, weight decay."""

import torch
import torch.nn.functional as F
from torch import nn

from .bench import Transformer, case, cnn, images, mlp, table, text, train


@case("a penalty on the biases of layer 2", "bias-drift", sites=["3"])
def _(seed):
    model = mlp(30, 32, 32, 32, 2)
    push = model[2].bias
    return train(model, table("breast_cancer"), seed, lr=0.03, steps=300, window=30, penalty=lambda: 0.6 * push.sum())


@case("a rectified output on targets below zero", "bias-drift", "weight-drift")
def _(seed):
    x, y = table("diabetes")
    y = -(y / y.std()) - 1
    model = nn.Sequential(nn.Linear(10, 24), nn.Tanh(), nn.Linear(24, 1), nn.ReLU())
    nn.init.constant_(model[2].bias, 1.0)
    return train(model, (x, y), seed, lr=0.004, steps=300, window=30)


@case("biases under Adam, pushed by a steady gradient", "bias-drift", sites=["1"])
def _(seed):
    model = mlp(13, 64, 3)
    push = model[0].bias
    optimizer = torch.optim.Adam(
        [{"params": [push], "lr": 0.03}, {"params": [model[0].weight, *model[2].parameters()]}], 1e-3
    )
    return train(model, table("wine"), seed, optimizer, steps=300, window=50, penalty=lambda: 5.0 * push.sum())


@case("a steady negative gradient on channels of the second convolution", "bias-drift", sites=["3"])
def _(seed):
    model = cnn(8, 16)

    def push(step):
        model[2].bias.grad.add_(1.5)

    return train(model, images(), seed, lr=0.02, steps=120, window=20, before_step=push)


@case("biases of the feed-forward pushed down in a transformer", "bias-drift")
def _(seed):
    model = Transformer()
    push = model.layers[0].linear1.bias
    return train(model, text(), seed, lr=0.03, steps=250, window=25, batch=32, penalty=lambda: 1.2 * push.sum())


def activity(model, at):
    """Keeps the output of one layer for a penalty."""
    kept = {}
    model[at].register_forward_hook(lambda m, a, out: kept.__setitem__("out", out))
    return kept


@case("an L1 penalty on activations, standardized inputs", "bias-drift", "weight-drift", sites=["1"])
def _(seed):
    model = mlp(30, 48, 2)
    kept = activity(model, 1)
    return train(
        model,
        table("breast_cancer"),
        seed,
        lr=0.05,
        steps=400,
        window=40,
        penalty=lambda: 0.3 * kept["out"].sum(1).mean(),
    )


@case("an L1 penalty on activations, inputs 0 to 1", "weight-drift", "bias-drift", sites=["1"])
def _(seed):
    model = mlp(64, 48, 10)
    kept = activity(model, 1)
    return train(
        model,
        table("digits", "unit"),
        seed,
        lr=0.02,
        steps=400,
        window=40,
        penalty=lambda: 0.5 * kept["out"].sum(1).mean(),
    )


@case("weights without bias, inputs 0 to 1, pushed down", "weight-drift", sites=["1"])
def _(seed):
    model = mlp(13, 32, 3, bias=False)
    mean = table("wine", "unit")[0].mean(0)
    return train(
        model,
        table("wine", "unit"),
        seed,
        lr=0.01,
        steps=300,
        window=30,
        penalty=lambda: 0.5 * (model[0].weight @ mean).sum(),
    )


@case("weights pushed down on inputs far from zero, with bias", "weight-drift", sites=["1"])
def _(seed):
    model = mlp(30, 40, 2)
    mean = table("breast_cancer", "unit")[0].mean(0) + 1
    return train(
        model,
        table("breast_cancer", "unit"),
        seed,
        inputs=lambda s, x: x + 1,
        lr=0.002,
        steps=300,
        window=50,
        penalty=lambda: 0.3 * (F.relu(model[0].weight @ mean + 2)).sum(),
    )


@case("weights of a convolution pushed down on images that are never negative", "weight-drift", sites=["1"])
def _(seed):
    model = cnn(12, 12)
    with torch.no_grad():
        model[0].bias.zero_()
    push = model[0].weight
    return train(model, images(), seed, lr=0.01, steps=150, window=25, penalty=lambda: 0.3 * push.sum())


def negative_biases(model, low, high):
    with torch.no_grad():
        model[0].bias.uniform_(low, high)
    rest = [model[0].bias, *model[2:].parameters()]
    return [{"params": [model[0].weight], "weight_decay": 0.0}, {"params": rest, "weight_decay": 0.0}]


@case("SGD with a decay of 0.5 on weights over negative biases", "weight-decay", sites=["1"])
def _(seed):
    model = mlp(64, 64, 10)
    groups = negative_biases(model, -0.4, -0.15)
    groups[0]["weight_decay"] = 0.5
    return train(model, table("digits", "unit"), seed, torch.optim.SGD(groups, 0.03), steps=400, window=40)


@case("AdamW with a decay of 20 on weights over negative biases", "weight-decay", sites=["1"])
def _(seed):
    model = mlp(13, 48, 3)
    groups = negative_biases(model, -0.5, -0.3)
    groups[0]["weight_decay"] = 20.0
    return train(model, table("wine"), seed, torch.optim.AdamW(groups, 0.002), steps=200, window=25)


@case("Adam with an L2 of 3 on weights over negative biases", "weight-decay", sites=["1"])
def _(seed):
    model = mlp(30, 48, 2)
    groups = negative_biases(model, -0.5, -0.3)
    groups[0]["weight_decay"] = 3.0
    return train(model, table("breast_cancer"), seed, torch.optim.Adam(groups, 0.003), steps=250, window=25)


@case("an L2 penalty in the loss on weights over negative biases", "weight-decay", "weight-drift", sites=["1"])
def _(seed):
    model = mlp(64, 48, 10)
    negative_biases(model, -0.25, -0.1)
    weight = model[0].weight
    return train(
        model, table("digits", "unit"), seed, lr=0.03, steps=300, window=30, penalty=lambda: 0.4 * weight.square().sum()
    )


@case("a convolution with a decay of 1 over negative biases", "weight-decay", sites=["1"])
def _(seed):
    model = cnn(16, 16)
    groups = negative_biases(model, -0.3, -0.15)
    groups[0]["weight_decay"] = 1.0
    return train(model, images(), seed, torch.optim.SGD(groups, 0.03, 0.5), steps=150, window=25)
