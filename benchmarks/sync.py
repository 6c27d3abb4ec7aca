"""What adding up ranks costs: bytes and milliseconds per window, in processes on this machine that talk by gloo.

    python benchmarks/sync.py [--ranks 2] [--windows 20] [--threads 1]

Each model is watched by all ranks; every window has one observed step, behind a barrier. Printed are medians over
windows, of the slowest rank each: of reading the meters, which one process does too, of meeting, and of adding up.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import time

import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch import distributed as dist

import relume
from relume.watch.sync import Ranks


class Scales(nn.Module):
    """Sites of many units at little cost: each activation is applied to the input times a vector."""

    def __init__(self, sites: int, units: int) -> None:
        super().__init__()
        self.scales = nn.ParameterList(torch.randn(units) for _ in range(sites))

    def forward(self, x: Tensor) -> Tensor:
        return sum(torch.relu(x * scale).mean() for scale in self.scales)  # type: ignore[return-value]


MODELS = {
    "4 sites × 1,024 units": (4, 1024),
    "12 sites × 3,072 units (the MLPs of GPT-2 small)": (12, 3072),
    "100 sites × 10,000 units": (100, 10_000),
}


def timed(owner: type, name: str, seconds: dict[str, list[float]]) -> None:
    """Note how long each call of a method takes."""
    method = getattr(owner, name)

    def call(*args: object, **kwargs: object) -> object:
        start = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            seconds.setdefault(name, []).append(time.perf_counter() - start)

    setattr(owner, name, call)


def work(rank: int, ranks: int, windows: int, threads: int, port: int) -> None:
    torch.set_num_threads(threads)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    seconds: dict[str, list[float]] = {}
    sent: list[int] = []
    reduce = Ranks._all_reduce

    def counting(self: Ranks, values: Tensor, largest: bool) -> None:
        sent.append(values.numel() * values.element_size())
        reduce(self, values, largest)

    Ranks._all_reduce = counting  # type: ignore[method-assign]
    for owner, name in ((relume.watch.__globals__["Watch"], "_counted"), (Ranks, "meet"), (Ranks, "merge")):
        timed(owner, name, seconds)
    for label, (sites, units) in MODELS.items():
        model = Scales(sites, units)
        seconds.clear()
        sent.clear()
        with relume.watch(model, every=1, window=1) as watch:
            for _ in range(windows + 2):
                dist.barrier()
                model(torch.randn(1, 1))
            size = sum(sent) / (windows + 2)
            state = watch.state_bytes
        rows = torch.tensor([seconds[n][2 : windows + 2] for n in ("_counted", "meet", "merge")]) * 1e3
        dist.all_reduce(rows, op=dist.ReduceOp.MAX)
        if rank == 0:
            cells = [f"{statistics.median(row.tolist()):.1f}" for row in rows]
            print(f"| {label} | {state / 1e6:.2f} | {size / 1e6:.2f} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {args.ranks} processes of {args.threads} thread, gloo, {args.windows} windows")
    print("| model | state, MB | reduced per window, MB | reading meters, ms | meeting, ms | adding up, ms |")
    print("|---|---|---|---|---|---|")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(work, (args.ranks, args.windows, args.threads, port), nprocs=args.ranks)


if __name__ == "__main__":
    main()
