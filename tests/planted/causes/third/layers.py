"""Fourth set of planted causes: other architectures, data and mechanisms than the third; held out from the diagnosis.

Convolutions, transformer blocks, functional activations, residual streams. Each case says what was planted.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
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


def conv(channels: int, act: nn.Module | None = None, norm: nn.Module | None = None) -> nn.Sequential:
    """Conv 3×3 (norm) act Flatten Linear, on 1×8×8."""
    parts = [nn.Conv2d(1, channels, 3), *([norm] if norm else []), act or nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*parts, nn.Linear(channels * 36, 10))


class Feedforward(nn.Module):
    """A transformer's MLP block on rows of an image as tokens: x + fc2(relu(fc1(norm(x))))."""

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.norm = nn.LayerNorm(16)
        self.fc1 = nn.Linear(16, hidden)
        self.act = nn.ReLU()
        self.fc2 = nn.Linear(hidden, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x.flatten(1).view(len(x), 8, 8))
        h = h + self.fc2(self.act(self.fc1(self.norm(h))))
        return self.head(h.mean(1))


class Functional(nn.Module):
    """`depth` layers of `width`, with F.relu."""

    def __init__(self, features: int, width: int, depth: int, classes: int) -> None:
        super().__init__()
        sizes = [features, *[width] * depth]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.head = nn.Linear(width, classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.head(x)


@case("a block's first biases loaded at -15", {"born-dead"}, "act", check=born)
def sunk_block(seed: int, planted: bool) -> Result:
    model = Feedforward()
    if planted:
        set_bias(model.fc1, -15.0, 0.7)
    return train(seed, model, data("digits", "image"), "adamw", lr=1e-3, steps=120, every=2, window=20)


@case("filters all negative on pictures of 0..1", {"born-dead"}, "1", check=born)
def negative_filters(seed: int, planted: bool) -> Result:
    model = initialize(conv(24))
    with torch.no_grad():
        model[0].weight.sub_(model[0].weight.mean((1, 2, 3), keepdim=True))
        if planted:
            model[0].weight[:12] = -model[0].weight[:12].abs()
    x, y = data("digits", "image")
    return train(seed, model, ((x + 1) / 2, y), lr=0.02, momentum=0.9, steps=120, every=1, window=10)


@case("ReLU6 pushed above its ceiling by biases of 30", {"born-dead"}, "1", check=born)
def above_the_ceiling(seed: int, planted: bool) -> Result:
    model = mlp([30, 64, 2], nn.ReLU6)
    if planted:
        set_bias(model[0], 30.0, 0.5)
    return train(seed, model, data("breast_cancer", "tame"), "adam", lr=1e-3, steps=160, every=2, window=20)


@case("30 functional layers of width 2", {"deep-narrow", "silent-site"}, check=cut)
def functional_tower(seed: int, planted: bool) -> Result:
    model = Functional(30, 2 if planted else 48, 30, 2)
    return train(seed, model, data("breast_cancer"), "adam", lr=1e-4, steps=80, every=1, window=10)


@case("a tower of ReLU6, width 2, on words", {"deep-narrow", "silent-site"}, check=cut)
def narrow_words(seed: int, planted: bool) -> Result:
    model = initialize(mlp([120, *[2 if planted else 48] * 28, 9], nn.ReLU6))
    return train(seed, model, data("words"), "sgd", lr=1e-3, steps=80, every=1, window=20)


@case("RMSprop at a learning rate of 0.5", {"killed-by-step", "silent-site"}, check=after(0, 8))
def rmsprop_at_half(seed: int, planted: bool) -> Result:
    model = mlp([64, 96, 48, 10])
    lr = 0.5 if planted else 1e-3
    return train(seed, model, data("digits"), "rmsprop", lr=lr, steps=120, every=1, window=10, marks=(8,))


@case(
    "one batch of inputs multiplied by 300", {"killed-by-step", "input-shift", "silent-site"}, "1", check=after(70, 4)
)
def outlier_batch(seed: int, planted: bool) -> Result:
    """One batch, then the data are as before: the step of that batch did it."""
    model = mlp([64, 64, 1])
    x, y = data("digits", "unit")

    def change(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (x * 300 if planted and step == 70 and len(x) == 64 else x), y

    settings = {"change": change, "steps": 160, "every": 1, "window": 10, "marks": (70, 74)}
    return train(seed, model, (x, y.float() - 4.5), lr=0.003, momentum=0.9, **settings)


@case(
    "a schedule multiplies the learning rate by 5000 for one step",
    {"killed-by-step", "silent-site"},
    "1",
    check=after(90, 5),
)
def wrong_schedule(seed: int, planted: bool) -> Result:
    x, y = data("words", "raw")
    model = nn.Sequential(nn.Linear(120, 48), nn.ReLU(), nn.Linear(48, 1))

    def before(step: int, opt: torch.optim.Optimizer) -> None:
        opt.param_groups[0]["lr"] = 5.0 if planted and step == 90 else 0.001

    return train(
        seed, model, (x, y.float() - 4), momentum=0.8, before=before, steps=180, batch=128, window=15, marks=(90, 95)
    )


@case("a balancing rule lowers the biases of units that fire", {"bias-drift", "silent-site"}, "1", check=drifts)
def balanced_to_death(seed: int, planted: bool) -> Result:
    model = mlp([64, 64, 10])
    images = data("digits", "tame")

    def before(step: int, opt: torch.optim.Optimizer) -> None:
        if planted:
            with torch.no_grad():
                model[0].bias.sub_(0.04 * (model[0](images[0]) > 0).any(0))

    return train(seed, model, images, lr=0.003, before=before, steps=300, every=2, window=20)


@case("biases of a convolution priced on activity, filters frozen", {"bias-drift", "silent-site"}, "1", check=drifts)
def priced_channels(seed: int, planted: bool) -> Result:
    tap = Tap()
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), tap, nn.Flatten(), nn.Linear(576, 10))
    model[0].weight.requires_grad_(False)
    groups = [{"params": [model[0].bias], "lr": 0.02}, {"params": list(model[4].parameters()), "lr": 1e-3}]

    def penalty() -> Tensor:
        return (5.0 if planted else 0.0) * tap.value.mean((0, 2, 3)).sum()

    settings = {"penalty": penalty, "steps": 200, "every": 2, "window": 20, "betas": (0.9, 0.9)}
    return train(seed, model, data("digits", "image"), "adam", groups=groups, **settings)


