"""What the liveness penalty costs: a training step with it against one without, interleaved in one process.

    python benchmarks/penalty.py [--rounds 9]

Each row is one task; the ratio is a step with `relume.nn.LivenessPenalty` over one without, median (middle half of the
rounds). Beside it `control`, a second run without, and the bare `liveness_penalty` of one tensor, forward and backward,
over forward and backward of ReLU and a sum on the same tensor.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import relume.nn
from relume.functional import liveness_penalty


def mlp(width: int, layers: int) -> nn.Module:
    blocks = [m for _ in range(layers) for m in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*blocks, nn.Linear(width, 10))


def cnn() -> nn.Module:
    def block(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]

    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(*block(3, 32), *block(32, 32), nn.MaxPool2d(2), *block(32, 64), *block(64, 64), *tail)


TASKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "MLP 3×256, batch 128": (lambda: mlp(256, 3), (128, 256), 40),
    "MLP 4×1024, batch 256": (lambda: mlp(1024, 4), (256, 1024), 6),
    "CNN, 32 × 3×32×32": (cnn, (32, 3, 32, 32), 4),
}
SHAPES = [(256, 1024), (64, 64, 32, 32)]


def stepper(model: nn.Module, x: Tensor, y: Tensor, penalized: bool) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    liveness = relume.nn.LivenessPenalty(model) if penalized else None

    def step() -> None:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        if liveness is not None:
            loss = loss + 0.1 * liveness()
        loss.backward()
        optimizer.step()

    return step


def both(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    def run() -> None:
        x.grad = None
        function(x).sum().backward()

    return run


def seconds(run: Callable[[], None], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - start) / times


def compare(reference: Callable[[], None], others: list[Callable[[], None]], rounds: int, times: int) -> list[str]:
    """The reference's milliseconds, then each other's ratio to it, round by round."""
    for run in (reference, *others):
        seconds(run, 2)
    base, ratios = [], [[] for _ in others]
    for _ in range(rounds):
        bare = seconds(reference, times)
        base.append(bare)
        for of_this, run in zip(ratios, others, strict=True):
            of_this.append(seconds(run, times) / bare)
    cells = [f"{statistics.median(base) * 1e3:.2f}"]
    for of_this in ratios:
        low, middle, high = statistics.quantiles(of_this, n=4)
        cells.append(f"{middle:.3f} ({low:.3f}–{high:.3f})")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| task | bare ms/step | control | with the penalty |\n|---|---|---|---|")
    for name, (make, shape, times) in TASKS.items():
        torch.manual_seed(0)
        x, y = torch.randn(shape), torch.randint(10, shape[:1])
        runs = [stepper(make(), x, y, penalized) for penalized in (False, False, True)]
        print(f"| {name} | {' | '.join(compare(runs[0], runs[1:], rounds, times))} |", flush=True)
    print("\n| tensor | ReLU forward + backward, ms | liveness_penalty over it |\n|---|---|---|")
    for shape in SHAPES:
        x = torch.randn(shape, requires_grad=True)
        cells = compare(both(torch.relu, x), [both(liveness_penalty, x)], rounds, 10)
        print(f"| {list(shape)} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
