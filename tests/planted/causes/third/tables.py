"""Third set of planted causes: small real trainings in which units die, or do not, of a cause known by construction.

Mostly multilayer perceptrons on tables and digits. Each case says in its docstring what was planted; see `tools`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .tools import (
    Case,
    Result,
    Tap,
    after,
    born,
    cut,
    data,
    drifts,
    explodes,
    freeze,
    healthy,
    initialize,
    mlp,
    registry,
    saturates,
    set_bias,
    standardize,
    train,
    vanishes,
)

CASES: list[Case] = []
case = registry(CASES)


@case("biases of half the layer loaded at -20", {"born-dead"}, "1", check=born)
def sunk_biases(seed: int, planted: bool) -> Result:
    model = mlp([64, 48, 24, 10])
    if planted:
        set_bias(model[0], -20.0, 0.5)
    return train(seed, model, data("digits"), "adam", lr=1e-3, every=2, window=20)


@case("three quarters of the first weights are minus their magnitude", {"born-dead"}, "1", check=born)
def negative_weights(seed: int, planted: bool) -> Result:
    """Inputs are counts of words, so a unit with no positive weight and no bias never fires."""
    model = initialize(mlp([120, 64, 32, 9]))
    if planted:
        with torch.no_grad():
            model[0].weight[:48] = -model[0].weight[:48].abs()
    return train(seed, model, data("words", "raw"), "sgd", lr=0.005, momentum=0.9)


@case("24 layers of width 2", {"deep-narrow", "silent-site"}, check=cut)
def narrow_tower(seed: int, planted: bool) -> Result:
    model = initialize(mlp([64, *[2 if planted else 48] * 24, 10]))
    return train(seed, model, data("digits"), "adam", lr=1e-4, steps=100, every=1, window=10)


@case("24 layers of width 2 without biases", {"deep-narrow", "silent-site"}, check=cut)
def narrow_tower_without_biases(seed: int, planted: bool) -> Result:
    model = initialize(mlp([13, *[2 if planted else 40] * 24, 3], bias=False))
    return train(seed, model, data("wine"), "sgd", lr=1e-3, steps=80, batch=32, every=1, window=20)


@case("one step at 1000 times the learning rate", {"killed-by-step", "silent-site"}, "1", check=after(60, 4))
def spike(seed: int, planted: bool) -> Result:
    """The digit as a number, by least squares. The step overshoots, the next one meets a huge error."""
    model = mlp([64, 64, 1])
    x, y = data("digits", "unit")

    def before(step: int, opt: torch.optim.Optimizer) -> None:
        opt.param_groups[0]["lr"] = 3.0 if planted and step == 60 else 0.003

    settings = {"before": before, "steps": 160, "every": 1, "window": 10, "marks": (60, 64)}
    return train(seed, model, (x, y.float() - 4.5), lr=0.003, momentum=0.9, **settings)


@case("one batch whose targets are in another unit", {"killed-by-step"}, "1", check=after(80, 4))
def corrupted_batch(seed: int, planted: bool) -> Result:
    """Pixels in 0..1 and the digit as a number; all targets of the batch are positive and far too large."""
    model = mlp([64, 48, 1])
    x, y = data("digits", "unit")

    def change(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x, y * 1000 if planted and step == 80 else y - 4.5

    settings = {"momentum": 0.9, "change": change, "steps": 200, "every": 2, "window": 20, "marks": (80, 84)}
    return train(seed, model, (x, y.float()), lr=0.003, **settings)


@case("Adam at a learning rate of 1", {"killed-by-step", "silent-site"}, check=after(0, 8))
def adam_at_one(seed: int, planted: bool) -> Result:
    model = mlp([64, 64, 32, 10])
    lr = 1.0 if planted else 1e-3
    return train(seed, model, data("digits"), "adam", lr=lr, steps=120, every=1, window=10, marks=(8,))


@case("only biases are trained, with a price on activity", {"bias-drift", "silent-site"}, "1", check=drifts)
def only_biases(seed: int, planted: bool) -> Result:
    tap = Tap()
    model = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), tap, nn.Linear(40, 2))
    model[0].weight.requires_grad_(False)

    def penalty() -> Tensor:
        return (1.0 if planted else 0.0) * tap.value.sum(1).mean()

    return train(
        seed, model, data("breast_cancer", "tame"), "adam", lr=0.04, steps=300, penalty=penalty, every=2, window=20
    )


@case("target far below what a fixed readout gives, biases learn 100 times as fast", {"bias-drift"}, "1", check=drifts)
def target_off_centre(seed: int, planted: bool) -> Result:
    """Inputs are centred: weights cannot move the mean pre-activation, the biases of units with positive output do."""
    model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1, bias=False))
    with torch.no_grad():
        model[2].weight.copy_(0.1 * model[2].weight.sign())
    freeze(model[2])
    x, y = data("diabetes", "tame")
    y = (y - 150) / 77 - (200 if planted else 0)
    groups = [
        {"params": [model[0].weight], "lr": 2e-6},
        {"params": [model[0].bias], "lr": 2.5e-4},
    ]
    return train(seed, model, (x, y), "sgd", momentum=0.95, groups=groups, steps=400, every=5, window=50)


@case("raw pixels without biases, with a price on activity", {"weight-drift", "silent-site"}, "1", check=drifts)
def raw_pixels(seed: int, planted: bool) -> Result:
    """Pixels are 0..16: all weights of a unit fall together. With centred pixels a unit without a bias cannot die."""
    tap = Tap()
    model = nn.Sequential(nn.Linear(64, 48, bias=False), nn.ReLU(), tap, nn.Linear(48, 10, bias=False))
    xy = data("digits", "raw" if planted else "std")

    def penalty() -> Tensor:
        return 3.0 * tap.value.sum(1).mean()

    return train(seed, model, xy, "adam", lr=5e-4, penalty=penalty, steps=400, every=1, window=20)


@case("counts of words and a target far below zero, a fixed readout, no biases", {"weight-drift"}, "1", check=drifts)
def words_off_centre(seed: int, planted: bool) -> Result:
    """Counts are never negative: the weights of units with positive output fall until none is left above zero."""
    x, y = data("words", "raw")
    model = nn.Sequential(nn.Linear(120, 40, bias=False), nn.ReLU(), nn.Linear(40, 1, bias=False))
    freeze(model[2])
    y = y.float() - (500 if planted else 4)
    return train(seed, model, (x, y), "adam", lr=1e-3, betas=(0.9, 0.9), steps=300, every=1, window=20)


@case("the layer below is priced out of activity", {"upstream-cascade", "silent-site"}, "4", check=drifts)
def starved(seed: int, planted: bool) -> Result:
    """The second layer is frozen, its biases slightly negative: without input it is silent. Root: bias-drift at "1"."""
    tap = Tap()
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), tap, nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 10))
    set_bias(model[3], -0.05)
    with torch.no_grad():
        model[3].weight.sub_(model[3].weight.mean(1, keepdim=True))
    freeze(model[3])
    model[0].weight.requires_grad_(False)

    def penalty() -> Tensor:
        return (20.0 if planted else 0.0) * tap.value.sum(1).mean()

    return train(seed, model, data("digits", "tame"), "adam", lr=0.04, penalty=penalty, steps=400, every=2, window=20)


@case("a smooth layer below moves, the layer itself is frozen", {"upstream-cascade"}, "3", check=drifts)
def moved_from_below(seed: int, planted: bool) -> Result:
    """Only the first layer trains, through LeakyReLU, towards a target below what positive output weights can give."""
    model = nn.Sequential(
        nn.Linear(10, 24), nn.LeakyReLU(0.3), nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 1, bias=False)
    )
    with torch.no_grad():
        model[4].weight.abs_()
    freeze(model[2], model[4])
    x, y = data("diabetes")
    y = (y - 150) / 77 - 10 if planted else y / 77
    return train(seed, model, (x, y), "adam", lr=5e-3, steps=300, every=1, window=20)


def shifted(planted: bool, at: int, shift: float, scale: float = 1.0):  # type: ignore[no-untyped-def]
    def change(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (x * scale + shift if planted and step >= at else x), y

    return change


@case("inputs lose 40 each from step 150 on", {"input-shift"}, "1", check=after(150))
def offset(seed: int, planted: bool) -> Result:
    model = mlp([64, 64, 10])
    change = shifted(planted, 150, -40.0)
    return train(
        seed, model, data("digits"), lr=1e-3, clip=0.5, change=change, steps=260, every=1, window=20, marks=(150, 153)
    )


@case("images arrive with an offset of -20 from step 120 on", {"input-shift"}, "1", check=after(120))
def image_offset(seed: int, planted: bool) -> Result:
    model = nn.Sequential(nn.Conv2d(1, 24, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(216, 10))
    change = shifted(planted, 120, -20.0)
    settings = {"clip": 0.1, "change": change, "steps": 200, "every": 2, "window": 20, "marks": (120, 123)}
    return train(seed, model, data("digits", "image"), "adam", lr=1e-4, **settings)


@case("decay of 1 on the weights, none on biases of -0.1", {"weight-decay", "silent-site"}, "1", check=drifts)
def decayed(seed: int, planted: bool) -> Result:
    model = mlp([64, 48, 10])
    set_bias(model[0], -0.1)
    groups = [
        {"params": [model[0].weight, model[2].weight], "weight_decay": 1.0 if planted else 0.0},
        {"params": [model[0].bias, model[2].bias], "weight_decay": 0.0},
    ]
    return train(seed, model, data("digits"), groups=groups, lr=0.03, steps=260, every=2, window=20)


@case("AdamW with a decay of 300 on a convolution", {"weight-decay", "silent-site"}, "1", check=drifts)
def decayed_filters(seed: int, planted: bool) -> Result:
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(576, 10))
    set_bias(model[0], -0.05)
    groups = [
        {"params": [model[0].weight], "weight_decay": 300.0 if planted else 0.0},
        {"params": [model[0].bias, *model[3].parameters()], "weight_decay": 0.0},
    ]
    return train(seed, model, data("digits", "image"), "adamw", groups=groups, lr=1e-4, steps=240, every=2, window=20)


@case("network slimming with too high a price on gamma", {"norm-collapse", "silent-site"}, "2", check=drifts)
def slimmed(seed: int, planted: bool) -> Result:
    model = mlp([64, 48, 10], norm=nn.BatchNorm1d)
    set_bias(model[1], -0.2)

    def penalty() -> Tensor:
        return (0.2 if planted else 0.0) * model[1].weight.abs().sum()

    return train(seed, model, data("digits"), lr=0.03, penalty=penalty, steps=300, every=2, window=20)


@case(
    "beta falls under a price on activity, 20 times as fast as the rest",
    {"norm-collapse", "silent-site"},
    "2",
    check=drifts,
)
def sunk_beta(seed: int, planted: bool) -> Result:
    tap = Tap()
    conv, norm, head = nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.Linear(576, 10)
    model = nn.Sequential(conv, norm, nn.ReLU(), tap, nn.Flatten(), head)
    groups = [
        {"params": [*conv.parameters(), *head.parameters()], "lr": 1e-3},
        {"params": list(norm.parameters()), "lr": 0.02},
    ]

    def penalty() -> Tensor:
        return (10.0 if planted else 0.0) * tap.value.mean((0, 2, 3)).sum()

    settings = {"penalty": penalty, "steps": 240, "every": 2, "window": 20, "betas": (0.9, 0.9)}
    return train(seed, model, data("digits", "image"), "adam", groups=groups, **settings)


@case("raw wine into tanh", {"saturation"}, check=saturates)
def raw_wine(seed: int, planted: bool) -> Result:
    model = mlp([13, 32, 3], nn.Tanh)
    return train(seed, model, data("wine", "raw" if planted else "std"), lr=1e-3, steps=150, batch=32, window=30)


@case("sigmoids initialized with a deviation of 300", {"saturation"}, check=saturates)
def wild_sigmoids(seed: int, planted: bool) -> Result:
    model = initialize(mlp([64, 48, 10], nn.Sigmoid), how="glorot")
    if planted:
        nn.init.normal_(model[0].weight, std=300)
    return train(seed, model, data("digits", "unit"), "adam", lr=1e-3, steps=150, every=2)


@case("eight layers of sigmoids", {"vanishing-gradient"}, check=vanishes)
def sigmoid_tower(seed: int, planted: bool) -> Result:
    model = initialize(mlp([64, *[40] * 8, 10], nn.Sigmoid if planted else nn.Tanh), how="glorot")
    return train(seed, model, data("digits"), lr=0.01, steps=120, every=2, window=20)


@case("ten layers of tanh with tiny weights", {"vanishing-gradient"}, check=vanishes)
def faint_tanh(seed: int, planted: bool) -> Result:
    model = initialize(mlp([30, *[32] * 10, 2], nn.Tanh), 0.2 if planted else 1.0, "glorot")
    return train(seed, model, data("breast_cancer"), "sgd", lr=0.01, steps=120, every=1, window=20)


@case("twelve layers at four times He's scale, clipped", {"exploding-gradient"}, check=explodes)
def loud_tower(seed: int, planted: bool) -> Result:
    model = initialize(mlp([64, *[48] * 12, 10]), 4.0 if planted else 1.0)
    return train(seed, model, data("digits"), lr=1e-4, clip=1.0, steps=100, every=1, window=10)


class Residual(nn.Module):
    def __init__(self, width: int, gain: float) -> None:
        super().__init__()
        self.inner = initialize(nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)), gain)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


@case("ten residual blocks that each grow the stream", {"exploding-gradient"}, check=explodes)
def growing_stream(seed: int, planted: bool) -> Result:
    blocks = [Residual(32, 1.8 if planted else 0.3) for _ in range(10)]
    model = nn.Sequential(nn.Linear(30, 32), *blocks, nn.Linear(32, 2))
    return train(seed, model, data("breast_cancer"), "adamw", lr=1e-5, clip=1.0, steps=100, every=1, window=20)


@case("healthy: rare words, each unit fires seldom", None, check=healthy)
def seldom(seed: int, planted: bool) -> Result:
    x, y = data("words", "raw")
    model = mlp([120, 64, 9])
    with torch.no_grad():
        model[0].bias.sub_(torch.quantile(model[0](x), 0.97, dim=0))
    return train(seed, model, (x, y), lr=0.02, steps=200, batch=128, every=1, window=25)


@case("healthy: a learning rate of 1 under batch norm", None, check=healthy)
def brisk(seed: int, planted: bool) -> Result:
    return train(seed, mlp([64, 64, 32, 10], norm=nn.BatchNorm1d), data("digits"), lr=0.5, every=2, window=20)


@case("healthy: three of 64 dead from the start", None, check=healthy)
def three_of_64(seed: int, planted: bool) -> Result:
    model = mlp([64, 64, 10])
    set_bias(model[0], -20, 3 / 64)
    return train(seed, model, data("digits"), "adam", lr=1e-3, steps=200, every=2, window=20)


@case("healthy: dropout of a half", None, check=healthy)
def dropped(seed: int, planted: bool) -> Result:
    model = mlp([30, 64, 64, 2], dropout=0.5)
    return train(seed, model, data("breast_cancer"), "adam", lr=1e-3, steps=250, every=5, window=50)


@case("healthy: two labels in five are wrong", None, check=healthy)
def noisy(seed: int, planted: bool) -> Result:
    x, y = data("digits")
    wrong = torch.rand(len(y)) < 0.4
    y = torch.where(wrong, torch.randint(0, 10, y.shape), y)
    return train(seed, mlp([64, 48, 48, 10]), (x, y), "sgd", lr=0.03, momentum=0.9, every=2, window=20)


@case("healthy: one class in twenty", None, check=healthy)
def imbalanced(seed: int, planted: bool) -> Result:
    x, y = data("breast_cancer")
    keep = (y == 1) | (torch.rand(len(y)) < 0.09)
    return train(seed, mlp([30, 32, 16, 2]), (standardize(x[keep]), y[keep]), "rmsprop", lr=1e-3, every=2, window=30)


@case("healthy: a plateau, the labels are chance", None, check=healthy)
def chance(seed: int, planted: bool) -> Result:
    x, y = data("digits")
    return train(seed, mlp([64, 32, 32, 10]), (x, y[torch.randperm(len(y))]), lr=0.01, every=2, window=40)


@case("healthy: batches of 16", None, check=healthy)
def tiny_batches(seed: int, planted: bool) -> Result:
    model = mlp([13, 24, 24, 3], nn.LeakyReLU)
    return train(seed, model, data("wine"), "adagrad", lr=0.01, batch=16, steps=400, every=1, window=40)