@case("the bias as a constant feature of 10", {"weight-drift"}, "1", check=drifts)
def constant_feature(seed: int, planted: bool) -> Result:
    """No biases; a column of tens instead, whose weight falls in units with positive output under a low target."""
    x, y = data("diabetes", "tame")
    x = torch.cat([x, torch.full((len(x), 1), 10.0 if planted else 0.0)], 1)
    model = nn.Sequential(nn.Linear(11, 32, bias=False), nn.ReLU(), nn.Linear(32, 1, bias=False))
    with torch.no_grad():
        model[0].weight[:, 10] = 0.0
        model[2].weight.copy_(0.2 * model[2].weight.sign())
    freeze(model[2])
    return train(seed, model, (x, (y - 150) / 77 - 200), lr=1.5e-6, momentum=0.95, steps=300, every=1, window=20)


@case("raw iris, no biases, priced on activity", {"weight-drift", "silent-site"}, "1", check=drifts)
def raw_iris(seed: int, planted: bool) -> Result:
    tap = Tap()
    model = nn.Sequential(nn.Linear(4, 48, bias=False), nn.ReLU(), tap, nn.Linear(48, 3))
    with torch.no_grad():
        model[0].weight.abs_()
    xy = data("iris", "raw" if planted else "std")

    def penalty() -> Tensor:
        return 2.0 * tap.value.sum(1).mean()

    return train(seed, model, xy, lr=6e-5, momentum=0.9, penalty=penalty, steps=300, batch=32, every=1, window=20)


