"""What training members together saves: `run_batched` against a loop, interleaved in one process.

    python benchmarks/lab.py [--rounds 5] [--members 32] [--steps 200] [--threads 2]

Each row is one shape of member. "loop" is an ordinary PyTorch loop over the members, one after the other, with nothing
watched, models made beforehand; "lab" is `run_member` without diagnosis, which takes the census; "together" is
`run_batched`, which takes it too. Ratios are of whole trainings, from settings to results, median (middle half of the
rounds); beside them the same for the steps alone, without what comes before (models, initial weights) and after
(scores, census at the end).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from relume.lab.alone import optimizer_of, run_member
from relume.lab.batched import _train, run_batched
from relume.lab.member import Member
from relume.lab.setup import data_of, model_of, order_of
from relume.lab.together import Network

SHAPES: dict[str, dict[str, Any]] = {
    "digits, 2 × 32, SGD": {"task": "digits"},
    "digits, 2 × 32, Adam": {"task": "digits", "optimizer": "adam", "lr": 0.01},
    "digits, 4 × 32, batch norm": {"task": "digits", "depth": 4, "norm": "batch"},
    "digits, 2 × 64, SGD": {"task": "digits", "width": 64},
    "digits, 2 × 256, SGD": {"task": "digits", "width": 256},
    "sine, 10 × 8, Adam": {"task": "sine", "depth": 10, "width": 8, "optimizer": "adam", "lr": 0.01},
    "docstrings, 2 × 32, Adam": {"task": "docstrings", "optimizer": "adam", "lr": 0.01},
    "digits-cnn, 2 × 8, SGD": {"task": "digits-cnn", "width": 8},
}


def timed(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def plain_loop(members: list[Member]) -> Callable[[], None]:
    """An ordinary loop, models made beforehand."""
    task, split = data_of(members[0])
    made = [model_of(m, task, split) for m in members]

    def run() -> None:
        for member, model in zip(members, made, strict=True):
            optimizer = optimizer_of(member, model)
            for step, rows in enumerate(order_of(member, len(split.train.x))):
                output, y = model(task.at(split.train.x[rows], step)), split.train.y[rows]
                loss = F.cross_entropy(output, y) if task.kind == "classification" else F.mse_loss(output, y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    return run


def steps_together(members: list[Member]) -> Callable[[], None]:
    """The steps of `run_batched`, with the census and the scores of each window; models made beforehand."""
    task, split = data_of(members[0])
    network = Network([model_of(m, task, split) for m in members], members)
    return lambda: _train(network, members, task, split) and None


def row(of: dict[str, Any], members: int, steps: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each kind, by round."""
    several = [Member(**of, seed=i, steps=steps) for i in range(members)]
    seconds: dict[str, list[float]] = {"loop": [], "steps": [], "lab": [], "together": []}
    for _ in range(rounds + 1):
        seconds["loop"].append(timed(plain_loop(several)))
        seconds["steps"].append(timed(steps_together(several)))
        seconds["lab"].append(timed(lambda: [run_member(m, diagnose=False) for m in several]))
        seconds["together"].append(timed(lambda: run_batched(several)))
    return {name: values[1:] for name, values in seconds.items()}  # the first round warms up


def spread(ratios: list[float]) -> str:
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return f"{middle:.1f}× ({low:.1f} … {high:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--members", type=int, default=32)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{args.members} members, {args.steps} steps of batch 64, {args.threads} threads, torch {torch.__version__}")
    print(f"{'':28}{'steps: loop / together':>28}{'whole: lab / together':>28}{'together':>14}")
    for name, of in SHAPES.items():
        if args.only not in name:
            continue
        s = row(of, args.members, args.steps, args.rounds)
        steps = spread([a / b for a, b in zip(s["loop"], s["steps"], strict=True)])
        whole = spread([a / b for a, b in zip(s["lab"], s["together"], strict=True)])
        print(f"{name:28}{steps:>28}{whole:>28}{statistics.median(s['together']):>12.2f} s", flush=True)


if __name__ == "__main__":
    main()
