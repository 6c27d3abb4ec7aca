"""What keeping a replay costs: a training step bare, under watch, and under watch with replay; and bytes kept.

    python benchmarks/replay.py [--steps 200] [--rounds 5] [--threads 1]

The three take turns in one process, so that what else the machine does falls on all alike; printed are medians over
rounds of the ratio to the bare loop, with the least and the largest.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import relume

Build = Callable[[], tuple[nn.Module, torch.optim.Optimizer, Callable[[], Tensor]]]


def mlp() -> tuple[nn.Module, torch.optim.Optimizer, Callable[[], Tensor]]:
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    return model, torch.optim.Adam(model.parameters(), 1e-3), lambda: torch.randn(128, 256)


def cnn() -> tuple[nn.Module, torch.optim.Optimizer, Callable[[], Tensor]]:
    layers: list[nn.Module] = []
    for a, b in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 10))
    return model, torch.optim.SGD(model.parameters(), 0.01, momentum=0.9), lambda: torch.randn(32, 3, 32, 32)


class Loop:
    """One training that can be gone on with."""

    def __init__(self, build: Build, how: str) -> None:
        torch.manual_seed(0)
        self.model, self.optimizer, self.batch = build()
        self.watch = None
        if how != "bare":
            self.watch = relume.watch(self.model, self.optimizer, replay=how == "watch + replay")

    def run(self, steps: int) -> float:
        """Seconds of so many steps."""
        started = time.perf_counter()
        for _ in range(steps):
            x = self.batch()
            loss = F.cross_entropy(self.model(x), torch.zeros(len(x), dtype=torch.long))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"torch {torch.__version__}, {given.threads} threads; watch: every=10, window=100; replay: up to 512 MiB")
    for build in (mlp, cnn):
        loops = {how: Loop(build, how) for how in ("bare", "watch", "watch + replay")}
        times: dict[str, list[float]] = {how: [] for how in loops}
        for loop in loops.values():
            loop.run(20)
        for _ in range(given.rounds):
            for how, loop in loops.items():
                times[how].append(loop.run(given.steps) / given.steps)
        print(f"{build.__name__}: bare {1e3 * statistics.median(times['bare']):.2f} ms a step")
        for how in ("watch", "watch + replay"):
            ratios = [t / bare for t, bare in zip(times[how], times["bare"], strict=True)]
            watch = loops[how].watch
            kept = (
                f", {watch.replay.nbytes / 2**20:.0f} MiB kept of {watch.step} steps" if watch and watch.replay else ""
            )
            print(f"  {how}: {statistics.median(ratios):.3f} × ({min(ratios):.3f} to {max(ratios):.3f}){kept}")
        for loop in loops.values():
            if loop.watch is not None:
                loop.watch.close()


if __name__ == "__main__":
    main()