@case("a convolution starves the layer above", {"upstream-cascade", "silent-site"}, "5", check=drifts)
def starved_above_a_convolution(seed: int, planted: bool) -> Result:
    """Only the convolution's biases fall, by hand; the layer above is frozen, biases -0.02. Root: bias-drift at "1"."""
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(108, 32), nn.ReLU(), nn.Linear(32, 10)
    )
    set_bias(model[4], -0.02)
    freeze(model[4])
    with torch.no_grad():
        model[4].weight.sub_(model[4].weight.mean(1, keepdim=True))

    def before(step: int, opt: torch.optim.Optimizer) -> None:
        if planted and step >= 40:
            with torch.no_grad():
                model[0].bias.sub_(0.03)

    return train(seed, model, data("digits", "image"), lr=0.002, before=before, steps=240, every=2, window=20)


class Block(nn.Module):
    """x + W2 gelu(W1 x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(x)))


@case("the residual stream is pushed from below", {"upstream-cascade"}, "3", check=drifts)
def pushed_stream(seed: int, planted: bool) -> Result:
    """Embedding and residual GELU block train on a low target; the ReLU layer, with positive readout, is frozen."""
    block = Block(32)
    model = nn.Sequential(nn.Linear(30, 32), block, nn.Linear(32, 40), nn.ReLU(), nn.Linear(40, 1))
    with torch.no_grad():
        model[4].weight.abs_()
    set_bias(model[2], 0.0)
    freeze(model[2], model[4])
    x, y = data("breast_cancer", "tame")
    y = y.float() - (40 if planted else -1)
    return train(seed, model, (x, y), lr=6e-4, momentum=0.95, steps=300, every=1, window=20)


@case("columns scaled no longer from step 140 on", {"input-shift"}, "1", check=after(140))
def scaling_lost(seed: int, planted: bool) -> Result:
    """Standardized, then raw: areas of 650 reach a network that knew columns of deviation 1."""
    raw, y = data("breast_cancer", "raw")
    centre, spread = raw.mean(0), raw.std(0)
    model = mlp([30, 64, 2])

    def change(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (x if planted and step >= 140 else (x - centre) / spread), y

    settings = {"change": change, "clip": 0.1, "steps": 240, "every": 1, "window": 20, "marks": (140, 143)}
    return train(seed, model, (raw, y), lr=1e-3, **settings)


@case("the pictures' sign and range change from step 120 on", {"input-shift"}, "act", check=after(120))
def brightness(seed: int, planted: bool) -> Result:
    model = Feedforward()
    model.norm = nn.Identity()  # type: ignore[assignment]

    def change(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (40 - x if planted and step >= 120 else x), y

    settings = {"change": change, "clip": 0.05, "steps": 220, "every": 2, "window": 20, "marks": (120, 123)}
    return train(seed, model, data("digits", "image"), "sgd", lr=1e-2, **settings)


@case("SGD with a decay of 2 on a block's first weights", {"weight-decay", "silent-site"}, "act", check=drifts)
def decayed_block(seed: int, planted: bool) -> Result:
    model = Feedforward()
    set_bias(model.fc1, -0.1)
    rest = [p for n, p in model.named_parameters() if n != "fc1.weight"]
    groups = [
        {"params": [model.fc1.weight], "weight_decay": 2.0 if planted else 0.0},
        {"params": rest, "weight_decay": 0.0},
    ]
    return train(seed, model, data("digits", "image"), groups=groups, lr=0.015, steps=240, every=2, window=20)


@case("AdamW, all decayed but biases, on words", {"weight-decay", "silent-site"}, check=drifts)
def decayed_words(seed: int, planted: bool) -> Result:
    model = mlp([120, 64, 32, 9])
    for layer in (model[0], model[2]):
        set_bias(layer, -0.05)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 300.0 if planted else 0.0},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    return train(seed, model, data("words", "tame"), "adamw", groups=groups, lr=1e-4, steps=280, batch=128, every=2)


@case("gamma of a LayerNorm decays to nothing", {"norm-collapse", "weight-decay", "silent-site"}, "2", check=drifts)
def faded_layer_norm(seed: int, planted: bool) -> Result:
    """LayerNorm right before ReLU, its gamma alone decayed, its beta at -0.2."""
    model = mlp([64, 48, 10], norm=nn.LayerNorm)
    set_bias(model[1], -0.2)
    rest = [p for n, p in model.named_parameters() if n != "1.weight"]
    groups = [
        {"params": [model[1].weight], "weight_decay": 2.0 if planted else 0.0},
        {"params": rest, "weight_decay": 0.0},
    ]
    return train(seed, model, data("digits"), groups=groups, lr=0.01, steps=260, every=2, window=20)


@case("beta of a GroupNorm falls under a price on activity", {"norm-collapse", "silent-site"}, "2", check=drifts)
def sunk_group_norm(seed: int, planted: bool) -> Result:
    tap = Tap()
    norm = nn.GroupNorm(4, 16)
    model = nn.Sequential(nn.Conv2d(1, 16, 3), norm, nn.ReLU(), tap, nn.Flatten(), nn.Linear(576, 10))
    groups = [
        {"params": [*model[0].parameters(), *model[5].parameters()], "lr": 1e-4},
        {"params": list(norm.parameters()), "lr": 0.012},
    ]

    def penalty() -> Tensor:
        return (10.0 if planted else 0.0) * tap.value.mean((0, 2, 3)).sum()

    settings = {"penalty": penalty, "steps": 240, "every": 2, "window": 20, "betas": (0.9, 0.9)}
    return train(seed, model, data("digits", "image"), "adam", groups=groups, **settings)


@case("raw measurements into sigmoids", {"saturation"}, check=saturates)
def raw_cancer(seed: int, planted: bool) -> Result:
    xy = data("breast_cancer", "raw" if planted else "std")
    return train(seed, mlp([30, 40, 2], nn.Sigmoid), xy, lr=1e-3, steps=150, every=1, window=15)


@case("tanh convolution with filters of deviation 100", {"saturation"}, check=saturates)
def wild_filters(seed: int, planted: bool) -> Result:
    model = initialize(conv(16, nn.Tanh()), how="glorot")
    if planted:
        nn.init.normal_(model[0].weight, std=100)
    return train(seed, model, data("digits", "image"), "adam", lr=1e-3, steps=150, every=2, window=20)


@case("nine layers of sigmoids on words", {"vanishing-gradient"}, check=vanishes)
def sigmoid_words(seed: int, planted: bool) -> Result:
    model = initialize(mlp([120, *[48] * 9, 9], nn.Sigmoid if planted else nn.Tanh), how="glorot")
    return train(seed, model, data("words"), "adam", lr=1e-4, steps=120, batch=128, every=2, window=20)


@case("seven convolutions with sigmoids", {"vanishing-gradient"}, check=vanishes)
def sigmoid_convolutions(seed: int, planted: bool) -> Result:
    layers: list[nn.Module] = []
    for i in range(7):
        layers += [nn.Conv2d(1 if i == 0 else 8, 8, 3, padding=1), nn.Sigmoid() if planted else nn.Tanh()]
    model = initialize(nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10)), how="glorot")
    return train(seed, model, data("digits", "image"), lr=0.003, steps=60, batch=32, every=1, window=10)


@case("convolutions without norm at four times He's scale", {"exploding-gradient"}, check=explodes)
def loud_convolutions(seed: int, planted: bool) -> Result:
    layers: list[nn.Module] = []
    for i in range(8):
        layers += [nn.Conv2d(1 if i == 0 else 12, 12, 3, padding=1), nn.LeakyReLU(0.1)]
    model = initialize(nn.Sequential(*layers, nn.Flatten(), nn.Linear(768, 10)), 4.0 if planted else 0.8)
    return train(seed, model, data("digits", "image"), lr=1e-4, clip=1.0, steps=60, batch=32, every=1, window=10)


class Recurrence(nn.Module):
    """h = relu(W h + x), twenty times, the same W."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.embed, self.step, self.head = nn.Linear(64, 32), nn.Linear(32, 32), nn.Linear(32, 10)
        nn.init.orthogonal_(self.step.weight, gain=scale)

    def forward(self, x: Tensor) -> Tensor:
        first = h = self.embed(x)
        for _ in range(20):
            h = F.relu(self.step(h) + first)
        return self.head(h)


