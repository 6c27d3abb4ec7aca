"""What reviving brings on the demo's doomed digits nets: ten seeds, every method, the learning rate kept or cut.

    python benchmarks/revive.py [--seeds 10] [--json FILE]

Each net trains 10 epochs at the learning rate that kills it. From that very state (weights, optimizer, order of
batches) it goes on for 20 epochs in every arm: nothing done; only the learning rate cut to the sane one; revived once
by each method, with the rate kept and with it cut. `sane` has trained at the sane rate for all 30 epochs. "fire" is the
share of the revived units that fire on some training input 200 steps later; "gap" the share of the accuracy between
`nothing` and `sane` that an arm recovers.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import relume
from relume.demo import BATCH, DOOMED_LR, SANE_LR, Digits, DigitsNet

DOOMED_EPOCHS, EPOCHS, LATER = 10, 30, 200
METHODS = ("redo", "recentre", "rescale")


def accuracy(model: nn.Module, data: Digits) -> float:
    with torch.no_grad():
        return float((model(data.x_test).argmax(1) == data.y_test).double().mean())


class Training:
    """One net in training, which can be copied at any step."""

    def __init__(self, seed: int, lr: float) -> None:
        torch.manual_seed(seed)
        self.model = DigitsNet()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr, momentum=0.9)
        self.shuffle = torch.Generator().manual_seed(seed)
        self.batches: list[torch.Tensor] = []

    def copy(self) -> Training:
        twin = copy.copy(self)
        twin.model, twin.optimizer = copy.deepcopy((self.model, self.optimizer))
        twin.shuffle = torch.Generator()
        twin.shuffle.set_state(self.shuffle.get_state())
        twin.batches = list(self.batches)
        return twin

    def steps(self, n: int, data: Digits) -> None:
        for _ in range(n):
            if not self.batches:
                self.batches = list(torch.randperm(len(data.x), generator=self.shuffle).split(BATCH))
            batch = self.batches.pop(0)
            loss = F.cross_entropy(self.model(data.x[batch]), data.y[batch])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def cut(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = SANE_LR


def firing(training: Training, units: dict[str, list[int]], data: Digits) -> float:
    census = relume.census(training.model, [data.x])
    alive = [bool(census[s].fired[u] > 0) for s, numbers in units.items() for u in numbers]
    return sum(alive) / len(alive)


def one_seed(seed: int, data: Digits) -> dict[str, dict[str, Any]]:
    per_epoch = -(-len(data.x) // BATCH)
    doomed = Training(seed, DOOMED_LR)
    doomed.steps(DOOMED_EPOCHS * per_epoch, data)
    census = relume.census(doomed.model, [data.x])
    rest = (EPOCHS - DOOMED_EPOCHS) * per_epoch
    found: dict[str, dict[str, Any]] = {}
    arms = ["nothing", "lr cut", *METHODS, *(f"{m}, lr cut" for m in METHODS)]
    for arm in arms:
        training = doomed.copy()
        method = arm.partition(", ")[0]
        row: dict[str, Any] = {}
        if method in METHODS:
            revival = relume.revive(
                training.model, census, training.optimizer, method, batches=[data.x[:256]], seed=seed
            )
            row["change"] = revival.relative
        if "lr cut" in arm:
            training.cut()
        if method in METHODS:
            training.steps(LATER, data)
            row["fire"] = firing(training, revival.units, data)
            training.steps(rest - LATER, data)
        else:
            training.steps(rest, data)
        row["accuracy"] = accuracy(training.model, data)
        row["dead"] = relume.census(training.model, [data.x]).dead
        found[arm] = row
    sane = Training(seed, SANE_LR)
    sane.steps(EPOCHS * per_epoch, data)
    found["sane"] = {"accuracy": accuracy(sane.model, data), "dead": relume.census(sane.model, [data.x]).dead}
    found["nothing"]["dead at the treatment"] = census.dead
    low, high = found["nothing"]["accuracy"], found["sane"]["accuracy"]
    for row in found.values():
        row["gap"] = (row["accuracy"] - low) / (high - low)
    return found


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} [{min(values):.3f}, {max(values):.3f}]" if values else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = Digits.load()
    rows = []
    for seed in range(given.seeds):
        rows.append(one_seed(seed, data))
        if given.json:
            given.json.write_text(json.dumps(rows, indent=1))
    dead = [r["nothing"]["dead at the treatment"] for r in rows]
    print(f"{given.seeds} seeds; {min(dead)} to {max(dead)} of 112 units dead at the treatment\n")
    print(
        f"{'arm':18} {'accuracy: median [min, max]':30} {'gap ≥ 0.9':10} {'fire: median [min, max]':26} ≥ 0.8    dead"
    )
    for arm in rows[0]:
        of = [r[arm] for r in rows]
        enough = f"{sum(r['gap'] >= 0.9 for r in of)} of {len(of)}"
        fire = [r["fire"] for r in of if "fire" in r]
        alive = f"{sum(f >= 0.8 for f in fire)} of {len(fire)}" if fire else ""
        dead_now = statistics.median(r["dead"] for r in of)
        print(f"{arm:18} {spread([r['accuracy'] for r in of]):30} {enough:10} {spread(fire):26} {alive:8} {dead_now:g}")
    changes = [r[a]["change"] for r in rows for a in r if "change" in r[a]]
    print(f"\nlargest change of the output at the treatment: {max(changes):.1e} of its size")


if __name__ == "__main__":
    main()
