"""What helps a training that kills its units: a lower learning rate, another activation, revival, a guard.

    python benchmarks/guard.py [--seeds 10] [--lr 0.3] [--epochs 30] [--only WORD] [--json FILE]

The network and data of `relume demo` (handwritten digits, 450 held out); per seed all variants have the same initial
weights and batch order. Per variant: held-out accuracy as the interquartile mean over seeds with a 95 % interval
(bootstrap, 10,000 draws), dead units at the end, and the share of the gap between doomed and sane that it closes, and
in how many seeds that is at least 90 %.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import relume
from relume.demo import BATCH, SANE_LR, Digits, DigitsNet
from relume.lab.stats import interval

Watching = Callable[[nn.Module, torch.optim.Optimizer], AbstractContextManager[Any]]


def convert_to(name: str) -> Callable[[nn.Module, Digits], None]:
    def change(model: nn.Module, data: Digits) -> None:
        relume.convert(model, name, batches=data.x[:BATCH])

    return change


class ReviveAtTheEndOf:
    """What a person would do by hand: after one epoch in five, revive what is dead."""

    def __init__(self, method: str) -> None:
        self.method = method

    def __call__(self, model: nn.Module, optimizer: torch.optim.Optimizer, data: Digits, epoch: int) -> None:
        diverged = not all(bool(p.isfinite().all()) for p in model.parameters())
        if epoch % 5 == 4 and not diverged:  # a person could only begin anew
            census = relume.census(model, data.x.split(BATCH))
            if census.dead:
                with suppress(relume.RelumeError):  # outputs may have become infinite, though weights are finite
                    relume.revive(
                        model, census, optimizer=optimizer, method=self.method, batches=[data.x[:256]], seed=epoch
                    )


def variants(lr: float) -> dict[str, dict[str, Any]]:
    return {
        "nothing (doomed)": {"lr": lr},
        "sane learning rate": {"lr": SANE_LR},
        "a third of the learning rate": {"lr": lr / 3},
        "leaky_relu(0.01)": {"lr": lr, "change": convert_to("leaky_relu(0.01)")},
        "elu": {"lr": lr, "change": convert_to("elu")},
        "drelu": {"lr": lr, "change": convert_to("drelu")},
        "revive by hand, redo": {"lr": lr, "each_epoch": ReviveAtTheEndOf("redo")},
        "revive by hand, recentre": {"lr": lr, "each_epoch": ReviveAtTheEndOf("recentre")},
        "guard, gentle": {"lr": lr, "policy": "gentle"},
        "guard, full": {"lr": lr, "policy": "full"},
    }


def train(
    data: Digits,
    seed: int,
    epochs: int,
    lr: float,
    *,
    change: Callable[[nn.Module, Digits], None] | None = None,
    each_epoch: ReviveAtTheEndOf | None = None,
    policy: str | None = None,
) -> dict[str, Any]:
    """One training; the census at the end is over all of the training data."""
    torch.manual_seed(seed)
    model = DigitsNet()
    if change is not None:
        change(model, data)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    shuffle = torch.Generator().manual_seed(seed)
    steps = -(-len(data.x) // BATCH)
    guard: Any = nullcontext()
    if policy is not None:
        guard = relume.guard(model, optimizer, policy=policy, every=2, window=steps, seed=seed)
    start = time.perf_counter()
    with guard:
        for epoch in range(epochs):
            for batch in torch.randperm(len(data.x), generator=shuffle).split(BATCH):
                loss = F.cross_entropy(model(data.x[batch]), data.y[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if policy is not None:
                    guard.log(loss=float(loss.detach()))
            if each_epoch is not None:
                each_epoch(model, optimizer, data, epoch)
    took = time.perf_counter() - start
    model.eval()
    with torch.no_grad():
        accuracy = float((model(data.x_test).argmax(1) == data.y_test).double().mean())
    census = relume.census(model, data.x.split(BATCH))
    acts = [str(act) for act in guard.acts] if policy is not None else []
    return {"accuracy": accuracy, "dead": census.dead, "units": census.units, "seconds": took, "acts": acts}


def show(rows: dict[str, list[dict[str, Any]]]) -> None:
    doomed = [r["accuracy"] for r in rows.get("nothing (doomed)", [])]
    sane = [r["accuracy"] for r in rows.get("sane learning rate", [])]
    print(f"{'':34}{'held-out accuracy':^24}{'dead':>9}{'gap closed':>12}{'≥ 90 %':>9}{'time':>7}")
    base = rows.get("nothing (doomed)", [])
    for name, runs in rows.items():
        found = interval([r["accuracy"] for r in runs], "iqm", method="percentile", resamples=10_000)
        dead = sum(r["dead"] for r in runs) / sum(r["units"] for r in runs)
        closed = [(r["accuracy"] - d) / (s - d) for r, d, s in zip(runs, doomed, sane, strict=False) if s - d > 0.01]
        gap = f"{np.median(closed):.0%}" if closed else ""
        often = f"{sum(c >= 0.9 for c in closed)}/{len(closed)}" if closed else ""
        slower = ""
        if base:
            slower = f"{np.median([r['seconds'] / b['seconds'] for r, b in zip(runs, base, strict=True)]):.2f}×"
        mean = f"{found.estimate:7.1%}  [{found.low:6.1%}, {found.high:6.1%}]"
        print(f"{name:34}{mean}{dead:9.1%}{gap:>12}{often:>9}{slower:>7}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=0.3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--only", default="", help="variants whose name has this in it; doomed and sane always run")
    parser.add_argument("--acts", action="store_true", help="print what the guards did")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    data = Digits.load()
    rows: dict[str, list[dict[str, Any]]] = {}
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        for i, (name, options) in enumerate(variants(given.lr).items()):
            if i < 2 or given.only in name:
                rows.setdefault(name, []).append(train(data, seed, given.epochs, **options))
        print(f"seed {seed} done", file=sys.stderr)
    show(rows)
    if given.acts:
        for name, runs in rows.items():
            for seed, run in enumerate(runs, given.first_seed):
                for act in run["acts"]:
                    print(f"{name}, seed {seed}: {act}")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