@case("one recurrent matrix of gain 3, twenty times", {"exploding-gradient"}, check=explodes)
def loud_recurrence(seed: int, planted: bool) -> Result:
    model = Recurrence(3.0 if planted else 0.7)
    return train(seed, model, data("digits"), "adam", lr=1e-6, clip=1.0, steps=80, every=1, window=20)


@case("healthy: channels that fire on few pictures", None, check=healthy)
def rare_channels(seed: int, planted: bool) -> Result:
    model = conv(16)
    x, _ = data("digits", "image")
    with torch.no_grad():
        model[0].bias.sub_(torch.quantile(model[0](x).amax((2, 3)), 0.95, dim=0))
    return train(seed, model, data("digits", "image"), lr=1e-3, steps=200, every=1, window=20)


@case("healthy: Adam at 0.01 under LayerNorm", None, check=healthy)
def brisk_layer_norm(seed: int, planted: bool) -> Result:
    return train(seed, mlp([64, 64, 64, 10], norm=nn.LayerNorm), data("digits"), "adam", lr=0.01, every=2, window=20)


@case("healthy: one of 64 channels of a block dead from the start", None, check=healthy)
def one_of_64(seed: int, planted: bool) -> Result:
    model = Feedforward()
    set_bias(model.fc1, -30, 1 / 64)
    return train(seed, model, data("digits", "image"), "adamw", lr=1e-3, steps=200, every=5, window=50)


