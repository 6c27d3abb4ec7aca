"""Certificates: do they hold, how tight are they, how long do they take?

    python benchmarks/certify.py                    # a million random inputs and a thousand searched ones per network
    python benchmarks/certify.py --inputs 100000

First table: over the zoo of tests/prove/certify, units certified dead by each method, and how many of them fired on
random inputs of the box (half of them corners) or under gradient search. Second: doomed networks trained on digits,
over the box of all pixels and a small one around an image.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from itertools import product
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

import relume
from relume.prove import box

ZOO = Path(__file__).parents[1] / "tests" / "prove" / "certify" / "zoo.py"


def load_zoo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("certify_zoo", ZOO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def hardest(model: nn.Module, certificate: relume.Certificate, n: int, steps: int = 20) -> int:
    """Certified dead units that fire for one of n inputs moved by gradient ascent on all their pre-activations.

    Written without certify's own search: pre-activations are caught by hooks where sites are modules.
    """
    caught: dict[str, Tensor] = {}
    handles = [
        m.register_forward_pre_hook(lambda _, a, name=name: caught.setdefault(name, a[0]))
        for name, m in model.named_modules()
        if name in certificate
    ]
    fired = 0
    try:
        dead = {s.name: s for s in certificate.sites if bool(s.dead.any())}
        low, high = certificate.lower, certificate.upper
        x = low + torch.rand(n, *low.shape, dtype=low.dtype) * (high - low)
        for k in range(steps):
            x = x.detach().requires_grad_()
            caught.clear()  # of a module used twice, the first use has its name
            model(x * 1.0)
            goal = torch.zeros(())
            for name, site in dead.items():
                z = caught.get(name)
                if z is None or not isinstance(site.site.axis, int):
                    continue
                z = z.movedim(site.site.axis, -1)[..., site.dead]
                flat = site.site.zones.flat
                if k + 1 == steps:
                    fired += int((~flat.contains(z.detach())).flatten(0, -2).any(0).sum())
                for a, b in flat.intervals:
                    goal = goal + torch.maximum(a - z, z - b).clamp(max=1e9).sum().float()
            if not goal.requires_grad:
                return fired
            (slope,) = torch.autograd.grad(goal, x, allow_unused=True)
            if slope is None:
                return fired
            x = torch.clamp(x + torch.sign(slope) * (high - low) * 0.3 * 0.85**k, low, high)
    finally:
        for handle in handles:
            handle.remove()
    return fired


def sound(inputs: int, searched: int) -> None:
    zoo = load_zoo()
    print("| network | units | dead by ibp | dead by crown | dead by census | certified that fired: random, searched |")
    print("|---|---|---|---|---|---|")
    total = [0, 0, 0, 0]
    for name in zoo.ZOO:
        model, shape = zoo.build(name)
        found = {m: relume.certify(model, -1.0, 1.0, shape=shape, method=m, witnesses=False) for m in ("ibp", "crown")}
        dtype = found["ibp"].lower.dtype
        torch.manual_seed(1)

        def batches(shape: tuple[int, ...] = shape, dtype: torch.dtype = dtype) -> object:
            for _ in range(max(1, inputs // 10_000)):
                x = torch.rand(10_000, *shape, dtype=dtype) * 2 - 1
                x[::2] = torch.sign(x[::2])
                yield x

        census = relume.census(model, batches())
        fired = sum(int((s.dead & ~census[s.name].dead).sum()) for c in found.values() for s in c.sites)
        climbed = sum(hardest(model, c, searched) for c in found.values())
        row = [found["ibp"].dead, found["crown"].dead, census.dead, fired + climbed]
        total = [a + b for a, b in zip(total, row, strict=True)]
        print(f"| {name} | {census.units} | {row[0]} | {row[1]} | {row[2]} | {fired}, {climbed} |", flush=True)
    print(f"| all | | {total[0]} | {total[1]} | {total[2]} | {total[3]} |")


def trained(kind: str, rate: float) -> tuple[nn.Module, Tensor]:
    """Trained on digits at a learning rate at which units die; the images, in [0, 1]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = torch.tensor(digits.images / 16, dtype=torch.float32), torch.tensor(digits.target)
    torch.manual_seed(0)
    if kind == "MLP 64-64-64-10":
        x = x.flatten(1)
        model = nn.Sequential(
            nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
        )
    else:
        x = x[:, None]
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    for step in range(400):
        at = torch.randint(len(x), (64,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[at]), y[at]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    return model.eval(), x


def tight() -> None:
    print(
        "| network | box | method | dead / linear / open | fires | dead by census | median width per site | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for kind, rate in product(("MLP 64-64-64-10", "CNN 16-32-64"), (0.1, 0.2, 0.4)):
        model, x = trained(kind, rate)
        census = relume.census(model, x)
        whole = box(x)
        near = (torch.clamp(x[0] - 0.05, 0, 1), torch.clamp(x[0] + 0.05, 0, 1))
        for what, (low, high) in (("all pixels' ranges", whole), ("an image ± 0.05", near)):
            for method in ("ibp", "crown"):
                times = []
                for _ in range(3):
                    start = time.perf_counter()
                    relume.certify(model, low, high, method=method, witnesses=False)
                    times.append(time.perf_counter() - start)
                found = relume.certify(model, low, high, method=method)
                widths = ", ".join(f"{float(s.width.median()):.3g}" for s in found.sites)
                counted = f"{census.dead}" if low is whole[0] else "–"
                print(
                    f"| {kind}, lr {rate:g} | {what} | {method} | {found.dead} / {found.linear} / {found.open} | "
                    f"{found.fires} | {counted} | {widths} | {min(times):.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="random ones for each network")
    parser.add_argument("--searched", type=int, default=1000, help="by gradient, for each network and method")
    parser.add_argument("--only", choices=("sound", "tight"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.only != "tight":
        sound(options.inputs, options.searched)
        print()
    if options.only != "sound":
        tight()
