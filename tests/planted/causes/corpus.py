"""Small real trainings whose cause of death is known by construction, for tests and for benchmarks/diagnosis.py.

Each case trains in under a second on one thread. It says what a diagnosis should put first (`cause`, None where nothing
is the matter) and, where it is planted at a certain site, which (`site`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from sklearn import datasets
from torch import Tensor, nn

import relume
from relume.diagnose.record import Record

BATCH = 64


@dataclass(frozen=True)
class Case:
    """One planted training.

    `also` names causes that would be right at other sites, by site: those of a case that kills in two ways.
    """

    name: str
    cause: str | None
    run: Callable[[int], tuple[relume.Watch, Record]]
    site: str | None = None
    at_sites: tuple[tuple[str, str], ...] = ()


CASES: list[Case] = []


def case(name: str, cause: str | None, site: str | None = None, **at_sites: str):
    """Register a training; `at_sites` gives the cause of deaths at further sites, as `site_3="upstream-cascade"`."""

    def register(run):
        further = tuple((key.removeprefix("site_"), code) for key, code in at_sites.items())
        CASES.append(Case(name, cause, run, site, further))
        return run

    return register


# Data: real, small, standardized unless a case says otherwise


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    data = datasets.load_digits()
    return torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)


@functools.cache
def table(name: str, raw: bool = False) -> tuple[Tensor, Tensor]:
    data = getattr(datasets, f"load_{name}")()
    x = torch.tensor(data.data, dtype=torch.float32)
    return (x if raw else (x - x.mean(0)) / x.std(0)), torch.tensor(data.target)


def images() -> tuple[Tensor, Tensor]:
    x, y = digits()
    return x.reshape(-1, 1, 8, 8), y


# Models


def mlp(inputs: int, *widths: int, outputs: int, act=nn.ReLU, bias: bool = True, norm=None) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in zip((inputs, *widths), widths, strict=False):
        layers += [nn.Linear(a, b, bias=bias), *([norm(b)] if norm else []), act()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))


def cnn(norm: bool = False) -> nn.Sequential:
    def block(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, padding=1), *([nn.BatchNorm2d(b)] if norm else []), nn.ReLU()]

    return nn.Sequential(*block(1, 8), nn.MaxPool2d(2), *block(8, 16), nn.Flatten(), nn.Linear(16 * 16, 10))


def train(
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    seed: int,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    lr: float = 0.05,
    steps: int = 120,
    momentum: float = 0.9,
    before_step: Callable[[int, torch.optim.Optimizer], None] = lambda step, optimizer: None,
    batch_at: Callable[[int, Tensor], Tensor] = lambda step, x: x,
    penalty: Callable[[int], Tensor | float] = lambda step: 0.0,
    loss_scale: Callable[[int], float] = lambda step: 1.0,
    every: int = 1,
    window: int = 20,
) -> tuple[relume.Watch, Record]:
    """An ordinary loop, with places where a case may interfere."""
    x, y = data
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    drawn = torch.Generator().manual_seed(seed)
    with relume.watch(model, optimizer, every=every, window=window, min_inputs=256) as watch:
        record = Record.on(watch)
        for step in range(steps):
            rows = torch.randint(len(x), (BATCH,), generator=drawn)
            loss = F.cross_entropy(model(batch_at(step, x[rows])), y[rows]) * loss_scale(step) + penalty(step)
            optimizer.zero_grad()
            loss.backward()
            before_step(step, optimizer)
            optimizer.step()
    return watch, record


def seeded(seed: int) -> None:
    torch.manual_seed(1000 + seed)


# Born dead


@case("biases started far below zero", "born-dead", "1")
def _(seed):
    seeded(seed)
    model = mlp(64, 32, 32, outputs=10)
    with torch.no_grad():
        model[0].bias[: 20 + seed % 8] = -6.0
    return train(model, digits(), seed)


@case("negative weights on inputs that are never negative", "born-dead", "1")
def _(seed):
    seeded(seed)
    model = mlp(64, 32, 32, outputs=10)
    with torch.no_grad():
        model[0].weight[:16] = -model[0].weight[:16].abs()
        model[0].bias[:16] = -0.01
    return train(model, digits(), seed, lr=0.02)


@case("channels of a convolution started far below zero", "born-dead", "4")
def _(seed):
    seeded(seed)
    model = cnn()
    with torch.no_grad():
        model[3].bias[:10] = -5.0
    return train(model, images(), seed, lr=0.02, steps=60)


@case("deep and narrow", "deep-narrow")
def _(seed):
    for attempt in range(100):  # the first of this seed's draws that is born dead
        seeded(seed + 1000 * attempt)
        model = mlp(30, *[3] * 16, outputs=2)
        with torch.no_grad():
            for layer in model:
                if isinstance(layer, nn.Linear):
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                    layer.bias.zero_()
            z = model[:-1](table("breast_cancer")[0])
        if not z.any():
            break
    return train(model, table("breast_cancer"), seed, lr=0.01, steps=60)


# Killed by steps


@case("learning rate too high from the start", "killed-by-step")
def _(seed):
    seeded(seed)
    return train(mlp(64, 64, 64, outputs=10), digits(), seed, lr=0.6)


@case("learning rate too high from the start, convolutions", "killed-by-step")
def _(seed):
    seeded(seed)
    return train(cnn(), images(), seed, lr=0.5, steps=80)


@case("one step at four hundred times the learning rate", "killed-by-step")
def _(seed):
    seeded(seed)

    def spike(step, optimizer):
        optimizer.param_groups[0]["lr"] = 20.0 if step == 10 + seed % 10 else 0.05

    return train(mlp(64, 48, outputs=10), digits(), seed, momentum=0.0, before_step=spike)


@case("Adam at a learning rate a hundred times too high", "killed-by-step")
def _(seed):
    seeded(seed)
    model = mlp(64, 48, 48, outputs=10)
    return train(model, digits(), seed, optimizer=torch.optim.Adam(model.parameters(), lr=0.1))


@case("learning rate too high from the start, every fifth step seen", "killed-by-step")
def _(seed):
    seeded(seed)
    return train(mlp(64, 64, outputs=10), digits(), seed, lr=0.8, every=5, window=40, steps=160)


@case("a warm-up that ends too high", "killed-by-step")
def _(seed):
    seeded(seed)
    model = mlp(64, 64, 64, outputs=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.5, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, (s + 1) / 60))
    optimizer.register_step_post_hook(lambda *_: schedule.step())
    return train(model, digits(), seed, optimizer=optimizer)


@case("one batch whose loss is three thousandfold", "killed-by-step")
def _(seed):
    seeded(seed)
    return train(
        mlp(64, 48, outputs=10),
        digits(),
        seed,
        momentum=0.0,
        lr=0.05,
        loss_scale=lambda s: 3000.0 if s == 20 + seed % 10 else 1.0,
    )


@case("only the first layer thrown by a step", "killed-by-step", "1", site_3="upstream-cascade")
def _(seed):
    seeded(seed)
    model = mlp(64, 32, 32, outputs=10)
    with torch.no_grad():
        model[2].bias.uniform_(-0.06, -0.02)
    groups = [{"params": model[0].parameters()}, {"params": [*model[2].parameters(), *model[4].parameters()]}]
    optimizer = torch.optim.SGD(groups, lr=0.02)

    def throw(step, optimizer):
        if step == 50 + seed % 10:
            with torch.no_grad():
                model[0].bias.grad.fill_(40.0)
            optimizer.param_groups[0]["lr"] = 0.2
            optimizer.param_groups[1]["lr"] = 0.0
        else:
            optimizer.param_groups[0]["lr"] = 0.0 if step > 50 + seed % 10 else 0.02
            optimizer.param_groups[1]["lr"] = 0.0 if step > 50 + seed % 10 else 0.02

    return train(model, digits(), seed, optimizer=optimizer, before_step=throw)


# Drifts


@case("a term of the loss that pushes biases down", "bias-drift", "1")
def _(seed):
    seeded(seed)
    model = mlp(13, 32, outputs=3)
    bias = model[0].bias
    return train(model, table("wine"), seed, momentum=0.0, lr=0.02, steps=300, penalty=lambda s: 2.0 * bias.sum())


@case("a term of the loss that pushes biases of a convolution down", "bias-drift", "1")
def _(seed):
    seeded(seed)
    model = cnn()
    bias = model[0].bias
    return train(model, images(), seed, momentum=0.0, lr=0.02, steps=100, penalty=lambda s: 1.5 * bias.sum())


@case("weights without bias pushed down on inputs that are never negative", "weight-drift", "1")
def _(seed):
    seeded(seed)
    model = mlp(64, 32, outputs=10, bias=False)
    return train(
        model,
        digits(),
        seed,
        momentum=0.0,
        lr=0.02,
        steps=150,
        penalty=lambda s: 0.1 * F.linear(digits()[0][:256], model[0].weight).mean(0).sum(),
    )


@case("weight decay that leaves only negative biases", "weight-decay", "1")
def _(seed):
    seeded(seed)
    model = mlp(64, 48, outputs=10)
    with torch.no_grad():
        model[0].bias.uniform_(-0.3, -0.1)
    groups = [
        {"params": [model[0].weight], "weight_decay": 1.0},
        {"params": [model[0].bias, *model[2].parameters()]},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.02, weight_decay=0.0, momentum=0.5)
    return train(model, digits(), seed, optimizer=optimizer, steps=150)


@case("decoupled weight decay that leaves only negative biases", "weight-decay", "1")
def _(seed):
    seeded(seed)
    model = mlp(30, 48, outputs=2)
    with torch.no_grad():
        model[0].bias.uniform_(-0.4, -0.2)
    groups = [
        {"params": [model[0].weight], "weight_decay": 40.0},
        {"params": [model[0].bias, *model[2].parameters()]},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.003, weight_decay=0.0)
    return train(model, table("breast_cancer"), seed, optimizer=optimizer, steps=150)


@case("β of batch norm pushed down", "norm-collapse", "2")
def _(seed):
    seeded(seed)
    model = mlp(64, 32, outputs=10, norm=nn.BatchNorm1d)
    beta = model[1].bias
    return train(model, digits(), seed, momentum=0.0, lr=0.05, steps=150, penalty=lambda s: 1.5 * beta.sum())


@case("β of batch norm pushed down between convolutions", "norm-collapse", "2")
def _(seed):
    seeded(seed)
    model = cnn(norm=True)
    beta = model[1].bias
    return train(model, images(), seed, momentum=0.0, lr=0.05, steps=100, penalty=lambda s: 3.0 * beta.sum())


@case("β of layer norm pushed down", "norm-collapse", "2")
def _(seed):
    seeded(seed)
    model = mlp(64, 32, outputs=10, norm=nn.LayerNorm)
    beta = model[1].bias
    return train(model, digits(), seed, momentum=0.0, lr=0.05, steps=150, penalty=lambda s: 1.5 * beta.sum())


@case("biases drift while the learning rates differ by group", "bias-drift", "1")
def _(seed):
    seeded(seed)
    model = mlp(30, 32, 32, outputs=2)
    bias = model[0].bias
    rest = [p for p in model.parameters() if p is not bias]
    optimizer = torch.optim.SGD([{"params": rest, "lr": 0.01}, {"params": [bias], "lr": 0.05}])
    penalty = lambda s: 0.8 * bias.sum()  # noqa: E731
    return train(model, table("breast_cancer"), seed, optimizer=optimizer, steps=200, penalty=penalty)


# The data


@case("inputs moved in the middle of training", "input-shift", "1")
def _(seed):
    seeded(seed)
    model = mlp(64, 32, outputs=10)
    with torch.no_grad():
        model[0].weight.abs_().mul_(0.7)
    return train(model, digits(), seed, lr=0.002, batch_at=lambda s, x: x - 4.0 if s >= 60 + seed % 10 else x)


@case("inputs scaled and turned negative", "input-shift", "1")
def _(seed):
    seeded(seed)
    model = mlp(64, 32, outputs=10)
    with torch.no_grad():
        model[0].weight.abs_().mul_(0.5)
    return train(
        model, digits(), seed, lr=0.001, momentum=0.0, batch_at=lambda s, x: x * -10 if s >= 60 + seed % 10 else x
    )


# Not by death


@case("tanh with weights thirty times too large", "saturation", "1")
def _(seed):
    seeded(seed)
    model = mlp(64, 32, outputs=10, act=nn.Tanh)
    with torch.no_grad():
        model[0].bias.copy_(torch.randn(32).sign() * 30)
    return train(model, digits(), seed, lr=0.01, steps=60)


@case("many sigmoids", "vanishing-gradient")
def _(seed):
    seeded(seed)
    return train(mlp(30, *[24] * 8, outputs=2, act=nn.Sigmoid), table("breast_cancer"), seed, steps=60)


@case("weights five times too large through many layers", "exploding-gradient")
def _(seed):
    seeded(seed)
    model = mlp(30, *[24] * 10, outputs=2)
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(8)
    return train(model, table("breast_cancer"), seed, lr=0.1, steps=60)


# Healthy


@case("healthy: digits, MLP", None)
def _(seed):
    seeded(seed)
    return train(mlp(64, 64, 64, outputs=10), digits(), seed, lr=0.02)


@case("healthy: digits, CNN", None)
def _(seed):
    seeded(seed)
    return train(cnn(), images(), seed, lr=0.02, steps=80)


@case("healthy: digits, CNN with batch norm", None)
def _(seed):
    seeded(seed)
    return train(cnn(norm=True), images(), seed, lr=0.05, steps=60)


@case("healthy: breast cancer, Adam", None)
def _(seed):
    seeded(seed)
    model = mlp(30, 32, 32, outputs=2)
    return train(model, table("breast_cancer"), seed, optimizer=torch.optim.Adam(model.parameters(), lr=2e-3))


@case("healthy: wine, tanh", None)
def _(seed):
    seeded(seed)
    return train(mlp(13, 16, 16, outputs=3, act=nn.Tanh), table("wine"), seed, lr=0.05)


@case("healthy: digits, layer norm, AdamW with decay", None)
def _(seed):
    seeded(seed)
    model = mlp(64, 48, 48, outputs=10, norm=nn.LayerNorm)
    return train(model, digits(), seed, optimizer=torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05))


# Hard negatives


@case("hard: sparse but alive", None)
def _(seed):
    """Every unit fires on its own few inputs: its bias is set to their share."""
    seeded(seed)
    model = mlp(64, 32, outputs=10)
    x = digits()[0]
    with torch.no_grad():
        model[0].bias -= torch.quantile(model[0](x), 0.97, dim=0)
    return train(model, digits(), seed, lr=0.001, momentum=0.0)


@case("hard: a high learning rate that does no harm", None)
def _(seed):
    seeded(seed)
    model = mlp(64, 64, outputs=10, norm=nn.BatchNorm1d)
    return train(model, digits(), seed, lr=0.5, momentum=0.0)


@case("hard: weight decay that does no harm", None)
def _(seed):
    seeded(seed)
    model = mlp(64, 48, outputs=10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    return train(model, digits(), seed, optimizer=optimizer)


@case("hard: inputs that move and kill nobody", None)
def _(seed):
    seeded(seed)
    model = mlp(30, 32, outputs=2, norm=nn.BatchNorm1d)
    return train(model, table("breast_cancer"), seed, lr=0.02, batch_at=lambda s, x: x + 3 if s >= 60 else x)


@case("hard: a dead unit that never mattered", None)
def _(seed):
    seeded(seed)
    model = mlp(64, 48, outputs=10)
    with torch.no_grad():
        model[0].bias[seed % 48] = -50.0
        model[2].weight[:, seed % 48] = 0
    return train(model, digits(), seed, lr=0.02)


@case("hard: one large step that kills nobody", None)
def _(seed):
    seeded(seed)
    model = mlp(13, 32, outputs=3, norm=nn.BatchNorm1d)

    def spike(step, optimizer):
        optimizer.param_groups[0]["lr"] = 1.0 if step == 60 else 0.02

    return train(model, table("wine"), seed, momentum=0.0, before_step=spike)