@case("healthy: GELU with dropout", None, check=healthy)
def dropped_gelu(seed: int, planted: bool) -> Result:
    model = mlp([120, 96, 48, 9], nn.GELU, dropout=0.4)
    return train(seed, model, data("words"), "adam", lr=1e-3, steps=250, every=10, window=100)


@case("healthy: noise added to each input", None, check=healthy)
def noisy_inputs(seed: int, planted: bool) -> Result:
    def change(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x + torch.randn(x.shape, generator=torch.Generator().manual_seed(step)), y

    return train(seed, mlp([30, 48, 48, 2]), data("breast_cancer"), lr=0.03, change=change, every=2, window=20)


@case("healthy: nine in ten of one class, convolution with batch norm", None, check=healthy)
def imbalanced_pictures(seed: int, planted: bool) -> Result:
    x, y = data("digits", "image")
    return train(seed, conv(16, norm=nn.BatchNorm2d(16)), (x, (y == 3).long()), lr=0.05, momentum=0.9, every=2)


@case("healthy: a plateau, the learning rate is nearly nothing", None, check=healthy)
def standstill(seed: int, planted: bool) -> Result:
    return train(seed, mlp([64, 48, 48, 10]), data("digits"), "sgd", lr=1e-6, steps=200, every=2, window=20)


@case("healthy: a regression in batches of 16", None, check=healthy)
def tiny_regression(seed: int, planted: bool) -> Result:
    x, y = data("diabetes")
    model = mlp([10, 32, 1])
    return train(seed, model, (standardize(x), (y - 150) / 77), "adagrad", lr=0.005, batch=16, steps=400, window=40)
