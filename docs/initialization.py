"""The figures of docs/initialization.md: `python docs/initialization.py` (two minutes on one core)."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import relume
from relume.activations import Activation, activation, all_activations
from relume.activations.gains import normal_mean
from relume.activations.registry import TwoInputs
from relume.init import born_dead_probability, he_, simulate_born_dead

NETS, GROUP, WIDTH, DEPTH = 2000, 100, 256, 20


def elasticity(a: Activation) -> float:
    """d log E f(√q z)² / d log q at q = 1: what becomes of a small deviation of the scale in one layer."""
    square, slope = normal_mean(
        lambda x: torch.stack([a.function(x) ** 2, x * a.function(x) * a.derivative(x)]), a.kinks
    )
    return slope / square


def depth() -> None:
    """E z² and the mean squared gradient at layer 20, of 2,000 networks of width 256, by gains."""
    known = [a for a in all_activations() if not isinstance(a, TwoInputs)]
    forward = {a: [] for a in known}
    backward = {a: [] for a in known}
    for _ in range(NETS // GROUP):
        z = {a: torch.randn(GROUP, WIDTH) for a in known}
        gradient = {a: torch.randn(GROUP, WIDTH) for a in known}
        for _ in range(DEPTH):
            w = torch.randn(GROUP, WIDTH, WIDTH) / math.sqrt(WIDTH)
            new = w @ torch.stack([a.function(v) * a.gain for a, v in z.items()], 2)
            z = dict(zip(known, new.unbind(2), strict=True))
            back = w @ torch.stack([g * a.backward_gain for a, g in gradient.items()], 2)
            fresh = torch.randn(GROUP, WIDTH)
            gradient = {a: g * a.derivative(fresh).float() for a, g in zip(known, back.unbind(2), strict=True)}
        for a in known:
            forward[a].append(z[a].square().mean(1))
            backward[a].append(gradient[a].square().mean(1))
    print("\nactivation | gain | backward | mean | elasticity | E z² | median net | grad²")
    for a in known:
        f, b = torch.cat(forward[a]), torch.cat(backward[a])
        numbers = (a.gain, a.backward_gain, a.mean, elasticity(a), float(f.mean()), float(f.median()), float(b.mean()))
        print(f"{a.name:15s}", *(f"{x:8.3f}" if x < 1e4 else f"{x:8.1e}" for x in numbers))


def born_dead() -> None:
    print("\nborn dead, exact: width | depth 2 | 5 | 10 | 20 | 50")
    for n in (2, 3, 4, 5, 8, 16):
        found = [born_dead_probability([n] * d) for d in (2, 5, 10, 20, 50)]
        print(f"{n:3d}", *(f"{f.probability:9.2g} [{f.lower:.2g}, {f.upper:.2g}]" for f in found))
    print("\nborn dead at width 2, 20,000 networks: depth | He exact | He | RAI | RAI, first layer too")
    generator = torch.Generator().manual_seed(0)
    for d in (5, 10, 20):
        shares = [
            simulate_born_dead([2] * d, *how, generator=generator, **more)
            for how, more in ((("he",), {}), (("rai",), {}), (("rai",), {"first": "rai"}))
        ]
        print(d, f"{float(born_dead_probability([2] * d)):.4f}", *(f"{s:.4f}" for s in shares))


def train(kind: type[nn.Module], depth: int, width: int, lr: float, gain: str | None, seed: int) -> float:
    torch.manual_seed(seed)
    widths = [64, *[width] * depth]
    layers = [m for a, b in itertools.pairwise(widths) for m in (nn.Linear(a, b), kind())]
    model = nn.Sequential(*layers, nn.Linear(width, 10))
    he_(model, activation={"0": "linear", "*": gain} if gain else None)
    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32)
    x, y = (x - x.mean(0)) / x.std(0).clamp(min=1e-3), torch.tensor(digits.target)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(150):
        pick = torch.randint(1400, (64,), generator=generator)
        loss = F.cross_entropy(model(x[pick]), y[pick])
        if not torch.isfinite(loss):
            return math.nan
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return float((model(x[1400:]).argmax(1) == y[1400:]).double().mean())


def training() -> None:
    kinds = {
        "relu": nn.ReLU, "leaky_relu(0.2)": lambda: nn.LeakyReLU(0.2), "leaky_relu(0.5)": lambda: nn.LeakyReLU(0.5),
        "elu": nn.ELU, "gelu": nn.GELU, "drelu": relume.nn.DReLU,
    }  # fmt: skip
    print("\ndigits, momentum 0.9, 8 seeds: trained (accuracy above 0.8) / NaN, with ReLU's gain; with its own")
    for depth_, width, lr in ((3, 64, 0.2), (3, 128, 0.1), (6, 128, 0.05), (10, 128, 0.02), (20, 128, 0.01)):
        for name, kind in kinds.items():
            row = []
            for gain in ("relu", None):
                results = [train(kind, depth_, width, lr, gain, s) for s in range(8)]
                row.append(f"{sum(r > 0.8 for r in results)}/{sum(map(math.isnan, results))}")
            print(f"{depth_:2d} × {width}  lr {lr:<5g} {name:16s} gain {activation(name).gain:.3f} ", *row, flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    born_dead()
    depth()
    training()
