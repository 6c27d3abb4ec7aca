"""What DReLU costs beside the activations of torch: forward, backward and both, in time and in memory.

    python benchmarks/activations.py [--rounds 15] [--quick] [--threads 2] [--json FILE]

Every figure is a ratio to F.relu on the same tensor in the same process: in each round every function is timed once, in
an order drawn anew, and divided by that round's F.relu; given are the median and the middle half of the rounds. The
control is a second F.relu: what it differs from 1 is noise. DReLU's times include the statistics that move its τ.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import relume
from relume.nn import DReLU

SHAPES = {
    "[256, 1024]": ((256, 1024), 1),
    "[64, 64, 32, 32]": ((64, 64, 32, 32), 1),
    "[8, 128, 1024]": ((8, 128, 1024), -1),
    "[4096, 2048]": ((4096, 2048), 1),
}
PASSES = ("forward", "backward", "both")
Function = Callable[[Tensor], Tensor]


def functions(channels: int, axis: int, dtype: torch.dtype) -> dict[str, Function]:
    """In the order of the table. PReLU has a slope per channel, as DReLU has τ; torch's takes axis 1 only."""
    slopes = torch.full((channels if axis == 1 else 1,), 0.25, dtype=dtype, requires_grad=True)
    return {
        "relu": F.relu,
        "control": lambda x: F.relu(x),
        "drelu": DReLU(channels, axis=axis),
        "drelu, fixed τ": DReLU(tau=1.0),
        "drelu, learned": DReLU(channels, axis=axis, tau="learned", learn_alpha=True),
        "drelu, exponential": DReLU(channels, axis=axis, form="exponential"),
        "leaky_relu": F.leaky_relu,
        "prelu": lambda x: F.prelu(x, slopes),
        "elu": F.elu,
        "gelu": F.gelu,
        "silu": F.silu,
        "softplus": F.softplus,
    }


def seconds(function: Function, x: Tensor, g: Tensor, which: str, repeats: int) -> float:
    """Per call; the gradient is that of the input alone, as for an activation without parameters."""
    wanted = [x, *(function.parameters() if isinstance(function, nn.Module) else ())]
    spent = 0.0
    for _ in range(repeats):
        if which == "forward":
            start = time.perf_counter()
            function(x)
            spent += time.perf_counter() - start
        elif which == "backward":
            y = function(x)
            start = time.perf_counter()
            torch.autograd.grad(y, wanted, g)
            spent += time.perf_counter() - start
        else:
            start = time.perf_counter()
            torch.autograd.grad(function(x), wanted, g)
            spent += time.perf_counter() - start
    return spent / repeats


def measure(name: str, dtype: torch.dtype, rounds: int, only: set[str] | None) -> list[dict[str, object]]:
    shape, axis = SHAPES[name]
    x = torch.randn(shape).to(dtype).requires_grad_()
    g = torch.randn(shape).to(dtype)
    chosen = {k: f for k, f in functions(shape[axis], axis, dtype).items() if only is None or k in only}
    repeats = max(1, min(50, 4_000_000 // x.numel()))
    results = []
    for which in PASSES:
        times: dict[str, list[float]] = {k: [] for k in chosen}
        for f in chosen.values():
            seconds(f, x, g, which, 2)
        for _ in range(rounds):
            for k in random.sample(sorted(chosen), len(chosen)):
                times[k].append(seconds(chosen[k], x, g, which, repeats))
        relu = times["relu"]
        best = {k: min(v) / min(relu) for k, v in times.items()}
        ratios = {k: statistics.quantiles([a / b for a, b in zip(v, relu, strict=True)], n=4) for k, v in times.items()}
        results.append(
            {
                "shape": name, "dtype": str(dtype)[6:], "pass": which, "relu_us": statistics.median(relu) * 1e6,
                "ratio": {k: {"low": q[0], "median": q[1], "high": q[2], "best": best[k]} for k, q in ratios.items()},
            }
        )  # fmt: skip
    return results


PEAK = """
import re, sys, torch
from torch import nn
from relume.nn import DReLU
torch.set_num_threads(2)
def net(act):
    return nn.Sequential(*[m for _ in range(6) for m in (nn.Linear(256, 256), act())])
act = {"relu": nn.ReLU, "drelu": lambda: DReLU(256), "drelu, exponential": lambda: DReLU(256, form="exponential"),
       "prelu": lambda: nn.PReLU(256), "elu": nn.ELU, "gelu": nn.GELU, "silu": nn.SiLU, "softplus": nn.Softplus,
       "leaky_relu": nn.LeakyReLU}[sys.argv[1]]
model = net(act)
model(torch.randn(8, 256)).sum().backward()
def peak():  # of this process alone: getrusage starts from its parent's
    with open("/proc/self/status") as file:
        return int(re.search(r"VmHWM:\\s+(\\d+)", file.read())[1])
before = peak()
model(torch.randn(32768, 256)).sum().backward()
print(peak() - before)
"""


def peak_mib(name: str) -> float:
    """What training a six-layer MLP on 32,768 inputs adds to a fresh process's peak memory: tensors are of 32 MiB."""
    done = subprocess.run([sys.executable, "-c", PEAK, name], capture_output=True, text=True, check=True)
    return int(done.stdout) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--quick", action="store_true", help="DReLU, ReLU, ELU, GELU, PReLU in float32, 7 rounds, no memory"
    )
    parser.add_argument("--minima", action="store_true", help="ratios of the fastest rounds, for a busy machine")
    parser.add_argument("--only", default="", help="part of a shape")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    random.seed(0)
    rounds = min(args.rounds, 7) if args.quick else args.rounds
    only = {"relu", "control", "drelu", "elu", "gelu", "prelu"} if args.quick else None
    print(
        f"torch {torch.__version__}, {args.threads} threads, {platform.machine()}, {rounds} rounds; {relume.backend()}"
    )
    names = [k for k in functions(1, 1, torch.float32) if (only is None or k in only) and k != "relu"]
    print(f"| tensor | pass | relu µs | {' | '.join(names)} |")
    print("|---" * (len(names) + 3) + "|")
    results = []
    for dtype in (torch.float32,) if args.quick else (torch.float32, torch.bfloat16):
        for shape in (s for s in SHAPES if args.only in s):
            for r in measure(shape, dtype, rounds, only):
                results.append(r)
                ratio: dict[str, dict[str, float]] = r["ratio"]  # type: ignore[assignment]
                if args.minima:
                    cells = [f"{ratio[k]['best']:.2f}" for k in names]
                else:
                    quartiles = [(ratio[k]["median"], ratio[k]["low"], ratio[k]["high"]) for k in names]
                    cells = [f"{m:.2f} ({low:.2f}–{high:.2f})" for m, low, high in quartiles]
                head = f"| {r['dtype']} {r['shape']} | {r['pass']} | {r['relu_us']:.0f} |"
                print(head, " | ".join(cells), "|", flush=True)
    if not args.quick and sys.platform == "linux":
        peaks = {k: peak_mib(k) for k in ("relu", "drelu", "drelu, exponential", "leaky_relu", "prelu", "elu", "gelu")}
        print("peak memory, MiB:", ", ".join(f"{k} {v:.0f}" for k, v in peaks.items()))
        results.append({"peak_mib": peaks})
    if args.json:
        with open(args.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
